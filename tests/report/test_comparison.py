"""Means, stds and paired intervals are those of the statistics libraries; groups are what the recipes say."""

import csv
import datetime
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from click.testing import CliRunner
from scipy import stats

from demkd.cli import main
from demkd.report.comparison import ComparisonError, compare_runs, first_of_equal_runs, read_run

KD = [0.50, 0.52, 0.51, 0.49]
DKD = [0.53, 0.53, 0.55, 0.51]
CSV_COLUMNS = [
    "group",
    "seeds",
    "last_top1_mean",
    "last_top1_standard_deviation",
    "best_top1_mean",
    "best_top1_standard_deviation",
    "baseline",
    "pairs",
    *(
        f"{which}{name}"
        for which in ("", "best_")
        for name in (
            "difference_mean",
            "interval_low",
            "interval_high",
            "p",
            "holm_interval_low",
            "holm_interval_high",
            "holm_p",
            "detectable_difference",
            "seeds_for_a_point",
        )
    ),
]


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


def compared(folders: list[Path], form: str, baseline: str | None = None) -> str:
    chosen = [] if baseline is None else ["--baseline", baseline]
    result = CliRunner().invoke(main, ["compare", *map(str, folders), "--format", form, *chosen])
    assert result.exit_code == 0, result.output
    return result.stdout


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


def test_the_network_of_train_is_compared_as_the_student(tmp_path: Path) -> None:
    """Training a network on labels is the baseline of distilling into it; only runs of distill name a method."""
    chosen = [{"network": "vgg8"}, {"network": "resnet8"}, {"student": "resnet8", "method": "kd"}]
    runs = [
        read_run(write_run(tmp_path / str(place), seed=0, last=0.5, **choices)) for place, choices in enumerate(chosen)
    ]
    assert [group.name for group in compare_runs(runs).groups] == ["vgg8", "resnet8 labels only", "resnet8 kd"]
    assert [group.name for group in compare_runs(runs[:2]).groups] == ["vgg8", "resnet8"]
    assert [group.name for group in compare_runs(runs[1:]).groups] == ["labels only", "kd"]


def test_statistics_are_those_of_numpy_and_scipy(folders: list[Path]) -> None:
    comparison = compare_runs([read_run(folder) for folder in folders], baseline="kd")
    kd, dkd = comparison.groups
    assert (kd.last, kd.last_std) == pytest.approx((np.mean(KD), np.std(KD, ddof=1)))
    assert (kd.best, kd.best_std) == pytest.approx((0.9, 0.0))
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


def test_a_table_shows_per_cent_and_percentage_points(folders: list[Path]) -> None:
    low, high = (100 * end for end in stats.ttest_rel(DKD, KD).confidence_interval(0.95))
    stds = [100 * np.std(values, ddof=1) for values in (KD, DKD)]
    assert compared(folders, "markdown", "kd").splitlines()[2:] == [
        f"| kd | 4 | 50.50 ± {stds[0]:.2f} | 90.00 ± 0.00 |{'  |' * 8}",
        f"| **dkd** | **4** | **53.00 ± {stds[1]:.2f}** | **90.00 ± 0.00** | **+2.50** | **4** "
        f"| **{low:+.2f} to {high:+.2f}** | **{low:+.2f} to {high:+.2f}** | **{stats.ttest_rel(DKD, KD).pvalue:.2g}** "
        f"| **{(high - low) / 2:.2f}** | **16** | **+0.00** |",
    ]


@pytest.mark.parametrize("baseline", [None, "kd"])
def test_csv_has_the_numbers_of_the_json_a_column_each(folders: list[Path], baseline: str | None) -> None:
    """In full; empty where there is none: a lone run has no std, a single pair no interval."""
    groups = json.loads(compared(folders[:5], "json", baseline))["groups"]
    kd, dkd = csv.DictReader(io.StringIO(text := compared(folders[:5], "csv", baseline)))
    assert text.splitlines()[0] == ",".join(CSV_COLUMNS)
    for row, group in ((kd, groups[0]), (dkd, groups[1])):
        difference = group["difference"] or {}
        told = [group["name"], len(group["seeds"])]
        told += [group[name] for name in ("last", "last_std", "best", "best_std")]
        told += [baseline, difference.get("seeds")]
        names = ("mean", "low", "high", "p", "holm_low", "holm_high", "holm_p", "detectable", "seeds_for_a_point")
        told += [one.get(name) for one in (difference, group["best_difference"] or {}) for name in names]
        assert list(row.values()) == ["" if value is None else str(value) for value in told]
    assert (dkd["last_top1_standard_deviation"], dkd["interval_low"]) == ("", "")
    assert dkd["difference_mean"] == ("" if baseline is None else str(DKD[0] - KD[0]))


def test_csv_has_intervals_of_several_pairs(folders: list[Path]) -> None:
    _, dkd = csv.DictReader(io.StringIO(compared(folders, "csv", "kd")))
    interval = stats.ttest_rel(DKD, KD).confidence_interval(0.95)
    assert [float(dkd[name]) for name in ("interval_low", "interval_high")] == pytest.approx(list(interval))
    assert (dkd["seeds"], dkd["pairs"]) == ("4", "4")


def test_every_seeds_value_is_told(folders: list[Path]) -> None:
    """In the JSON always; with --seeds in the terminal and in Markdown, and as CSV a row a run."""
    group = json.loads(compared(folders, "json"))["groups"][1]
    assert dict(zip(group["seeds"], group["last_by_seed"], strict=True)) == dict(enumerate(DKD))
    assert group["best_by_seed"] == [0.9] * 4
    for form, line in (("markdown", "| dkd | 2 | 55.00 | 90.00 |"), ("csv", "dkd,2,0.55,0.9")):
        told = CliRunner().invoke(main, ["compare", *map(str, folders), "--format", form, "--seeds"])
        assert line in told.stdout.splitlines()
    told = CliRunner().invoke(main, ["compare", *map(str, folders), "--seeds"])
    assert "dkd" in told.stdout
    assert "55.00" in told.stdout
    assert "55.00" not in CliRunner().invoke(main, ["compare", *map(str, folders)]).stdout


