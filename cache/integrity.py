"""Is every byte of a cache what it was? A verdict a file, and every place that is wrong.

What is read: the user block and its digest, HDF5's own view of the file, the provenance, the labels, every block of
every data set against its ledger, and weights.h5 against the teachers. What no checksum can say, whether the teachers
would say the same again, is asked by `pipeline/verify.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demkd.cache.errors import CacheError, CacheMissingError
from demkd.cache.file import read_header
from demkd.cache.hdf5_view import View, ask_hdf5
from demkd.cache.layout import Header
from demkd.cache.teacher_file import TeacherCache, cache_file, partial_file
from demkd.cache.weights import WEIGHTS_NAME, Weights

SOUND, DAMAGED, UNFINISHED, GROWING, OUTDATED = "sound", "damaged", "unfinished", "growing", "outdated"
Seen = Mapping[Path, View | None]

_WEIGHTS_CURE = "run the same `cache_teachers` again, which computes the weights anew"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Something that is wrong with a file.

    Attributes:
        text: the whole of it, in words.
        dataset, slot, first_row, last_row: where, if it is in the answers.
    """

    text: str
    dataset: str | None = None
    slot: int | None = None
    first_row: int | None = None
    last_row: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FileVerdict:
    """What is to be said of a file.

    Attributes:
        name: the teacher's, or "weights".
        verdict: "sound", "damaged", "unfinished" (no finished file yet), "growing" (beside a finished one), or
            "outdated" (weights of other teachers or fewer slots, which nobody uses). A block that a kill tore is no
            damage while the file is being filled: it is redone.
        blocks: how many were compared with their checksums.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """The verdict on a cache; `sound` if nothing of it is damaged or unfinished."""

    folder: Path
    sound: bool
    files: tuple[FileVerdict, ...]


def verify_cache(
    folder: Path, teachers: Sequence[str] | None = None, *, advance: Callable[[int], None] = lambda _: None
) -> Verification:
    """Check a cache; what is wrong is in the verdict and not raised.

    Args:
        teachers: which ones; all if left out.
        advance: called with the number of bytes that were checked, from time to time.

    Raises:
        CacheMissingError: if there is no cache, or no such teacher.
    """
    present = teachers_present(folder)
    if not present:
        raise CacheMissingError(f"there is no cache in {folder}: make one with `cache_teachers`")
    chosen = present if teachers is None else list(teachers)
    for name in chosen:
        if name not in present:
            raise CacheMissingError(f"there is no teacher {name!r} in {folder}; it has {', '.join(present)}")
    paths = [path for name in chosen for path in (cache_file(folder, name), partial_file(folder, name))]
    paths = [path for path in (*paths, cache_file(folder, WEIGHTS_NAME)) if path.exists()]
    seen = ask_hdf5([path for path in paths if _has_sound_header(path)])
    verdicts = [verdict for name in chosen for verdict in _verify_teacher(folder, name, seen, advance)]
    verdicts = _compare(chosen, verdicts)
    if teachers is None and cache_file(folder, WEIGHTS_NAME) in paths:
        verdicts.append(_verify_weights(folder, verdicts, seen))
    sound = not any(verdict.verdict in (DAMAGED, UNFINISHED) for verdict in verdicts)
    return Verification(folder=folder, sound=sound, files=tuple(verdicts))


def teachers_present(folder: Path) -> list[str]:
    """The teachers with a file, finished or not, by name."""
    files = [*folder.glob("*.h5"), *folder.glob("*.h5.partial")]
    return sorted({file.name.removesuffix(".partial").removesuffix(".h5") for file in files} - {WEIGHTS_NAME})


def bytes_to_verify(folder: Path) -> int:
    """How much there is to read, for a progress bar."""
    return sum(file.stat().st_size for pattern in ("*.h5", "*.h5.partial") for file in folder.glob(pattern))


def _has_sound_header(path: Path) -> bool:
    """Whether HDF5 may be asked about a file: never before our digest has vouched for what HDF5 will parse."""
    try:
        read_header(path)
    except CacheError:
        return False
    return True


def _verify_teacher(folder: Path, name: str, seen: Seen, advance: Callable[[int], None]) -> Iterator[FileVerdict]:
    final, started = cache_file(folder, name), partial_file(folder, name)
    if final.exists():
        yield _verify_file(final, name, SOUND, seen, advance)
    if started.exists():
        yield _verify_file(started, name, GROWING if final.exists() else UNFINISHED, seen, advance)


def _verify_file(path: Path, name: str, usual: str, seen: Seen, advance: Callable[[int], None]) -> FileVerdict:
    """The verdict on a teacher's file, which is the usual one if nothing is wrong."""
    size = path.stat().st_size
    try:
        file = TeacherCache(path)
    except CacheError as error:
        return FileVerdict(
            name=name,
            path=path,
            verdict=DAMAGED,
            file_bytes=size,
            blocks=0,
            done=0.0,
            faults=(Fault(text=str(error)),),
            cure="remove it, and run the same `cache_teachers` again",
        )
    structure = _structure_faults(path, file.header, seen)
    faults = [*structure, *_merge(_block_faults(file, advance))]
    cures = {SOUND: "", UNFINISHED: "run the same `cache_teachers` again to go on", GROWING: ""}
    repair = "run the same `cache_teachers` again, or `repair`, which redo these blocks and keep the others"
    beyond = "remove it, and run the same `cache_teachers` again"
    return FileVerdict(
        name=name,
        path=path,
        verdict=DAMAGED if structure or (faults and not file.is_partial) else usual,
        file_bytes=size,
        blocks=sum(file.is_written(*place) for place in file.blocks()),
        done=file.progress(),
        faults=tuple(faults),
        cure=beyond if structure else repair if faults and not file.is_partial else cures[usual],
    )


