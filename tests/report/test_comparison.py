"""Means, deviations and paired intervals are those of the statistics libraries; groups are what the recipes say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from scipy import stats

from demkd.report.comparison import ComparisonError, compare_runs, read_run

KD = [0.50, 0.52, 0.51, 0.49]
DKD = [0.53, 0.53, 0.55, 0.51]


def write_run(folder: Path, *, seed: int, last: float, epochs: int = 3, **choices: Any) -> Path:
    folder.mkdir(parents=True)
    recipe = {"seed": seed, "epochs": epochs, "sources": {"pixels_sha256": "ab"}, **choices}
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
    top1 = [0.1, 0.9, last]
    lines = [json.dumps({"epoch": epoch, "test_top1": value}) for epoch, value in enumerate(top1, 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / f"{method}-{seed}", seed=seed, last=last, method=method, student="resnet8")
        for method, values in (("kd", KD), ("dkd", DKD))
        for seed, last in enumerate(values)
    ]


def test_groups_are_runs_that_differ_in_the_seed_alone(folders: list[Path], tmp_path: Path) -> None:
    heavier = write_run(tmp_path / "heavy", seed=0, last=0.6, method="kd", student="resnet8", kd_weight=4.0)
    comparison = compare_runs([read_run(folder) for folder in [*folders, heavier]])
    names = [group.name for group in comparison.groups]
    assert names == ["kd no kd_weight", "dkd", "kd kd_weight=4.0"]
    assert comparison.groups[0].seeds == (0, 1, 2, 3)


def test_names_say_no_more_than_it_takes(tmp_path: Path) -> None:
    """What a method brings with it is not repeated; runs from other teachers are told apart by their digests."""
    of = {"kd": {"warmup": 0.0}, "dkd": {"warmup": 0.1, "nckd_weight": 8.0}}
    chosen: list[dict[str, Any]] = [
        {"method": "kd", **of["kd"], "teachers": ["a", "b"]},
        {"method": "dkd", **of["dkd"], "teachers": ["a", "b"]},
        {"method": "dkd", **of["dkd"], "teachers": ["a"]},
        {
            "method": "dkd",
            **of["dkd"],
            "teachers": ["a"],
            "sources": {"pixels_sha256": "ab", "teacher_a": "0123456789"},
        },
    ]
    runs = [
        read_run(write_run(tmp_path / str(place), seed=0, last=0.5, **choices)) for place, choices in enumerate(chosen)
    ]
    assert [group.name for group in compare_runs(runs).groups] == [
        "kd",
        "dkd teachers=a,b",
        "dkd teachers=a no digest of teacher_a",
        "dkd teachers=a digest of teacher_a=01234567",
    ]
    assert [group.name for group in compare_runs(runs[:1]).groups] == ["kd"]


def test_statistics_are_those_of_numpy_and_scipy(folders: list[Path]) -> None:
    comparison = compare_runs([read_run(folder) for folder in folders], baseline="kd")
    kd, dkd = comparison.groups
    assert (kd.last, kd.last_deviation) == pytest.approx((np.mean(KD), np.std(KD, ddof=1)))
    assert (kd.best, kd.best_deviation) == pytest.approx((0.9, 0.0))
    assert kd.difference is None
    assert dkd.difference is not None
    interval = stats.ttest_rel(DKD, KD).confidence_interval(0.95)
    assert dkd.difference.mean == pytest.approx(np.mean(DKD) - np.mean(KD))
    assert (dkd.difference.low, dkd.difference.high) == pytest.approx(tuple(interval))
    width = stats.t.ppf(0.975, 3) * np.std(np.subtract(DKD, KD), ddof=1) / 2
    assert dkd.difference.detectable == pytest.approx(width)


def test_equal_differences_have_an_interval_of_no_width(tmp_path: Path) -> None:
    """And no warning of the statistics library."""
    runs = [
        read_run(write_run(tmp_path / f"{method}{seed}", seed=seed, last=0.5 + seed / 8 + gain, method=method))
        for method, gain in (("kd", 0.0), ("dkd", 0.125))
        for seed in range(3)
    ]
    difference = compare_runs(runs, baseline="kd").groups[1].difference
    assert difference is not None
    assert (difference.mean, difference.low, difference.high, difference.detectable) == (0.125, 0.125, 0.125, 0.0)


def test_only_seeds_that_both_have_are_paired(folders: list[Path]) -> None:
    comparison = compare_runs([read_run(folder) for folder in folders[:1] + folders[4:6]], baseline=str(folders[0]))
    assert comparison.baseline == "kd"
    difference = comparison.groups[1].difference
    assert difference is not None
    assert (difference.seeds, difference.low) == (1, None)
    assert difference.mean == pytest.approx(DKD[0] - KD[0])


def test_what_cannot_be_compared_is_refused(folders: list[Path], tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in folders]
    with pytest.raises(ComparisonError, match=r"has a seed twice \(\[0, 0\]\)"):
        compare_runs([runs[0], runs[0]])
    with pytest.raises(ComparisonError, match="there is no baseline 'ce': choose one of kd; dkd"):
        compare_runs(runs, baseline="ce")
    with pytest.raises(ComparisonError, match="is no run folder"):
        read_run(tmp_path)
    short = write_run(tmp_path / "short", seed=0, last=0.5, epochs=5)
    with pytest.raises(ComparisonError, match="has 3 of 5 epochs: finish it first"):
        read_run(short)
