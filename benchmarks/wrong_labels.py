"""How well a cache finds wrong labels: `python -m benchmarks.wrong_labels CACHE ...` makes some wrong, and looks.

A share of the labels is replaced: by any other class, as `--label-noise` does it, or by the class that the teachers
confuse it with most often, as people would. Of each score of `inspect --suspect`:

precision, recall   of the most suspect samples, as many as labels were made wrong (so both are equal)
recall of twice     of twice as many
average precision   the area below precision over recall; the share that is wrong, if a score knows nothing

Labels that were wrong before count as right, so the figures are what a score at least finds.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demkd.cache import Cache, open_cache
from demkd.dataset.seeded import noisy_labels
from demkd.report.suspects import SCORES, suspicion


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a score found of the labels made wrong; shares in 0..1, means over the seeds."""

    score: str
    precision: float
    recall_of_twice: float
    average_precision: float


def measure(cache: Cache, *, noise: float, alike: bool, seeds: Sequence[int]) -> Iterator[Found]:
    """Every score on a cache, with a share of its labels made wrong.

    Args:
        alike: put the class in a label's place that the teachers confuse it with most often.
    """
    noisy = [noisy_labels(cache.labels, share=noise, classes=cache.classes, seed=seed) for seed in seeds]
    if alike:
        look_alike = _confused_with(cache)[cache.labels]
        noisy = [np.where(labels != cache.labels, look_alike, cache.labels) for labels in noisy]
    for score in SCORES:
        figures = [
            _figures(suspicion(cache, score, labels=labels), labels != cache.labels, seed)
            for seed, labels in zip(seeds, noisy, strict=True)
        ]
        precision, twice, average = np.mean(figures, axis=0)
        yield Found(score=score, precision=precision, recall_of_twice=twice, average_precision=average)


def _confused_with(cache: Cache) -> NDArray[np.int64]:
    """For every class (C,), the other one that the teachers answer most often."""
    counts = np.zeros((cache.classes, cache.classes))
    for slot in range(cache.num_views):
        for answers in cache.read_slot(slot).prediction:
            np.add.at(counts, (cache.labels, answers), 1)
    np.fill_diagonal(counts, -1)
    confused: NDArray[np.int64] = counts.argmax(1)
    return confused


def _figures(scores: NDArray[np.float64], wrong: NDArray[np.bool_], seed: int) -> tuple[float, float, float]:
    """Precision, recall of twice as many, average precision; equals come in a random order."""
    shuffled = np.random.default_rng(seed).permutation(len(scores))
    ranked = wrong[shuffled][np.argsort(-scores[shuffled], kind="stable")]
    hits, count = np.cumsum(ranked), int(wrong.sum())
    precisions = hits / np.arange(1, len(ranked) + 1)
    return hits[count - 1] / count, hits[min(2 * count, len(hits)) - 1] / count, float(precisions[ranked].mean())


def main() -> None:
    """Print a table a cache and share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caches", nargs="+", type=Path)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.02, 0.1, 0.3])
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    for folder in chosen.caches:
        with open_cache(folder) as cache:
            shape = f"{cache.samples:,} samples x {cache.num_views} views, {len(cache.teachers)} teachers"
            for noise, alike in itertools.product(chosen.noise, (False, True)):
                kind = "look-alikes" if alike else "any other class"
                print(f"{folder}: {shape}, {noise:.0%} of the labels made wrong ({kind}), {chosen.seeds} seeds")
                print("| score | precision = recall | recall of twice as many | average precision |\n|---|---|---|---|")
                for found in measure(cache, noise=noise, alike=alike, seeds=range(chosen.seeds)):
                    shares = (found.precision, found.recall_of_twice, found.average_precision)
                    print(f"| {found.score} | {' | '.join(f'{share:.1%}' for share in shares)} |", flush=True)
                print()


if __name__ == "__main__":
    main()
