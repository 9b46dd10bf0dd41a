"""A teacher's answers in one file or in shards, each a contiguous range of samples: their rows, names and files.

    a.h5                         the answers of teacher a, whole
    a.00003-of-00016.h5          shard 3 of 16, counted from 0
    ... .partial                 the same before it is whole;  .lock, .creating beside it as for every file

With B blocks of samples, shard k of n has blocks k*B//n to (k+1)*B//n. Where `a.h5` lies, it is the teacher, and shards
beside it are what a merge left over.
"""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from demkd.cache.errors import CacheMismatchError

WEIGHTS_NAME = "weights"
_PARTIAL = ".partial"
_SHARD = re.compile(r"(?P<teacher>.+)\.(?P<number>\d{5,6})-of-(?P<count>\d{5,6})")


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Shard:
    """Shard `number` (from 0) of `count`."""

    count: int = 1
    number: int = 0

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}"

    def blocks(self, total: int) -> range:
        """Which of so many blocks it has."""
        return range(self.number * total // self.count, (self.number + 1) * total // self.count)

    def samples(self, total: int, block_rows: int) -> range:
        """Which of so many samples it has."""
        blocks = self.blocks(-(-total // block_rows))
        return range(blocks.start * block_rows, min(blocks.stop * block_rows, total))

    def rows_table(self, total: int, block_rows: int) -> dict[str, int] | None:
        """What a file's provenance says of its rows; nothing for a whole file."""
        if self == WHOLE:
            return None
        rows = self.samples(total, block_rows)
        samples = rows.stop - rows.start  # of a hostile file it may be beyond what `len` can say
        return {"first": rows.start, "samples": samples, "shard": self.number, "shards": self.count}


WHOLE = Shard()


def all_shards(count: int) -> list[Shard]:
    return [Shard(count=count, number=number) for number in range(count)]


def cache_file(folder: Path, teacher: str, shard: Shard = WHOLE) -> Path:
    """The file of a teacher's answers, or of a range of them."""
    part = "" if shard == WHOLE else f".{shard.number:05}-of-{shard.count:05}"
    return folder / f"{teacher}{part}.h5"


def partial_file(folder: Path, teacher: str, shard: Shard = WHOLE) -> Path:
    """The same file before it is whole."""
    whole = cache_file(folder, teacher, shard)
    return whole.with_name(whole.name + _PARTIAL)


def is_partial(path: Path) -> bool:
    return path.name.endswith(_PARTIAL)


def split_name(name: str) -> tuple[str, Shard]:
    """A teacher and a shard, of the name of a file."""
    stem = re.sub(r"\.h5(\.partial|\.creating)?$", "", name)
    found = _SHARD.fullmatch(stem)
    if found and int(found["number"]) < int(found["count"]) > 1:
        return found["teacher"], Shard(count=int(found["count"]), number=int(found["number"]))
    return stem, WHOLE


def files_by_teacher(folder: Path) -> Mapping[str, list[Path]]:
    """The files with answers, finished or not, by teacher; both in the order of their names."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.endswith((".h5", ".h5" + _PARTIAL)) and (teacher := split_name(path.name)[0]) != WEIGHTS_NAME:
            found.setdefault(teacher, []).append(path)
    return dict(sorted(found.items()))


def shard_count(folder: Path, teacher: str) -> int | None:
    """In how many files a teacher's answers are, or will be; None if there are none yet.

    Raises:
        CacheMismatchError: if there are shards of two counts.
    """
    if cache_file(folder, teacher).exists():
        return 1
    shards = [split_name(path.name)[1] for path in files_by_teacher(folder).get(teacher, ())]
    counts = sorted({shard.count for shard in shards} - {1})
    if len(counts) > 1:
        raise CacheMismatchError(
            f"teacher {teacher} in {folder} has shards of {' and of '.join(map(str, counts))}, which are no whole: "
            "remove those that are wrong"
        )
    return counts[0] if counts else 1 if shards else None


def left_over(folder: Path, teacher: str) -> list[Path]:
    """Shards beside the whole file."""
    if not cache_file(folder, teacher).exists():
        return []
    return [path for path in files_by_teacher(folder)[teacher] if split_name(path.name)[1] != WHOLE]


def numbers_in_words(numbers: Iterable[int]) -> str:
    """`shard 3`, `shards 0-2, 7`."""
    ordered = sorted(numbers)
    runs = [[n for _, n in run] for _, run in itertools.groupby(enumerate(ordered), lambda pair: pair[1] - pair[0])]
    words = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"{'shard' if len(ordered) == 1 else 'shards'} {words}"
