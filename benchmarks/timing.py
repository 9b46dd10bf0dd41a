"""Alternating repetitions and their ratios: what stays true while the machine's speed drifts."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

Work = Callable[[], object]
_of_processors = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One line of the table.

    Attributes:
        target: what the ratio should be, in words; empty where it is only reported.
        ratios: one per repetition, or a single figure that was computed.
        times: seconds of every repetition, numerator and denominator; none where no work was timed against another.
        facts: seconds, bytes and what else explains the ratio.
    """

    number: str
    what: str
    target: str
    ratios: tuple[float, ...]
    times: tuple[tuple[float, float], ...] = ()
    facts: dict[str, float | str] = field(default_factory=dict)

    @property
    def value(self) -> float:
        return median(self.ratios)

    @property
    def of_medians(self) -> float | None:
        """The ratio of the two median times."""
        return median(a for a, _ in self.times) / median(b for _, b in self.times) if self.times else None

    @property
    def fastest(self) -> float | None:
        """The ratio of the shortest times, which a busy machine disturbs least."""
        return min(a for a, _ in self.times) / min(b for _, b in self.times) if self.times else None


def seconds(work: Work) -> float:
    """How long some work takes, or how long processors are at it."""
    clock = time.process_time if _of_processors else time.perf_counter
    started = clock()
    work()
    return clock() - started


def count_processor_time() -> None:
    """From now on, for a machine that others keep busy; without workers, whose time is not this process'."""
    global _of_processors
    _of_processors = True


def alternate(first: Work, second: Work, *, repetitions: int) -> tuple[list[float], list[float]]:
    """Time two works in turn, A B A B ..., after one uncounted turn of each."""
    first()
    second()
    pairs = [(seconds(first), seconds(second)) for _ in range(repetitions)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def compare(number: str, what: str, target: str, first: Work, second: Work, *, repetitions: int) -> Measurement:
    """The ratio first / second, pair by pair."""
    a, b = alternate(first, second, repetitions=repetitions)
    return Measurement(
        number=number,
        what=what,
        target=target,
        ratios=tuple(x / y for x, y in zip(a, b, strict=True)),
        times=tuple(zip(a, b, strict=True)),
        facts={"numerator_s": median(a), "denominator_s": median(b)},
    )
