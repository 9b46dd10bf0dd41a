"""Statistics of a cache and of paired runs, with NumPy and SciPy; no network, no training.

K teachers, V views, N samples, C classes.
"""

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.cache import Cache, CacheDamagedError
from demkd.report.table import ReportError

Array = NDArray[Any]
Numbers = NDArray[np.float64]

LEVEL = 0.05
POINT = 0.01  # of top-1
_POWER = 0.8
_MOST_PAIRS = 8192
_ROUNDING = 1e-6  # equal weights are 1 / K up to this
_ROWS = 4096  # in memory at once
SCORES = ("cross-entropy", "margin", "certainty", "disagreement", "entropy")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheStatistics:
    """Means by sample over the views; entropies in nats, accuracies as fractions."""

    cache: Cache
    entropy: Sequence[Sequence[Array]]  # of each teacher V arrays (N,), mapped and checked
    prediction: Sequence[Sequence[Array]]  # the same
    weights: NDArray[np.float32] | None  # (K, V, N); None if there are none of these teachers: made from it is NaN
    mean_entropy: Numbers  # (K, N)
    top1: Numbers  # (K, N)
    mean_weight: Numbers  # (K, N)
    wrong_above_uniform: Numbers  # (K, N), the fraction of views where the teacher is wrong and weighs more than 1 / K
    excess_weight: Numbers  # (K, N), by how much the teacher weighs more than 1 / K where it is wrong, else 0
    same_top1: Numbers  # (K, K), the fraction of all views in which two teachers predict the same class
    disagreement: Numbers  # (N,), the fraction of views and pairs with different predictions; NaN for K = 1


def read_statistics(cache: Cache) -> CacheStatistics:
    """Read all entropies, predictions and weights of a cache once; memory is a few arrays (K, N)."""
    entropy, prediction = (
        [[teacher.read(name, view) for view in range(cache.num_views)] for teacher in cache.teachers]
        for name in ("entropy", "prediction")
    )
    for teacher, views in zip(cache.teachers, prediction, strict=True):
        if max(int(classes.max()) for classes in views) >= cache.classes:
            raise CacheDamagedError(
                f"{teacher.path} predicts classes above {cache.classes - 1}: remove it and make it again"
            )
    count = len(cache.teachers)
    weights = None if cache.teacher_weights is None else cache.teacher_weights.values[:, : cache.num_views]
    mean_entropy, top1, mean_weight, often, excess = np.zeros((5, count, cache.samples))
    same_top1 = np.eye(count) * cache.num_views * cache.samples
    agreement = np.zeros(cache.samples, np.int64)  # counts, so that equals are equal whatever the order of the pairs
    pairs = list(itertools.combinations(range(count), 2))
    for view in range(cache.num_views):
        predicted = np.stack([views[view] for views in prediction])
        wrong = predicted != cache.labels
        mean_entropy += np.stack([views[view] for views in entropy])
        top1 += ~wrong
        if weights is not None:
            weight = weights[:, view]
            above = wrong & (weight > 1 / count + _ROUNDING)
            mean_weight += weight
            often += above
            excess += above * (weight - 1 / count)
        for i, j in pairs:
            same = predicted[i] == predicted[j]
            same_top1[[i, j], [j, i]] += same.sum()
            agreement += same
    for total in (mean_entropy, top1, mean_weight, often, excess):
        total /= cache.num_views
    if weights is None:
        mean_weight = often = excess = np.full((count, cache.samples), np.nan)
    return CacheStatistics(
        cache=cache,
        entropy=entropy,
        prediction=prediction,
        weights=weights,
        mean_entropy=mean_entropy,
        top1=top1,
        mean_weight=mean_weight,
        wrong_above_uniform=often,
        excess_weight=excess,
        same_top1=same_top1 / (cache.num_views * cache.samples),
        disagreement=1 - agreement / (cache.num_views * len(pairs)) if pairs else np.full(cache.samples, np.nan),
    )


def by_class(statistics: CacheStatistics, values: Numbers) -> Numbers:
    """Means (K, C) over the samples of each class of values (K, N); NaN for a class without samples."""
    labels, classes = statistics.cache.labels, statistics.cache.classes
    counts = np.bincount(labels, minlength=classes)
    sums = np.stack([np.bincount(labels, weights=row, minlength=classes) for row in values])
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def rank_correlation(values: Numbers) -> Numbers:
    """Spearman's correlation (K, K) of values (K, N); NaN where all values of a row are equal.

    As `scipy.stats.spearmanr`: `inspect` does not need SciPy, which takes a second to import.
    """
    ranks = []
    for row in values:
        _, places, counts = np.unique(row, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[places])  # equal values share the mean of their ranks
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.atleast_2d(np.corrcoef(np.stack(ranks)))


def histogram(views: Iterable[Array], bins: int, highest: float) -> Array:
    """Counts of the values of all views in equal bins from 0 to `highest`."""
    counts = np.zeros(bins, np.int64)
    for values in views:
        inside = np.minimum(values.astype(np.float64), highest)  # float32's ln C may be above ln C
        counts += np.histogram(inside, bins, (0.0, highest))[0]
    return counts