def _structure_faults(path: Path, header: Header, seen: Seen) -> list[Fault]:
    """Whether other programs, which ask HDF5 and not our user block, see the same data in the same places."""
    found = seen.get(path)
    if found is None:
        return [Fault(text=f"{path} cannot be read by HDF5, and so by no other program")]
    own = {name: tuple(extent) for name, extent in header.contents.items()}
    return [
        Fault(text=f"{path} shows HDF5 something else as {name} than its user block says", dataset=name)
        for name in sorted(own.keys() | found.keys())
        if own.get(name) != found.get(name)
    ]


def _block_faults(file: TeacherCache, advance: Callable[[int], None]) -> Iterator[Fault]:
    """Every block that is lost, changed, or holds what no teacher says."""
    for name, slot, block in file.blocks():
        advance(file.block(name, slot, block).nbytes)
        what = _what_is_wrong(file, name, slot, block)
        if what:
            rows = file.shape.rows(block)
            yield Fault(text=what, dataset=name, slot=slot, first_row=rows.start, last_row=rows.stop - 1)


def _what_is_wrong(file: TeacherCache, name: str, slot: int, block: int) -> str:
    if not file.is_written(name, slot, block):
        return "" if file.is_partial else "were lost"
    if not file.is_sound(name, slot, block):
        return "do not match their checksum"
    data = file.block(name, slot, block)
    if data.dtype.kind == "f" and not np.isfinite(data).all():
        return "hold values that are not finite"
    if name == "prediction" and data.max() >= file.shape.classes:
        return f"name a class beyond the {file.shape.classes} there are"
    return ""


def _merge(faults: Iterator[Fault]) -> Iterator[Fault]:
    """Neighbouring blocks of a slot with one fault are one fault, put into words."""
    run: Fault | None = None
    for fault in faults:
        same = run and (run.dataset, run.slot, run.text) == (fault.dataset, fault.slot, fault.text)
        if run and same and run.last_row is not None and fault.first_row == run.last_row + 1:
            run = _place(run.text, run, fault.last_row)
            continue
        if run:
            yield _in_words(run)
        run = fault
    if run:
        yield _in_words(run)


def _place(text: str, fault: Fault, last_row: int | None) -> Fault:
    return Fault(text=text, dataset=fault.dataset, slot=fault.slot, first_row=fault.first_row, last_row=last_row)


def _in_words(fault: Fault) -> Fault:
    where = f"{fault.dataset}, slot {fault.slot}, rows {fault.first_row} to {fault.last_row}"
    return _place(f"{where} {fault.text}", fault, fault.last_row)


def _compare(names: Sequence[str], verdicts: Sequence[FileVerdict]) -> list[FileVerdict]:
    """Add to the verdicts what is wrong between teachers: they must have seen the same views of the same samples."""
    readable = {verdict.name: TeacherCache(verdict.path) for verdict in verdicts if verdict.verdict == SOUND}
    reference = next((readable[name] for name in names if name in readable), None)
    return [
        _with_fault(verdict, _misalignment(reference, readable[verdict.name]))
        if reference and verdict.verdict == SOUND and readable[verdict.name] is not reference
        else verdict
        for verdict in verdicts
    ]


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


def _with_fault(verdict: FileVerdict, text: str) -> FileVerdict:
    if not text:
        return verdict
    return FileVerdict(
        name=verdict.name,
        path=verdict.path,
        verdict=DAMAGED,
        file_bytes=verdict.file_bytes,
        blocks=verdict.blocks,
        done=verdict.done,
        faults=(*verdict.faults, Fault(text=text)),
        cure="remove the one that is wrong, and run `cache_teachers` for it again",
    )


def _verify_weights(folder: Path, teachers: Sequence[FileVerdict], seen: Seen) -> FileVerdict:
    path = cache_file(folder, WEIGHTS_NAME)
    faults, verdict = [], SOUND
    try:
        faults += _structure_faults(path, read_header(path), seen)
        finished = [file for file in teachers if file.verdict == SOUND]
        if finished and not any(file.verdict == DAMAGED for file in teachers):  # else there is nothing to compare with
            weights = Weights.of(folder, [TeacherCache(file.path) for file in finished])
            verdict = SOUND if weights else OUTDATED
            faults += [] if weights is None else _weight_faults(weights)
    except CacheError as error:
        faults.append(Fault(text=str(error)))
    verdict = DAMAGED if faults else verdict
    return FileVerdict(
        name=WEIGHTS_NAME,
        path=path,
        verdict=verdict,
        file_bytes=path.stat().st_size,
        blocks=0,
        done=1.0,
        faults=tuple(faults),
        cure="" if verdict == SOUND else _WEIGHTS_CURE,
    )


def _weight_faults(weights: Weights) -> list[Fault]:
    sums = weights.values.sum(axis=0)  # (V, N)
    wrong = np.argwhere(~(np.abs(sums - 1) < 1e-3))
    return [
        Fault(text=f"weights, slot {slot}, row {row} do not sum to 1", dataset="weights", slot=int(slot))
        for slot, row in wrong[:1]
    ]
