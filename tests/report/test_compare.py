"""Means, stds and paired intervals are those of NumPy and SciPy; groups are what the recipes say."""

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
from demkd.report.compare import compare, curves, first_of_equal_runs, group_runs, read_run
from demkd.report.statistics import POINT, holm, paired_difference, pairs_needed, power
from demkd.report.table import ReportError
from tests.report import run_folders

KD = [0.50, 0.52, 0.51, 0.49]
DKD = [0.53, 0.53, 0.55, 0.51]


def write_run(folder: Path, *, seed: int = 0, last: float = 0.5, epochs: int = 3, **choices: Any) -> Path:
    folder.mkdir(parents=True)
    recipe = {"seed": seed, "epochs": epochs, "sources": {"pixels_sha256": "ab"}, **choices}
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
    lines = [json.dumps({"epoch": epoch, "test_top1": value}) for epoch, value in enumerate([0.1, 0.9, last], 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path / f"{method}-{seed}", seed=seed, last=last, method=method, student="resnet8")
        for method, values in (("kd", KD), ("dkd", DKD))
        for seed, last in enumerate(values)
    ]


def shown(folders: list[Path], *options: str) -> str:
    result = CliRunner().invoke(main, ["compare", *map(str, folders), *options])
    assert result.exit_code == 0, result.output
    return result.stdout


WITH_DIGEST = {"pixels_sha256": "ab", "teacher_a": "0123456789"}


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ([{"method": "kd"}, {"method": "dkd"}, {"method": "kd", "w": 4.0}], ["kd no w", "dkd", "kd w=4.0"]),
        ([{"method": "kd", "warmup": 0.0}, {"method": "dkd", "warmup": 0.1}], ["kd", "dkd"]),
        ([{"method": "kd"}], ["kd"]),
        (
            [{"method": "dkd", "teachers": ["a", "b"]}, {"method": "dkd", "teachers": ["a"]}],
            ["teachers=a,b", "teachers=a"],
        ),
        (
            [{"method": "dkd"}, {"method": "dkd", "sources": WITH_DIGEST}],
            ["no digest of", "digest of teacher_a=01234567"],
        ),
        # Training a network on labels is the baseline of distilling into it; only runs of distill name a method.
        ([{"network": "vgg8"}, {"network": "resnet8"}], ["vgg8", "resnet8"]),
        ([{"network": "resnet8"}, {"student": "resnet8", "method": "kd"}], ["labels only", "kd"]),
        ([{"v": "1"}, {"v": 1}, {"v": "1,2"}, {"v": ["1", "2"]}], ["v=1", "v=1 (2)", "v=1,2", "v=1,2 (2)"]),
        (
            [{"method": "kd", "sources": {"teacher_a": digest}} for digest in ("0123456789", "01234567ab")],
            ["kd", "kd (2)"],
        ),
    ],
)
def test_a_group_is_named_by_its_difference(tmp_path: Path, choices: list[dict[str, Any]], expected: list[str]) -> None:
    runs = [read_run(write_run(tmp_path / str(i), **options)) for i, options in enumerate(choices)]
    for name, start in zip(group_runs(runs), expected, strict=True):
        assert name.startswith(start)


