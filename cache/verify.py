"""Checks every byte of a cache: a verdict for each file, and every place that is wrong.

What is read: the header and its digest, HDF5's own view of the file, the provenance, the labels, every block of every
data set against its checksum, weights.h5 against the teachers, and all files against SHA256SUMS of a packed folder.
Whether the teachers give the same logits again is checked by `pipeline/verify.py`.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from demkd.cache import shards
from demkd.cache.errors import CacheError, CacheFormatError, CacheMismatchError, CacheMissingError
from demkd.cache.format import Header, read_header
from demkd.cache.reader import UNWRITTEN, ShardFile, TeacherCache, open_cache, read_weights
from demkd.cache.shards import SUMS, WEIGHTS, Shard, shard_file

SOUND, DAMAGED, UNFINISHED, GROWING, OUTDATED = "sound", "damaged", "unfinished", "growing", "outdated"
OTHER_FORMAT = "other format"

_RESUME = "run the same `cache_teachers` again to resume"
_RECOMPUTE = "run the same `cache_teachers` again: it recomputes these blocks and keeps the others"
_REMAKE = "remove it, and run the same `cache_teachers` again"
_REMAKE_ONE = "remove the wrong one, and run `cache_teachers` for it again"
_GET_AGAIN = "get these files again from where the folder came from, or remove SHA256SUMS if you trust them as they are"
_REMAKE_WEIGHTS = "run the same `cache_teachers` again, which computes the weights again"

# Data set -> offset, shape and type, as HDF5 reads them. A crafted header can make the HDF5 library hang or end its
# process (measured), so HDF5 reads files in another process, which imports nothing of this project.
Layout = dict[str, list[Any]]
_SECONDS = 60.0  # a sound file takes milliseconds
_HDF5_PROGRAM = """
import json, sys
import h5py

def layout(path):
    found = {}
    def note(name, item):
        if isinstance(item, h5py.Dataset):
            text = item.dtype.kind == "S"
            found[name] = [item.id.get_offset(), [item.dtype.itemsize] if text else item.shape,
                           "|u1" if text else item.dtype.str]
    try:
        with h5py.File(path, "r", locking=False) as file:
            file.visititems(note)
    except Exception:
        return None
    return found

