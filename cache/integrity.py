"""Checks every byte of a cache: a verdict for each file, and every place that is wrong.

What is read: the user block and its digest, HDF5's own view of the file, the provenance, the labels, every block of
every data set against its ledger, weights.h5 against the teachers, and all files against SHA256SUMS where the folder
was packed. Whether the teachers give the same logits again is checked by `pipeline/verify.py`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from demkd.cache.errors import CacheError, CacheMismatchError, CacheMissingError
from demkd.cache.file import read_header
from demkd.cache.hdf5_view import View, ask_hdf5
from demkd.cache.layout import Header
from demkd.cache.shards import (
    WEIGHTS_NAME,
    Shard,
    all_shards,
    cache_file,
    files_by_teacher,
    left_over,
    numbers_in_words,
    partial_file,
    shard_count,
    split_name,
)
from demkd.cache.sums import SUMS_NAME, read_sums, sums_of
from demkd.cache.teacher import TeacherCache, is_whole
from demkd.cache.teacher_file import TeacherFile
from demkd.cache.weights import CachedWeights

SOUND, DAMAGED, UNFINISHED, GROWING, OUTDATED = "sound", "damaged", "unfinished", "growing", "outdated"
Seen = Mapping[Path, View | None]

_GO_ON = "run the same `cache_teachers` again to go on"
_REDO = "run the same `cache_teachers` again, or `repair`, which redo these blocks and keep the others"
_REMAKE = "remove it, and run the same `cache_teachers` again"
_REMAKE_ONE = "remove the one that is wrong, and run `cache_teachers` for it again"
_MERGED = "`merge` again removes it"
_GET_AGAIN = "get these files again from where the folder came from, or remove SHA256SUMS if you trust them as they are"
_REMAKE_WEIGHTS = "run the same `cache_teachers` again, which computes the weights anew"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Something that is wrong with a file.

    Attributes:
        text: what is wrong, and where.
        dataset, slot, first_row, last_row: the place, if it is in the blocks of a data set.
    """

    text: str
    dataset: str | None = None
    slot: int | None = None
    first_row: int | None = None
    last_row: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FileVerdict:
    """The state of a file.

    Attributes:
        name: the teacher's, "weights", or "SHA256SUMS".
        shard: which part of the teacher's answers, in words; empty for a whole file.
        verdict: "sound", "damaged", "unfinished" (no finished file yet), "growing" (beside a finished one), or
            "outdated" (weights of other teachers or fewer slots, shards beside the file that they were merged into;
            they are not used). A block that a kill tore is no damage while the file is being filled: it is redone.
        blocks: how many were compared with their checksums.
        done: the share of blocks that are written.
        cure: what to do, empty for a sound file.
    """

    name: str
    path: Path
    verdict: str
    file_bytes: int
    blocks: int
    done: float
    faults: tuple[Fault, ...]
    cure: str
    shard: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """The verdict on a cache; `sound` if nothing of it is damaged or unfinished."""

    folder: Path
    sound: bool
    files: tuple[FileVerdict, ...]


def verify_cache(
    folder: Path, teachers: Sequence[str] | None = None, *, advance: Callable[[int], None] = lambda _: None
) -> Verification:
    """Check a cache; faults are in the verdict, and not raised.

    Args:
        teachers: which ones; all if left out.
        advance: called after every block with its number of bytes.

    Raises:
        CacheMissingError: if there is no cache, or no such teacher.
    """
    present = files_by_teacher(folder)
    if not present:
        raise CacheMissingError(f"there is no cache in {folder}: make one with `cache_teachers`")
    chosen = list(present) if teachers is None else list(teachers)
    for name in chosen:
        if name not in present:
            raise CacheMissingError(f"there is no teacher {name!r} in {folder}; it has {', '.join(present)}")
    weights = cache_file(folder, WEIGHTS_NAME)
    paths = [path for name in chosen for path in present[name]] + ([weights] if weights.exists() else [])
    seen = ask_hdf5([path for path in paths if _has_sound_header(path)])
    verdicts = [verdict for name in chosen for verdict in _verify_teacher(folder, name, seen, advance)]
    verdicts = _compare(folder, chosen, verdicts)
    if teachers is None and weights in paths:
        verdicts.append(_verify_weights(folder, verdicts, seen))
    if teachers is None and (folder / SUMS_NAME).exists():
        verdicts.append(_verify_sums(folder))
    sound = not any(verdict.verdict in (DAMAGED, UNFINISHED) for verdict in verdicts)
    return Verification(folder=folder, sound=sound, files=tuple(verdicts))


