"""A comparison's figures as text, the same in the terminal and on the page: in per cent and percentage points."""

from demkd.report.comparison import Difference

NO_PAIRS = ("", "0", "", "")  # of a group that has no seed in common with the baseline


def percent(share: float, std: float | None) -> str:
    """`50.24 ± 0.76`, or `50.24` for a single run, in per cent; a heading, or who shows it, says so."""
    return f"{100 * share:.2f}" if std is None else f"{100 * share:.2f} ± {100 * std:.2f}"


def difference_texts(difference: Difference) -> tuple[str, str, str, str]:
    """Mean, pairs, interval and detectable: `+1.24`, `3`, `-0.08 to +2.56`, `1.32`; a single pair has only two."""
    mean, pairs = f"{100 * difference.mean:+.2f}", str(difference.seeds)
    if difference.low is None or difference.high is None or difference.detectable is None:
        return mean, pairs, "", ""
    interval = f"{100 * difference.low:+.2f} to {100 * difference.high:+.2f}"
    return mean, pairs, interval, f"{100 * difference.detectable:.2f}"