for path in sys.argv[1:]:
    print(json.dumps(layout(path)), flush=True)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What is wrong with a file and where, and the place again if it is in the blocks of a data set."""

    text: str
    dataset: str | None = None
    view_index: int | None = None
    first_row: int | None = None
    last_row: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FileVerdict:
    """The state of a file.

    The verdict is "sound", "damaged", "other format", "unfinished" (no finished file yet), "growing" (beside a finished
    one), or "outdated" (weights of other teachers or fewer views, which are not used). A block that a kill tore is no
    damage while the file is written: it is computed again.
    """

    name: str  # the teacher's, "weights", or "SHA256SUMS"
    path: Path
    verdict: str
    file_bytes: int
    blocks: int  # that were compared with their checksums
    done: float  # the share of blocks that are written
    faults: tuple[Fault, ...]
    cure: str  # what to do; empty for a sound file
    shard: str = ""  # which one, in words; empty for a teacher in one file


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """The verdict on a cache; `sound` if nothing of it is damaged or unfinished."""

    folder: Path
    sound: bool
    files: tuple[FileVerdict, ...]


def verify_cache(
    folder: Path, teachers: Sequence[str] | None = None, *, advance: Callable[[int], None] = lambda _: None
) -> Verification:
    """Check a cache; faults are in the verdict, and not raised. `advance` gets the bytes of every block."""
    present = shards.files_by_teacher(folder)
    if not present:
        raise shards.no_cache(folder)
    chosen = tuple(present) if teachers is None else shards.teacher_names(teachers)
    for name in chosen:
        if name not in present:
            raise CacheMissingError(f"there is no teacher {name!r} in {folder}; it has {', '.join(present)}")
    weights = folder / WEIGHTS
    paths = [path for name in chosen for path in present[name]] + ([weights] if weights.exists() else [])
    headers: dict[Path, Header | CacheError] = {path: _try(read_header, path) for path in paths}
    layouts = _hdf5_layouts([path for path, header in headers.items() if isinstance(header, Header)])

    verdicts: list[FileVerdict] = []
    for name in chosen:
        verdicts += _verify_teacher(folder, name, layouts, advance)
    _compare_files(folder, chosen, verdicts)
    if teachers is None and weights in headers:
        verdicts.append(_verify_weights(folder, headers[weights], verdicts, layouts))
    if teachers is None and (folder / SUMS).exists():
        verdicts.append(_verify_sums(folder))
    sound = not any(verdict.verdict in (DAMAGED, OTHER_FORMAT, UNFINISHED) for verdict in verdicts)
    return Verification(folder=folder, sound=sound, files=tuple(verdicts))


def _try(read: Callable[[Path], Any], path: Path) -> Any:
    """The result, or the error."""
    try:
        return read(path)
    except CacheError as error:
        return error


def _verdict(
    path: Path, verdict: str, cure: str, faults: Sequence[Fault | str], *, blocks: int = 0, done: float = 0.0
) -> FileVerdict:
    name, shard = shards.parse_name(path.name) or (path.name.removesuffix(".h5"), Shard())
    return FileVerdict(
        name=name,
        shard="" if shard.count == 1 else str(shard),
        path=path,
        verdict=verdict,
        file_bytes=path.stat().st_size if path.exists() else 0,
        blocks=blocks,
        done=done,
        faults=tuple(Fault(text=fault) if isinstance(fault, str) else fault for fault in faults),
        cure=cure,
    )


def _unreadable(path: Path, error: CacheError, cure: str) -> FileVerdict:
    """The verdict on a file that cannot be opened. The error of another format has its cure."""
    if isinstance(error, CacheFormatError):
        return _verdict(path, OTHER_FORMAT, "", [str(error)])
    return _verdict(path, DAMAGED, cure, [str(error)])


def _verify_teacher(
    folder: Path, name: str, layouts: Mapping[Path, Layout | None], advance: Callable[[int], None]
) -> Iterator[FileVerdict]:
    try:
        count = shards.shard_count(folder, name) or 1
    except CacheMismatchError as error:
        yield _verdict(shards.files_by_teacher(folder)[name][0], DAMAGED, _REMAKE_ONE, [str(error)])
        return
    missing = []
    for shard in shards.all_shards(count):
        final = shard_file(folder, name, shard)
        started = shards.partial_file(final)
        if final.exists():
            yield _verify_file(final, SOUND, layouts, advance)
        if started.exists():
            yield _verify_file(started, GROWING if final.exists() else UNFINISHED, layouts, advance)
        if not (final.exists() or started.exists()):
            missing.append(shard.number)
    if missing:
        which = shards.list_shards(missing, count)
        path = shard_file(folder, name, Shard(missing[0], count))
        verdict = _verdict(path, UNFINISHED, _RESUME, [f"teacher {name} lacks {which}"])
        yield replace(verdict, shard=which)


def _verify_file(
    path: Path, usual: str, layouts: Mapping[Path, Layout | None], advance: Callable[[int], None]
) -> FileVerdict:
    """The verdict on a teacher's file: `usual` if nothing is wrong. Neighboring blocks with a fault count as one."""
    file = _try(ShardFile, path)
    if isinstance(file, CacheError):
        return _unreadable(path, file, _REMAKE)
    structure = _structure_faults(path, file.header, layouts)
    faults = [*structure]
    for name in file.shape.data_sets():
        for view in range(file.shape.num_views):
            wrong = []
            for block in range(file.shape.blocks):
                wrong.append(_block_fault(file, name, view, block))
                advance(file.block(name, view, block).nbytes)
            for text, group in itertools.groupby(range(len(wrong)), key=wrong.__getitem__):
                blocks = [file.shape.samples_of(block) for block in group]
                first, last = blocks[0].start, blocks[-1].stop - 1
                if text:
                    text = f"{name}, view {view}, rows {first} to {last} {text}"
                    faults.append(Fault(text=text, dataset=name, view_index=view, first_row=first, last_row=last))
    verdict, cure = usual, _RESUME if usual == UNFINISHED else ""
    if structure:
        verdict, cure = DAMAGED, _REMAKE
    elif faults and not file.is_partial:
        verdict, cure = DAMAGED, _RECOMPUTE
    checked = sum(int(blocks.sum()) for blocks in file.written().values())
    return _verdict(path, verdict, cure, faults, blocks=checked, done=file.progress())


def _block_fault(file: ShardFile, name: str, view: int, block: int) -> str:
    """The same as `ShardFile.block_fault`, and impossible values; a block that is not written yet has no fault."""
    if fault := file.block_fault(name, view, block):
        return "" if fault == UNWRITTEN else fault
    data = file.block(name, view, block)
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        return "hold values that are not finite"
    if name in ("prediction", "classes") and data.max() >= file.shape.classes:
        return f"name a class beyond the {file.shape.classes} there are"
    return ""