def label_scores(cache: Cache, score: str = "cross-entropy") -> Numbers:
    """A score (N,) of every label, the mean over all teachers and views; higher for a less likely label y.

    "cross-entropy" is -ln p_y, in nats; "margin" is p_c - p_y of the most probable other class c, in -1..1, confident
    learning's margin (Northcutt et al. 2021); "certainty" is the largest probability where it is another class's, else
    0; "disagreement" is 1 where another class is predicted, else 0; "entropy", in nats, is for comparison, because it
    does not use the label.
    """
    if score not in SCORES:
        raise ReportError(f"there is no `score={score}`: choose {', '.join(SCORES)}")
    total = np.zeros(cache.samples)
    for view in range(cache.num_views):
        cache.check_logits(view, temperatures=[1.0])
        for start in range(0, cache.samples, _ROWS):
            rows = slice(start, min(start + _ROWS, cache.samples))
            for teacher in cache.teachers:
                logits = teacher.logits(view, rows, temperature=1.0)
                total[rows] += _score(score, log_softmax(logits), cache.labels[rows, None])
    return total / (cache.num_views * len(cache.teachers))


def _score(score: str, log_p: Numbers, labels: NDArray[np.int64]) -> Array:
    """A score (B,) of labels (B, 1) by log-probabilities (B, C)."""
    of_label = np.take_along_axis(log_p, labels, axis=1)[:, 0]
    wrong = log_p.argmax(1) != labels[:, 0]
    if score == "cross-entropy":
        return np.asarray(-of_label)
    if score == "margin":
        others = log_p.copy()
        np.put_along_axis(others, labels, -np.inf, axis=1)
        return np.asarray(np.exp(others.max(1)) - np.exp(of_label))
    if score == "certainty":
        return np.asarray(wrong * np.exp(log_p.max(1)))
    return np.asarray(wrong if score == "disagreement" else -(np.exp(log_p) * log_p).sum(1))


def log_softmax(logits: Array) -> Numbers:
    """Log-probabilities (B, C), float64."""
    shifted: Numbers = logits.astype(np.float64) - logits.max(1, keepdims=True).astype(np.float64)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any]:
    """The difference of two groups of runs over the seeds that both have: the two-sided paired t-test.

    `difference` is the mean. With two pairs or more, `low` and `high` are its 95 % interval, `detectable` is half of
    it, the smallest difference that n pairs can detect, `seeds_for_a_point` is of `pairs_needed`, and `deviation` the
    sample standard deviation of the differences.
    """
    differences = np.array([value - baseline[seed] for seed, value in values.items() if seed in baseline])
    found: dict[str, Any] = {"pairs": len(differences)}
    if len(differences):
        found["difference"] = float(differences.mean())
    if len(differences) > 1:
        deviation = float(differences.std(ddof=1))
        low, high = interval(found["difference"], deviation, len(differences), LEVEL)
        p = 1.0 if found["difference"] == 0 else 0.0
        if deviation > 0:
            from scipy.stats import ttest_1samp

            p = float(ttest_1samp(differences, 0).pvalue)
        found |= {"low": low, "high": high, "p": p, "detectable": (high - low) / 2}
        found |= {"seeds_for_a_point": pairs_needed(deviation), "deviation": deviation}
    return found


def interval(mean: float, deviation: float, count: int, level: float) -> tuple[float, float]:
    """The two-sided 1 - level confidence interval of a mean of `count` differences; SciPy's is NaN for deviation 0."""
    from scipy.stats import t

    half = float(t.ppf(1 - level / 2, count - 1)) * deviation / sqrt(count)
    return mean - half, mean + half


def holm(differences: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add p-values and intervals that are corrected for all comparisons (Holm 1979): holm_p, holm_low, holm_high.

    The interval excludes 0 exactly where Holm's procedure at 5 % finds a difference. The family is all differences
    that have a p-value.
    """
    found = [dict(difference) for difference in differences]
    family = sorted((difference for difference in found if "p" in difference), key=lambda difference: difference["p"])
    largest, level, rejects = 0.0, LEVEL, True
    for rank, difference in enumerate(family):
        left = len(family) - rank
        largest = max(largest, min(1.0, left * difference["p"]))
        if rejects:  # from the first that is not rejected on, the level stays
            level = LEVEL / left
            rejects = difference["p"] <= level
        low, high = interval(difference["difference"], difference["deviation"], difference["pairs"], level)
        difference |= {"holm_p": largest, "holm_low": low, "holm_high": high}
    return found


def pairs_needed(deviation: float, *, difference: float = POINT) -> int | None:
    """The least n >= 2 whose two-sided paired t-test at 5 % has power 80 % for a difference; None above 8,192."""
    if deviation == 0:
        return 2
    counts = range(2, _MOST_PAIRS + 1)
    place = bisect_left(counts, _POWER, key=lambda count: power(count, deviation, difference))
    return counts[place] if place < len(counts) else None


def power(count: int, deviation: float, difference: float) -> float:
    """Power of the two-sided paired t-test with `count` pairs.

    The mean of the normal tails over the sample deviation, whose distribution is chi, at 10,000 quantiles: SciPy's
    noncentral t distribution gives the same number, but NaN at small deviations in some releases.
    """
    from scipy import stats

    freedom, shift = count - 1, difference * sqrt(count) / deviation
    critical = stats.t.ppf(1 - LEVEL / 2, freedom) / sqrt(freedom)
    chi = stats.chi.ppf((np.arange(10_000) + 0.5) / 10_000, freedom)
    return float(np.mean(stats.norm.cdf(shift - critical * chi) + stats.norm.cdf(-shift - critical * chi)))
