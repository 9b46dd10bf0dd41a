"""How processes share stage one without a word: each takes the next range of samples that nobody finished or holds.

The lock of a killed process is free, so whoever comes by takes its range over. Under torchrun rank 0 stays until all is
whole.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from demkd.cache import CacheBusyError
from demkd.cache.shards import Shard, all_shards, cache_file
from demkd.cache.teacher_file import open_if_there
from demkd.pipeline.preparation import PreparedTeacher

_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A range of samples, and the teachers of whose answers it is a shard."""

    shard: Shard
    teachers: tuple[PreparedTeacher, ...]

    def has(self, teacher: str) -> bool:
        return any(one.name == teacher for one in self.teachers)

    def is_whole(self, folder: Path) -> bool:
        """Whether all its files have their final names and all that is wanted; their blocks are not looked at."""
        files = (open_if_there(cache_file(folder, one.name, self.shard)) for one in self.teachers)
        wanted = (one.shape.part(self.shard) for one in self.teachers)
        return all(file is not None and file.shape.covers(shape) for file, shape in zip(files, wanted, strict=True))


def units_of(teachers: Iterable[PreparedTeacher]) -> list[Unit]:
    """What there is to do, by the number of shards; every teacher is in as many units as it has shards."""
    by_shard: dict[Shard, list[PreparedTeacher]] = {}
    for one in teachers:
        for shard in all_shards(one.shards):
            by_shard.setdefault(shard, []).append(one)
    return [Unit(shard=shard, teachers=tuple(some)) for shard, some in by_shard.items()]


def work_through(
    folder: Path,
    units: list[Unit],
    launched: tuple[int, int] | None,
    fill: Callable[[Unit], None],
    wait: Callable[[list[Unit]], None],
) -> None:
    """Fill every unit that is free until none is left, or others hold what is left.

    What is whole at the start is checked as well, which under torchrun the ranks share out.

    Args:
        launched: rank and number of processes under torchrun.
        fill: raises `CacheBusyError`, before it does anything, if another process holds a file of the unit.
        wait: told once, before rank 0 waits for what others hold.

    Raises:
        CacheBusyError: if another process writes the one file of a teacher.
    """
    whole_before = {unit.shard for unit in units if unit.is_whole(folder)}
    left = [unit for unit in units if unit.shard not in whole_before or _is_own(unit, launched)]
    waiting = False
    while left:
        busy = []
        for unit in left:
            if unit.shard not in whole_before and unit.is_whole(folder):
                continue  # whoever filled it has checked it
            if not _fills(unit, fill, shared=unit.shard.count > 1 or launched is not None):
                busy.append(unit)
        if len(busy) == len(left):
            if launched is None or launched[0] > 0:
                return
            if not waiting:
                wait(busy)
            waiting = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        left = busy


def _fills(unit: Unit, fill: Callable[[Unit], None], *, shared: bool) -> bool:
    """Fill a unit; False if another process holds it, which is no error where units are shared."""
    try:
        fill(unit)
    except CacheBusyError:
        if not shared:
            raise
        return False
    return True


def _is_own(unit: Unit, launched: tuple[int, int] | None) -> bool:
    """Whether this process is the one that checks a unit that was whole at the start."""
    rank, size = launched or (0, 1)
    return unit.shard.number % size == rank