def test_statistics_are_those_of_numpy_and_scipy(folders: list[Path]) -> None:
    kd, dkd = compare([read_run(folder) for folder in folders], baseline="kd")["groups"]
    assert (kd["last_top1"], kd["last_std"]) == pytest.approx((np.mean(KD), np.std(KD, ddof=1)))
    assert (kd["best_top1"], kd["best_std"]) == pytest.approx((0.9, 0.0))
    assert kd["difference"] is None
    expected = stats.ttest_rel(DKD, KD)
    assert (dkd["low"], dkd["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert dkd["p"] == dkd["holm_p"] == pytest.approx(expected.pvalue)
    assert (dkd["holm_low"], dkd["holm_high"]) == (dkd["low"], dkd["high"]), "one comparison needs no correction"
    assert dkd["difference"] == pytest.approx(np.mean(DKD) - np.mean(KD))
    assert dkd["detectable"] == pytest.approx(stats.t.ppf(0.975, 3) * np.std(np.subtract(DKD, KD), ddof=1) / 2)
    assert dkd["best_difference"] == 0


def test_few_or_equal_pairs(folders: list[Path]) -> None:
    assert paired_difference({0: 0.5}, {1: 0.5}) == {"pairs": 0}
    assert paired_difference({0: 0.5, 1: 1.0}, {0: 0.25}) == {"pairs": 1, "difference": 0.25}
    same = paired_difference({0: 0.5, 1: 0.75}, {0: 0.25, 1: 0.5})
    assert (same["low"], same["high"], same["p"], same["seeds_for_a_point"]) == (0.25, 0.25, 0.0, 2)
    assert paired_difference({0: 0.5, 1: 0.75}, {0: 0.5, 1: 0.75})["p"] == 1.0
    _, dkd = compare([read_run(folder) for folder in (folders[0], folders[5])], baseline=str(folders[0]))["groups"]
    assert (dkd["pairs"], dkd["difference"]) == (0, None)


def difference(seed: int, shift: float) -> dict[str, Any]:
    values = np.random.default_rng(seed).normal(shift, 0.01, 4)
    return paired_difference(dict(enumerate(values)), dict.fromkeys(range(4), 0.0))


@pytest.mark.parametrize("seed", range(4))
def test_p_values_are_holms_and_intervals_exclude_0_exactly_where_it_rejects(seed: int) -> None:
    """The definition: the largest of (m - i + 1) p over the hypotheses up to each, in ascending order of p."""
    shifts = np.random.default_rng(seed).choice([0.0, 0.01, 0.02, 0.04], 6)
    plain = [difference(100 * seed + i, shift) for i, shift in enumerate(shifts)]
    found = holm([{}, *plain, {"pairs": 1, "difference": 0.1}])
    assert (found[0], found[-1]) == ({}, {"pairs": 1, "difference": 0.1})
    p = np.sort([one["p"] for one in plain])
    adjusted = np.minimum(np.maximum.accumulate((6 - np.arange(6)) * p), 1)
    for one in found[1:-1]:
        assert one["holm_p"] == pytest.approx(adjusted[np.searchsorted(p, one["p"])])
        assert (one["holm_low"] > 0 or one["holm_high"] < 0) == (one["holm_p"] < 0.05)
        assert one["holm_low"] <= one["low"]


@pytest.mark.parametrize("deviation", [0.005, 0.02])
def test_this_number_of_pairs_finds_a_difference_of_a_point_in_four_of_five_cases(deviation: float) -> None:
    """By simulation: with this number at least 80 % are found, and with one less fewer."""
    needed = pairs_needed(deviation)
    draws = np.random.default_rng(0).normal(POINT, deviation, (20_000, needed or 0))
    assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() > 0.79
    assert (stats.ttest_1samp(draws[:, :-1], 0, axis=1).pvalue < 0.05).mean() < 0.805


@pytest.mark.parametrize(("deviation", "needed"), [(0.0, 2), (0.00174527, 3), (0.00196222, 3), (0.01, 10), (1.0, None)])
def test_small_deviations_need_what_the_noncentral_t_gives(deviation: float, needed: int | None) -> None:
    """Some releases of SciPy give NaN for the second and the third deviation."""
    assert pairs_needed(deviation) == needed
    for count in (2, 3, 5, 10) if 0.001 < deviation < 0.1 else ():
        freedom, shift = count - 1, POINT * count**0.5 / deviation
        critical = stats.t.ppf(0.975, freedom)
        expected = stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)
        if np.isfinite(expected):
            assert power(count, deviation, POINT) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("baseline", [None, "kd"])
def test_csv_has_the_numbers_of_the_json(folders: list[Path], baseline: str | None) -> None:
    chosen = [] if baseline is None else ["--baseline", baseline]
    expected = json.loads(shown(folders, "--format", "json", *chosen))
    for key, options in (("groups", []), ("runs", ["--seeds"])):
        rows = list(csv.DictReader(io.StringIO(shown(folders, "--format", "csv", *options, *chosen))))
        assert rows == [{k: "" if v is None else str(v) for k, v in row.items()} for row in expected[key]]
    assert [row["last_top1"] for row in expected["runs"]] == KD + DKD


def test_people_see_percent_and_percentage_points(folders: list[Path]) -> None:
    low, high = (100 * end for end in stats.ttest_rel(DKD, KD).confidence_interval(0.95))
    lines = shown(folders, "--format", "markdown", "--seeds", "--baseline", "kd").splitlines()
    cells = [cell.strip(" *") for cell in lines[3].split("|")[1:-1]]
    assert cells[:4] == ["dkd", "4", "53.00%", f"{100 * np.std(DKD, ddof=1):.2f}%"]
    assert cells[6:10] == ["4", "+2.50", f"{low:+.2f}", f"{high:+.2f}"]
    assert "**dkd**" in lines[3], "the best mean"
    assert any("dkd-2 | 2 | 55.00% |" in line for line in lines)
    assert "55.00%" in shown(folders, "--seeds")
    assert "55.00%" not in shown(folders)


def test_what_cannot_be_compared_is_refused(folders: list[Path], tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in folders]
    with pytest.raises(ReportError, match=r"has a seed twice \(\[0, 0\]\)"):
        compare([runs[0], runs[0]])
    with pytest.raises(ReportError, match="there is no baseline 'ce': choose one of kd; dkd"):
        compare(runs, baseline="ce")
    with pytest.raises(ReportError, match="is no run folder"):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="has 3 of 5 epochs: finish it first"):
        read_run(write_run(tmp_path / "short", epochs=5))