def bytes_to_verify(folder: Path) -> int:
    """The size of all files, for a progress bar."""
    return sum(file.stat().st_size for pattern in ("*.h5", "*.h5.partial") for file in folder.glob(pattern))


def _has_sound_header(path: Path) -> bool:
    """Whether the digest of what HDF5 will parse is right; HDF5 may hang on another file."""
    try:
        read_header(path)
    except CacheError:
        return False
    return True


def _verify_teacher(folder: Path, name: str, seen: Seen, advance: Callable[[int], None]) -> Iterator[FileVerdict]:
    try:
        shards = all_shards(shard_count(folder, name) or 1)
    except CacheMismatchError as error:
        yield _verdict(files_by_teacher(folder)[name][0], DAMAGED, _REMAKE_ONE, [Fault(text=str(error))])
        return
    missing = []
    for shard in shards:
        final, started = cache_file(folder, name, shard), partial_file(folder, name, shard)
        if final.exists():
            yield _verify_file(final, SOUND, seen, advance)
        if started.exists():
            yield _verify_file(started, GROWING if final.exists() else UNFINISHED, seen, advance)
        if not (final.exists() or started.exists()):
            missing.append(shard)
    if missing:
        yield _missing(folder, name, missing)
    for path in left_over(folder, name):
        yield _verdict(path, OUTDATED, _MERGED, [])


def _missing(folder: Path, name: str, shards: Sequence[Shard]) -> FileVerdict:
    """That there are no files of some shards."""
    words = f"{numbers_in_words(shard.number for shard in shards)} of {shards[0].count}"
    fault = Fault(text=f"{words} of teacher {name} {'is' if len(shards) == 1 else 'are'} missing")
    return replace(_verdict(cache_file(folder, name, shards[0]), UNFINISHED, _GO_ON, [fault]), shard=words)


def _verify_file(path: Path, usual: str, seen: Seen, advance: Callable[[int], None]) -> FileVerdict:
    """The verdict on a teacher's file: `usual` if nothing is wrong."""
    try:
        file = TeacherFile(path)
    except CacheError as error:
        return _verdict(path, DAMAGED, _REMAKE, [Fault(text=str(error))])
    structure = _structure_faults(path, file.header, seen)
    faults = [*structure, *_block_faults(file, advance)]
    verdict, cure = usual, _GO_ON if usual == UNFINISHED else ""
    if structure:
        verdict, cure = DAMAGED, _REMAKE
    elif faults and not file.is_partial:
        verdict, cure = DAMAGED, _REDO
    blocks = sum(file.is_written(*place) for place in file.blocks())
    return _verdict(path, verdict, cure, faults, blocks=blocks, done=file.progress())


def _verdict(
    path: Path, verdict: str, cure: str, faults: Sequence[Fault], *, blocks: int = 0, done: float = 0.0
) -> FileVerdict:
    name, shard = split_name(path.name)
    return FileVerdict(
        name=name,
        shard="" if shard.count == 1 else str(shard),
        path=path,
        verdict=verdict,
        file_bytes=path.stat().st_size if path.exists() else 0,
        blocks=blocks,
        done=done,
        faults=tuple(faults),
        cure=cure,
    )


def _structure_faults(path: Path, header: Header, seen: Seen) -> list[Fault]:
    """Data sets that HDF5, as other programs use it, finds elsewhere than the user block says."""
    found = seen.get(path)
    if found is None:
        return [Fault(text=f"{path} cannot be read by HDF5, and so by no other program")]
    own = {name: tuple(extent) for name, extent in header.contents.items()}
    return [
        Fault(text=f"{path} shows HDF5 something else as {name} than its user block says", dataset=name)
        for name in sorted(own.keys() | found.keys())
        if own.get(name) != found.get(name)
    ]


def _block_faults(file: TeacherFile, advance: Callable[[int], None]) -> Iterator[Fault]:
    """Blocks that are lost, changed, or hold impossible values; neighbours with the same fault as one."""
    for (name, slot, wrong), group in itertools.groupby(_checked_blocks(file, advance), key=lambda block: block[:3]):
        samples = [file.shape.samples_of(block) for *_, block in group]
        first, last = samples[0].start, samples[-1].stop - 1
        if wrong:
            text = f"{name}, slot {slot}, rows {first} to {last} {wrong}"
            yield Fault(text=text, dataset=name, slot=slot, first_row=first, last_row=last)


def _checked_blocks(file: TeacherFile, advance: Callable[[int], None]) -> Iterator[tuple[str, int, str, int]]:
    """Data set, slot, what is wrong (or nothing) and block, in the order of `blocks`."""
    for name, slot, block in file.blocks():
        advance(file.block(name, slot, block).nbytes)
        yield name, slot, _what_is_wrong(file, name, slot, block), block


