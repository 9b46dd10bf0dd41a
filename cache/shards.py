"""Names of a cache's files: the shards of each teacher, weights.h5, and SHA256SUMS of a packed cache.

    a.00001-of-00004.h5     shard 1 of 4 of teacher a, counted from 1; a teacher in one file is shard 1 of 1
    ... .partial            the same before it is finished;  .creating, .lock beside it

With B blocks of samples, shard k of n has blocks (k-1)*B//n to k*B//n.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demkd.cache.errors import CacheDamagedError, CacheMismatchError, CacheMissingError, CacheValueError
from demkd.errors import open_regular, read_regular

WEIGHTS = "weights.h5"
FILES = "files.json"
SUMS = "SHA256SUMS"
PARTIAL = ".partial"
_NAME = re.compile(r"(?P<teacher>.+)\.(?P<number>\d{5,6})-of-(?P<count>\d{5,6})\.h5(\.partial)?")
_SUMS_LINE = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](?P<name>[^/\\]+\.h5)")
LARGEST_SUMS = 1 << 24  # bytes
_MOST_NAMED = 8


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """Shard `number` of `count`, counted from 1."""

    number: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}"

    def samples(self, total: int, block_rows: int) -> range:
        """Its part of all samples; in a hostile file `total` may be too large for `len`."""
        blocks = -(-total // block_rows)
        first, last = (self.number - 1) * blocks // self.count, self.number * blocks // self.count
        return range(first * block_rows, min(last * block_rows, total))


def all_shards(count: int) -> list[Shard]:
    return [Shard(number, count) for number in range(1, count + 1)]


def shard_file(folder: Path, teacher: str, shard: Shard) -> Path:
    return folder / f"{teacher}.{shard.number:05}-of-{shard.count:05}.h5"


def partial_file(path: Path) -> Path:
    """The path before the file is finished."""
    return path.with_name(path.name + PARTIAL)


def no_cache(folder: Path) -> CacheMissingError:
    """The error of a folder without a cache; it names one in a folder below."""
    if (folder / "recipe.toml").exists():
        return CacheMissingError(f"{folder} is the folder of a run: give the folder of a cache")
    near = next((f" (did you mean {file.parent}?)" for file in sorted(folder.glob("*/*.h5"))), "")
    return CacheMissingError(f"there is no cache in {folder}{near}: make one with `cache_teachers`")


def teacher_names(teachers: Sequence[str]) -> tuple[str, ...]:
    """Some teachers, by name; a text is one name."""
    names = (teachers,) if isinstance(teachers, str) else tuple(teachers)
    for name in names:
        if names.count(name) > 1:
            raise CacheValueError(f"`teachers` has {name} twice: name each once")
    return names


def parse_name(name: str) -> tuple[str, Shard] | None:
    """Teacher and shard of a file, finished or partial; None for any other name."""
    found = _NAME.fullmatch(name)
    if not found or not 1 <= int(found["number"]) <= int(found["count"]):
        return None
    return found["teacher"], Shard(int(found["number"]), int(found["count"]))


def files_by_teacher(folder: Path) -> Mapping[str, list[Path]]:
    """The files of each teacher, finished or partial, sorted by name."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.name.endswith((".h5", ".h5" + PARTIAL)) or path.name in (WEIGHTS, WEIGHTS + PARTIAL):
            continue
        parsed = parse_name(path.name)
        if parsed is None:
            raise CacheDamagedError(
                f"{path} is no file of a cache of format 4: if an older version of demkd made it, choose another "
                "folder (`out`) or remove it, and run `cache_teachers` again"
            )
        files.setdefault(parsed[0], []).append(path)
    return dict(sorted(files.items()))


def shard_count(folder: Path, teacher: str) -> int | None:
    """A teacher's number of files, finished or not; None if there are none yet."""
    parsed = (parse_name(path.name) for path in files_by_teacher(folder).get(teacher, ()))
    counts = sorted({found[1].count for found in parsed if found})
    if len(counts) > 1:
        raise CacheMismatchError(
            f"teacher {teacher} in {folder} has shards of {' and of '.join(map(str, counts))}, which do not fit "
            "together: remove the wrong ones"
        )
    return counts[0] if counts else None


def is_whole(folder: Path, teacher: str) -> bool:
    """Whether every shard of a teacher is finished."""
    count = shard_count(folder, teacher)
    return count is not None and all(shard_file(folder, teacher, shard).exists() for shard in all_shards(count))


def list_shards(numbers: Sequence[int], count: int) -> str:
    """`shard 3 of 8`, `shards 3, 7 of 8`."""
    more = ", ..." if len(numbers) > _MOST_NAMED else ""
    return f"shard{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers[:_MOST_NAMED]))}{more} of {count}"


def compute_sums(folder: Path, *, advance: Callable[[int], None] = lambda _: None) -> dict[str, str]:
    """The SHA-256 of every finished file of a cache, by name; "" for one that cannot be read."""
    files = [path for paths in files_by_teacher(folder).values() for path in paths if path.suffix == ".h5"]
    files += [folder / WEIGHTS] if (folder / WEIGHTS).exists() else []
    sums = {path.name: "" for path in files}
    for path in files:
        with contextlib.suppress(OSError), open_regular(path) as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            advance(os.fstat(file.fileno()).st_size)
    return sums


def sums_text(sums: Mapping[str, str]) -> str:
    """The list in the form of `sha256sum`, which `sha256sum -c` checks."""
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items())


def read_sums(folder: Path) -> dict[str, str]:
    """The digests of a packed folder, by name."""
    path = folder / SUMS
    small = path.is_file() and path.stat().st_size <= LARGEST_SUMS
    sums = parse_sums(read_regular(path)) if small else {}
    if not sums:
        raise CacheDamagedError(f"{path} is no list of digests: get the folder again, or remove this file")
    return sums


def parse_sums(text: bytes) -> dict[str, str]:
    """The digests of a list by file name, without folders; none if one line is something else."""
    lines = [_SUMS_LINE.fullmatch(line) for line in text.decode(errors="replace").splitlines()]
    found = [line for line in lines if line and line["name"].isprintable()]
    return {line["name"]: line["digest"] for line in found} if len(found) == len(lines) else {}


def forget_sums(folder: Path) -> None:
    """Remove the list before a file changes."""
    (folder / SUMS).unlink(missing_ok=True)