def test_a_baseline_is_the_same_folder_however_it_is_written(folders: list[Path], tmp_path: Path) -> None:
    relative = [read_run(Path(os.path.relpath(folder))) for folder in folders]
    for text in (str(folders[4]), f"{tmp_path}/kd-0/../dkd-1/"):
        assert compare(relative, baseline=text)["baseline"] == "dkd"


def test_only_the_first_of_equal_runs_is_shown(folders: list[Path], tmp_path: Path) -> None:
    again = write_run(tmp_path / "again", seed=1, last=0.52, method="kd", student="resnet8")
    found = first_of_equal_runs([read_run(folder) for folder in [*folders, again]])
    assert {folder: run.folder for folder, run in found.items() if folder != run.folder} == {again: folders[1]}


def test_runs_are_listed_with_the_options_that_differ(tmp_path: Path) -> None:
    """A teacher's digest, which runs without teachers lack, is not among them; one that differs is."""
    sources = [{}, {"teacher_ada": "abc", "teacher_bob": "0"}, {"teacher_ada": "abc", "teacher_bob": "1"}]
    methods = ("ce", "kd", "kd")
    runs = [
        read_run(write_run(tmp_path / str(i), method=method, sources=source))
        for i, (method, source) in enumerate(zip(methods, sources, strict=True))
    ]
    assert [column.key for column in compare(runs[:2])["runs"].columns[6:]] == ["method"]
    assert [column.key for column in compare(runs)["runs"].columns[6:]] == ["method", "digest of teacher_bob"]


def test_curves_are_those_of_every_seed(tmp_path: Path) -> None:
    groups = group_runs([read_run(folder) for folder in run_folders.write_runs(tmp_path)])
    for method, seeds in run_folders.SEEDS.items():
        found = curves(groups[method])
        epochs = range(1, run_folders.EPOCHS + 1)
        values = [[run_folders.top1(method, seed, epoch) for epoch in epochs] for seed in range(seeds)]
        assert found["test_top1"] == pytest.approx(np.array(values))
        terms = {key.removeprefix("losses.") for key in found if key.startswith("losses.")}
        assert terms == {*run_folders.TERMS[method], "loss"}
        assert ("weights.ada" in found) == ("effective_teachers" in found) == (method != "ce")
    (tmp_path / "kd-0" / "metrics.jsonl").write_text('{"test_top1": 0.5, "losses": {"strange": "x"}}\n')
    with pytest.raises(ReportError, match=r"kd-0/metrics.jsonl is not what train or distill writes"):
        curves(groups["kd"])


RECIPE = {"seed": 0, "epochs": 1, "sources": {}}
METRICS = '{"epoch": 1, "test_top1": 0.5}\n'


@pytest.mark.parametrize(
    ("recipe", "metrics", "said"),
    [
        (RECIPE | {"seed": True}, METRICS, "recipe.toml: seed is True, not a number"),
        (RECIPE | {"sources": 3}, METRICS, "recipe.toml: sources is 3, not a table"),
        (RECIPE | {"views": datetime.date(2026, 1, 1)}, METRICS, "recipe.toml: .*date is not JSON"),
        (RECIPE, '{"test_top1": NaN}', "metrics.jsonl: a test_top1 of nan is no fraction of 0 to 1"),
        (RECIPE, '{"test_top1": 50.0}', "metrics.jsonl: a test_top1 of 50.0 is no fraction of 0 to 1"),
        (RECIPE, "[3]", "metrics.jsonl: list indices"),
        (RECIPE, "{}", "metrics.jsonl: 'test_top1'"),
    ],
)
def test_a_broken_run_is_refused_by_file(recipe: dict[str, Any], metrics: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(recipe))
    (tmp_path / "metrics.jsonl").write_text(metrics.strip() + "\n")
    with pytest.raises(ReportError, match=rf"is no run folder \({said}.*\): give what train or distill wrote"):
        read_run(tmp_path)
