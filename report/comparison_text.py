"""A comparison's figures as text, the same in the terminal and on the page: in per cent and percentage points."""

from demkd.report.pairs import Difference

HEADINGS = ("pairs", "95 % interval", "corrected", "p", "detectable", "seeds for 1 point", "difference of best")
NO_PAIRS = ("", "0", *[""] * (len(HEADINGS) - 1))  # of a group that has no seed in common with the baseline


def percent(share: float, std: float | None) -> str:
    """`50.24 ± 0.76`, or `50.24` for a single run, in per cent; a heading, or who shows it, says so."""
    return f"{100 * share:.2f}" if std is None else f"{100 * share:.2f} ± {100 * std:.2f}"


def interval_text(low: float | None, high: float | None) -> str:
    """`-0.08 to +2.56`; empty without."""
    return "" if low is None or high is None else f"{100 * low:+.2f} to {100 * high:+.2f}"


def difference_texts(difference: Difference, best: Difference | None) -> tuple[str, ...]:
    """The difference, then what `HEADINGS` name: `+1.24`, `3`, `-0.08 to +2.56`, `-1.20 to +3.70`, `0.089`, ...

    A single pair has no more than the first two, and the last.
    """
    return (
        f"{100 * difference.mean:+.2f}",
        str(difference.seeds),
        interval_text(difference.low, difference.high),
        interval_text(difference.holm_low, difference.holm_high),
        "" if difference.holm_p is None else f"{difference.holm_p:.2g}",
        "" if difference.detectable is None else f"{100 * difference.detectable:.2f}",
        _count(difference),
        "" if best is None else f"{100 * best.mean:+.2f}",
    )


def _count(difference: Difference) -> str:
    if difference.detectable is None:
        return ""
    return "over 8,192" if difference.seeds_for_a_point is None else str(difference.seeds_for_a_point)