def test_best_epochs_have_differences_of_their_own(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / f"{method}{seed}", seed=seed, last=last, method=method))
        for method, values in (("kd", (0.5, 0.6)), ("dkd", (0.95, 0.97)))
        for seed, last in enumerate(values)
    ]
    best = compare_runs(runs, baseline="kd").groups[1].best_difference
    assert best is not None
    interval = stats.ttest_rel([0.95, 0.97], [0.9, 0.9]).confidence_interval(0.95)
    assert (best.mean, best.low, best.high) == pytest.approx((0.06, *interval))


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


def test_sources_that_only_begin_alike_are_other_groups(tmp_path: Path) -> None:
    """What a teacher was shown is text, and shown whole; a digest is shortened, and numbered where that hides it."""
    inputs = ["0.5, 0.4, 0.4, 0.2", "0.5, 0.4, 0.4, 0.3"]
    digests = ["0123456789", "01234567ab"]
    sources = [{"teacher_a": digest, "teacher_a_input": shown} for digest in digests for shown in inputs]
    runs = [
        read_run(write_run(tmp_path / str(place), seed=0, last=0.5, method="kd", sources=source))
        for place, source in enumerate(sources)
    ]
    assert [group.name for group in compare_runs(runs).groups] == [
        "digest of teacher_a_input=0.5, 0.4, 0.4, 0.2",
        "digest of teacher_a_input=0.5, 0.4, 0.4, 0.3",
        "digest of teacher_a_input=0.5, 0.4, 0.4, 0.2 (2)",
        "digest of teacher_a_input=0.5, 0.4, 0.4, 0.3 (2)",
    ]


def test_groups_of_the_same_words_are_all_shown(tmp_path: Path) -> None:
    """A number and its text, a list and its commas."""
    values: list[Any] = ["1", 1, "1,2", ["1", "2"]]
    runs = [
        read_run(write_run(tmp_path / str(place), seed=0, last=place / 8, method="kd", views=value))
        for place, value in enumerate(values)
    ]
    groups = compare_runs(runs, baseline="views=1 (2)").groups
    assert [group.name for group in groups] == ["views=1", "views=1 (2)", "views=1,2", "views=1,2 (2)"]
    assert [group.last for group in groups] == [0.0, 0.125, 0.25, 0.375]
    assert groups[1].difference is None


def test_without_a_common_seed_there_are_0_pairs(folders: list[Path]) -> None:
    chosen = [folders[0], folders[5]]
    assert compared(chosen, "markdown", "kd").splitlines()[2:] == [
        f"| kd | 1 | 50.00 | 90.00 |{'  |' * 8}",
        f"| **dkd** | **1** | **53.00** | **90.00** |  | **0** |{'  |' * 6}",
    ]
    assert [row["pairs"] for row in csv.DictReader(io.StringIO(compared(chosen, "csv", "kd")))] == ["", "0"]
    assert [row["pairs"] for row in csv.DictReader(io.StringIO(compared(chosen, "csv")))] == ["", ""]


def test_a_baseline_is_the_same_folder_however_it_is_written(folders: list[Path], tmp_path: Path) -> None:
    relative = [read_run(Path(os.path.relpath(folder))) for folder in folders]
    assert compare_runs(relative, baseline=str(folders[4])).baseline == "dkd"
    assert compare_runs(relative, baseline=f"{tmp_path}/kd-0/../dkd-1/").baseline == "dkd"


def test_the_first_of_the_same_runs_stands_for_the_others(folders: list[Path], tmp_path: Path) -> None:
    again = write_run(tmp_path / "again", seed=1, last=0.52, method="kd", student="resnet8")
    found = first_of_equal_runs([read_run(folder) for folder in [*folders, again]])
    assert {folder: run.folder for folder, run in found.items() if folder != run.folder} == {again: folders[1]}


RECIPE = {"seed": 0, "epochs": 1, "sources": {}}
METRICS = '{"epoch": 1, "test_top1": 0.5}\n'


@pytest.mark.parametrize(
    ("recipe", "metrics", "said"),
    [
        ({"epochs": 1, "sources": {}}, METRICS, "recipe.toml: seed is None, not a number"),
        (RECIPE | {"seed": True}, METRICS, "recipe.toml: seed is True, not a number"),
        (RECIPE | {"epochs": "x"}, METRICS, "recipe.toml: epochs is 'x', not a number"),
        (RECIPE | {"sources": 3}, METRICS, "recipe.toml: sources is 3, not a table"),
        (RECIPE | {"views": datetime.date(2026, 1, 1)}, METRICS, "recipe.toml: .*date is not JSON"),
        (RECIPE, '{"test_top1": NaN}', "metrics.jsonl: a test_top1 of nan is no share of 0 to 1"),
        (RECIPE, '{"test_top1": 50.0}', "metrics.jsonl: a test_top1 of 50.0 is no share of 0 to 1"),
        (RECIPE, "[3]", "metrics.jsonl: list indices"),
        (RECIPE, "{}", "metrics.jsonl: 'test_top1'"),
    ],
)
def test_a_broken_run_is_refused_by_the_name_of_its_file(
    recipe: dict[str, Any], metrics: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(recipe))
    (tmp_path / "metrics.jsonl").write_text(metrics)
    with pytest.raises(ComparisonError, match=rf"is no run folder \({said}.*\): give what train or distill wrote"):
        read_run(tmp_path)