def _structure_faults(path: Path, header: Header, layouts: Mapping[Path, Layout | None]) -> list[Fault]:
    """Data sets that HDF5, as other programs use it, finds elsewhere than the header."""
    found = layouts.get(path)
    if found is None:
        return [Fault(text=f"{path} cannot be read by HDF5, and so by no other program")]
    own = {name: [extent.offset, list(extent.shape), extent.dtype] for name, extent in header.contents.items()}
    return [
        Fault(text=f"HDF5 and the header of {path} disagree about {name}", dataset=name)
        for name in sorted(own.keys() | found.keys())
        if own.get(name) != found.get(name)
    ]


def _hdf5_layouts(paths: Sequence[Path]) -> dict[Path, Layout | None]:
    """The data sets that HDF5 finds in each file; None for one that it cannot read, or that ends the process."""
    layouts: dict[Path, Layout | None] = {}
    while left := [path for path in paths if path not in layouts]:
        command = [sys.executable, "-P", "-c", _HDF5_PROGRAM, *map(str, left)]
        try:
            output = subprocess.run(  # noqa: S603 - our own interpreter and program
                command, capture_output=True, text=True, timeout=_SECONDS, check=False
            ).stdout
        except subprocess.TimeoutExpired as expired:
            output = (expired.stdout or b"").decode()
        lines = output.split("\n")[:-1]  # what follows the last newline was cut short
        layouts |= zip(left, map(json.loads, lines), strict=False)
        if len(lines) < len(left):
            layouts[left[len(lines)]] = None
    return layouts


def _compare_files(folder: Path, names: Sequence[str], verdicts: list[FileVerdict]) -> None:
    """Change the verdict on sound files that do not fit together: shards of one teacher, or teachers of one cache."""
    reference: list[str] = []
    for name in names:
        if any(file.verdict == DAMAGED for file in verdicts if file.name == name) or not shards.is_whole(folder, name):
            continue
        try:
            with open_cache(folder, [*reference, name], weights=False) as cache:
                reference = reference or [name]
                for view in range(cache.num_views):
                    cache.params(view)
        except CacheError as error:
            for place, file in enumerate(verdicts):
                if file.name == name and file.verdict == SOUND:
                    fault = Fault(text=str(error))
                    verdicts[place] = replace(file, verdict=DAMAGED, faults=(fault,), cure=_REMAKE_ONE)


def _verify_weights(
    folder: Path, header: Header | CacheError, teachers: Sequence[FileVerdict], layouts: Mapping[Path, Layout | None]
) -> FileVerdict:
    path, verdict, faults = folder / WEIGHTS, SOUND, []
    if isinstance(header, CacheError):
        return _unreadable(path, header, _REMAKE_WEIGHTS)
    try:
        faults += _structure_faults(path, header, layouts)
        names = dict.fromkeys(file.name for file in teachers if shards.is_whole(folder, file.name))
        if names and not any(
            file.verdict in (DAMAGED, OTHER_FORMAT) for file in teachers
        ):  # else there is nothing to compare with
            weights = read_weights(folder, [TeacherCache.open(folder, name) for name in names])
            verdict = SOUND if weights else OUTDATED
            sums = weights.values.sum(axis=0) if weights else np.ones((1, 1))  # (V, N)
            for view, row in np.argwhere(~(np.abs(sums - 1) < 1e-3))[:1]:
                text = f"weights, view {view}, row {row} do not sum to 1"
                faults.append(Fault(text=text, dataset="weights", view_index=int(view)))
    except CacheError as error:
        faults.append(Fault(text=str(error)))
    verdict = DAMAGED if faults else verdict
    return _verdict(path, verdict, "" if verdict == SOUND else _REMAKE_WEIGHTS, faults, done=1.0)


def _verify_sums(folder: Path) -> FileVerdict:
    """Whether the files are those that were packed: each may be sound, and be of another version, or one may lack."""
    listed = _try(shards.read_sums, folder)
    if isinstance(listed, CacheError):
        return _unreadable(folder / SUMS, listed, _GET_AGAIN)
    found = shards.compute_sums(folder)
    faults = [
        f"{name} {'is not the file that was packed' if name in found else 'is not there'}"
        for name, digest in listed.items()
        if found.get(name) != digest
    ]
    faults += [f"{name} was not packed with the others" for name in found if name not in listed]
    return _verdict(folder / SUMS, DAMAGED if faults else SOUND, _GET_AGAIN if faults else "", faults, done=1.0)