def _what_is_wrong(file: TeacherFile, name: str, slot: int, block: int) -> str:
    if not file.is_written(name, slot, block):
        return "" if file.is_partial else "were lost"
    if not file.is_sound(name, slot, block):
        return "do not match their checksum"
    data = file.block(name, slot, block)
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        return "hold values that are not finite"
    if name in ("prediction", "classes") and data.max() >= file.shape.classes:
        return f"name a class beyond the {file.shape.classes} there are"
    return ""


def _compare(folder: Path, names: Sequence[str], verdicts: Sequence[FileVerdict]) -> list[FileVerdict]:
    """Add to the verdicts what is wrong between sound files: the shards of a teacher must belong together, and
    teachers must have seen the same views of the same samples."""
    faults, readable = {}, {}
    for name in names:
        try:
            if sound := _sound_teacher(folder, name, verdicts):
                readable[name] = sound
        except CacheError as error:
            faults[name] = str(error)
    first, *others = readable or [""]
    faults |= {name: text for name in others if (text := _misalignment(readable[first], readable[name]))}
    return [
        replace(verdict, verdict=DAMAGED, faults=(Fault(text=faults[verdict.name]),), cure=_REMAKE_ONE)
        if verdict.verdict == SOUND and verdict.name in faults
        else verdict
        for verdict in verdicts
    ]


def _sound_teacher(folder: Path, name: str, verdicts: Sequence[FileVerdict]) -> TeacherCache | None:
    """A teacher all of whose files are sound, put together.

    Raises:
        CacheError: if they do not belong together.
    """
    damaged = any(verdict.verdict == DAMAGED for verdict in verdicts if verdict.name == name)
    return None if damaged or not is_whole(folder, name) else TeacherCache.open(folder, name)


def _misalignment(reference: TeacherCache, other: TeacherCache) -> str:
    try:
        reference.provenance.require(
            other.provenance,
            cached=f"{reference.path} does not fit {other.path}: it",
            cure="Cache both with the same data and views",
            tables=("data", "views"),
        )
    except CacheError as error:
        return str(error)
    slots = min(reference.shape.num_views, other.shape.num_views)
    different = [
        slot for slot in range(slots) if not np.array_equal(reference.read("view", slot), other.read("view", slot))
    ]
    return f"{other.path} and {reference.path} saw different views in slot {different[0]}" if different else ""


def _verify_weights(folder: Path, teachers: Sequence[FileVerdict], seen: Seen) -> FileVerdict:
    path = cache_file(folder, WEIGHTS_NAME)
    faults, verdict = [], SOUND
    try:
        faults += _structure_faults(path, read_header(path), seen)
        names = dict.fromkeys(file.name for file in teachers if is_whole(folder, file.name))
        if names and not any(file.verdict == DAMAGED for file in teachers):  # else there is nothing to compare with
            weights = CachedWeights.of(folder, [TeacherCache.open(folder, name) for name in names])
            verdict = SOUND if weights else OUTDATED
            faults += [] if weights is None else _weight_faults(weights)
    except CacheError as error:
        faults.append(Fault(text=str(error)))
    verdict = DAMAGED if faults else verdict
    return _verdict(path, verdict, "" if verdict == SOUND else _REMAKE_WEIGHTS, faults, done=1.0)


def _verify_sums(folder: Path) -> FileVerdict:
    """Whether the files are those that were packed: sound each, they may be of two versions, or one may lack."""
    path = folder / SUMS_NAME
    try:
        listed = read_sums(folder) or {}
    except CacheError as error:
        return _verdict(path, DAMAGED, _GET_AGAIN, [Fault(text=str(error))])
    found = sums_of(folder)
    faults = [
        Fault(text=f"{name} {'is not there' if name not in found else 'is not the file that was packed'}")
        for name, digest in listed.items()
        if found.get(name) != digest
    ]
    faults += [Fault(text=f"{name} was not packed with the others") for name in found if name not in listed]
    return _verdict(path, DAMAGED if faults else SOUND, _GET_AGAIN if faults else "", faults, done=1.0)


def _weight_faults(weights: CachedWeights) -> list[Fault]:
    sums = weights.values.sum(axis=0)  # (V, N)
    wrong = np.argwhere(~(np.abs(sums - 1) < 1e-3))
    return [
        Fault(text=f"weights, slot {slot}, row {row} do not sum to 1", dataset="weights", slot=int(slot))
        for slot, row in wrong[:1]
    ]
