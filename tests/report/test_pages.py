"""Pages and plots: the same bytes every time, the values of the JSON, nothing from strangers as code."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from demkd.cache import open_cache
from demkd.cli import main
from demkd.report.comparison import ComparisonError, compare_runs, read_run
from demkd.report.curves import group_curves
from demkd.report.pages import write_accuracy_plot, write_cache_page, write_runs_page
from demkd.report.statistics import read_statistics
from demkd.report.writing import PageError, write_whole
from tests.conftest import CHECKOUT
from tests.report import run_folders
from tests.report.inspected import DATA, LABELS, write_inspected
from tests.report.page_values import PageValues

HOSTILE = [
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1}{0$ & 中文",
    "a\x01b\u202e",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inspected(tmp_path_factory.mktemp("paged") / "cache")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return run_folders.write_runs(tmp_path_factory.mktemp("runs"))


def pixels(samples: int = len(LABELS), height: int = 6, width: int = 8) -> Any:
    return np.random.default_rng(0).integers(0, 256, (samples, height, width, 3), dtype=np.uint8)


def invoke(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def cache_page(folder: Path, path: Path, **options: Any) -> str:
    write_cache_page(read_statistics(open_cache(folder)), path, **options)
    return path.read_text(encoding="utf-8")


def runs_page(folders: list[Path], path: Path, *, baseline: str | None = None) -> str:
    found = [read_run(folder) for folder in folders]
    write_runs_page(found, compare_runs(found, baseline=baseline), path)
    return path.read_text(encoding="utf-8")


def test_the_cache_page_has_the_values_of_the_json(cache: Path, tmp_path: Path) -> None:
    assert invoke("inspect", cache, "--html", tmp_path / "page.html").startswith(f"{tmp_path / 'page.html'}: ")
    page = PageValues.of((tmp_path / "page.html").read_text())
    summary = json.loads(invoke("inspect", cache, "--json"))
    names = ("top1", "mean_entropy", "mean_weight", "wrong_and_trusted")
    shown = [{name: float(row[name]) for name in names} for row in page.rows("teachers")]
    assert shown == [{name: teacher[name] for name in names} for teacher in summary["teachers"]]
    quartiles = [[float(row[name]) for name in ("q25", "q50", "q75")] for row in page.rows("teachers")]
    assert quartiles == [teacher["quartiles"] for teacher in summary["teachers"]]
    same = summary["agreement"]["same_top1"]
    assert [float(row["same_top1"]) for row in page.rows("agreement")] == [same[0][1], same[0][2], same[1][2]]
    classes = json.loads(invoke("inspect", cache, "--by-class", "--json"))["rows"]
    assert [row[""] for row in page.rows("classes")] == [row["label"] for row in classes]
    for row, known in zip(page.rows("classes"), classes, strict=True):
        assert float(row["samples"]) == known["samples"]
        for name in ("disagreement", "top1", "entropy", "wrong_and_trusted"):
            assert row.get(name) == (None if known[name] is None else str(known[name]))


@pytest.mark.parametrize(
    ("key", "option"), [("uncertain", "uncertain"), ("disputed", "disagree"), ("suspect", "suspect")]
)
def test_the_tables_of_galleries_are_the_listings(cache: Path, tmp_path: Path, key: str, option: str) -> None:
    rows = PageValues.of(cache_page(cache, tmp_path / "page.html")).rows(f"{key}-table")
    listing = json.loads(invoke("inspect", cache, f"--{option}", 12, "--json"))["rows"]
    assert [(row[""], float(row["score"])) for row in rows] == [(str(row["index"]), row["score"]) for row in listing]


@pytest.mark.parametrize("baseline", [None, "kd-0"])
def test_the_runs_page_has_the_values_of_the_json(runs: list[Path], tmp_path: Path, baseline: str | None) -> None:
    chosen = [] if baseline is None else ["--baseline", runs[0].parent / baseline]
    told = json.loads(invoke("compare", *runs, "--format", "json", "--html", tmp_path / "page.html", *chosen))
    page = PageValues.of((tmp_path / "page.html").read_text())
    assert [row[""] for row in page.rows("final")] == ["ce", "kd", "de-mkd ★"]
    for row, group in zip(page.rows("final"), told["groups"], strict=True):
        assert (float(row["last"]), float(row["best"])) == (group["last"], group["best"])
        assert float(row["seeds"]) == len(group["seeds"])
        difference = group["difference"] or {}
        shown = {"difference": difference.get("mean"), **{name: difference.get(name) for name in ("low", "detectable")}}
        assert {name: row.get(name) for name in shown} == {
            name: None if value is None else str(value) for name, value in shown.items()
        }
    assert [(row[""], float(row["last"])) for row in page.rows("runs")] == [
        (str(folder), read_run(folder).last) for folder in runs
    ]


def test_curves_are_means_and_bands_over_seeds(runs: list[Path]) -> None:
    found = [read_run(folder) for folder in runs]
    groups = group_curves(found, compare_runs(found))
    assert [group.name for group in groups] == [group.name for group in compare_runs(found).groups]
    for group, (method, seeds) in zip(groups, run_folders.SEEDS.items(), strict=True):
        epochs = range(1, run_folders.EPOCHS + 1)
        values = np.array([[run_folders.top1(method, seed, epoch) for epoch in epochs] for seed in range(seeds)])
        std = values.std(0, ddof=1) if seeds > 2 else None
        assert group.name == method
        assert group.test_top1.mean == pytest.approx(values.mean(0))
        if seeds == 1:
            assert group.test_top1.low is None
        else:
            low = values.min(0) if std is None else values.mean(0) - std
            high = values.max(0) if std is None else values.mean(0) + std
            assert (group.test_top1.low, group.test_top1.high) == (pytest.approx(low), pytest.approx(high))
        assert set(group.losses) == {*run_folders.TERMS[method], "loss"}
        assert list(group.weights) == ([] if method == "ce" else run_folders.TEACHERS)
    last = groups[2].weights["ada"].mean[-1]
    assert last == pytest.approx(np.mean([run_folders.weights("de-mkd", seed, 4)[0] for seed in range(3)]))


def test_each_run_is_listed_with_the_choices_that_differ(runs: list[Path], tmp_path: Path) -> None:
    """A teacher's digest, which runs without teachers lack, is not among them; one that differs is."""
    recipe = runs[1] / "recipe.toml"
    folders = [run_folders.copy_run(folder, tmp_path / folder.name) for folder in runs[:3]]
    for place, folder in enumerate(folders[1:]):
        text = recipe.read_text() + f'[sources]\nteacher_ada = "abc"\nteacher_bob = "{place}"\n'
        (folder / "recipe.toml").write_text(text)
    values = PageValues.of(runs_page([folders[0], folders[1]], tmp_path / "two.html"))
    assert values.headings["runs"] == ["run", "seed", "last top-1", "best top-1", "best epoch", "warmup", "method"]
    values = PageValues.of(runs_page(folders, tmp_path / "three.html"))
    assert values.headings["runs"][5:] == ["warmup", "method", "digest of teacher_bob"]


def test_runs_without_teachers_say_nothing_of_them(runs: list[Path], tmp_path: Path) -> None:
    alone = runs_page(runs[:1], tmp_path / "alone.html")
    assert "<h2>Teacher weights</h2>" not in alone
    assert "effective" not in alone
    both = runs_page(runs[:3], tmp_path / "both.html")
    assert "<h2>Teacher weights</h2>" in both
    assert "Equal weights in every epoch: kd." in both
    assert 'id="weights-0"' not in both
    assert 'id="weights-0"' in runs_page(runs, tmp_path / "all.html")


def test_metrics_of_another_kind_are_refused(runs: list[Path], tmp_path: Path) -> None:
    odd = run_folders.write_run(tmp_path / "odd", method="kd", seed=0)
    text = (odd / "metrics.jsonl").read_text()
    (odd / "metrics.jsonl").write_text(text.replace('"losses": {', '"losses": {"strange": "x", '))
    with pytest.raises(ComparisonError, match=r"odd/metrics.jsonl is not what train or distill writes"):
        runs_page([odd], tmp_path / "page.html")


def test_pages_hold_together(cache: Path, runs: list[Path], tmp_path: Path) -> None:
    """No id comes twice, though a page has many figures, and every reference finds its own; nothing is fetched."""
    for page in (
        cache_page(cache, tmp_path / "a.html", picture=pixels().__getitem__),
        runs_page(runs, tmp_path / "b.html"),
    ):
        values = PageValues.of(page)
        assert len(values.ids) == len(set(values.ids))
        assert set(values.references) <= set(values.ids)
        assert values.references
        assert not re.search(r"(?:src|href)=[\"'](?!#|data:)", page)
        assert "@import" not in page
        assert values.tags.count("script") == 1


def test_names_are_text_and_never_code(tmp_path: Path) -> None:
    """Class names come from folders, and folders from anywhere."""
    folder = write_inspected(tmp_path / "<b>cache", data={**DATA, "class_names": HOSTILE})
    page = cache_page(folder, tmp_path / "page.html", picture=pixels().__getitem__)
    values = PageValues.of(page)
    assert values.tags.count("script") == 1
    assert not {"b", "x"} & set(values.tags)
    assert values.tags.count("img") == page.count("data:image/png")
    assert HOSTILE[0] in {row[""] for row in values.rows("classes")}
    odd = run_folders.write_run(tmp_path / "<i>run", method="ce", seed=0)
    for file, old, new in (("recipe.toml", '"ce"', "'<script>1</script>'"), ("metrics.jsonl", "label_loss", "<u>_$")):
        text = (odd / file).read_text()
        assert old in text
        (odd / file).write_text(text.replace(old, new))
    assert not {"i", "u"} & set(PageValues.of(runs_page([odd], tmp_path / "runs.html")).tags)


def test_the_same_inputs_give_the_same_bytes(cache: Path, runs: list[Path], tmp_path: Path) -> None:
    """Here and in another process, whatever the hash seed and the user's matplotlibrc."""
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\ntext.color: red\naxes.grid: False\nfont.size: 30\n")
    environment = {**os.environ, "MATPLOTLIBRC": str(tmp_path), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    for number, command in enumerate((["inspect", cache, "--html"], ["compare", *runs, "--html"])):
        here, there = (tmp_path / f"{number}-{place}.html" for place in ("here", "there"))
        invoke(*command, here)
        line = [sys.executable, str(CHECKOUT / "cli.py"), *map(str, command), str(there)]
        subprocess.run(line, check=True, capture_output=True, env=environment, timeout=120)
        assert here.read_bytes() == there.read_bytes()
    for suffix in ("svg", "png"):
        for name in ("one", "two"):
            invoke("compare", *runs, "--plot", tmp_path / f"{name}.{suffix}")
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_a_plot_is_what_its_suffix_says(runs: list[Path], tmp_path: Path) -> None:
    invoke("compare", *runs, "--plot", tmp_path / "plot.SVG")
    root = ET.parse(tmp_path / "plot.SVG").getroot()
    texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"epoch", "test top-1", "ce", "kd", "de-mkd"} <= texts
    invoke("compare", *runs, "--plot", tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size[0] == 1200
        assert len(set(picture.convert("RGB").get_flattened_data())) > 50
    assert "plot.pdf is neither .svg nor .png" in invoke("compare", *runs, "--plot", tmp_path / "plot.pdf", code=1)
    assert not (tmp_path / "plot.pdf").exists()


def test_one_teacher_without_weights_has_a_page_too(tmp_path: Path) -> None:
    folder = write_inspected(tmp_path / "cache", weighted=False)
    with open_cache(folder, ["bob"]) as opened:
        write_cache_page(read_statistics(opened), tmp_path / "page.html")
    values = PageValues.of((tmp_path / "page.html").read_text())
    assert {"entropy", "reliability", "class-entropy"} <= set(values.ids)
    assert not {"weights", "pair-0", "agreement", "disputed-table", "trusted-table"} & set(values.ids)


def test_a_page_of_many_classes_and_large_pictures_stays_small(tmp_path: Path) -> None:
    names = [f"class number {number}" for number in range(200)]
    labels = np.arange(400, dtype=np.int64) % 200
    data = {**DATA, "samples": 400, "class_names": names}
    folder = write_inspected(tmp_path / "cache", data=data, labels=labels)
    page = cache_page(folder, tmp_path / "page.html", picture=pixels(400, 160, 120).__getitem__)
    assert 500_000 < len(page) < 5_000_000
    assert "The 60 hardest and 60 easiest of 200 classes." in page
    assert "Images are shown reduced." in page


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_missing_library_is_named_with_its_cure(
    cache: Path, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for command in (("inspect", cache, "--html"), ("compare", *runs, "--html")):
        error = invoke(*command, tmp_path / "page.html", code=1)
        assert "a page needs matplotlib and jinja2: pip install 'demkd[report]' installs them" in error
    found = [read_run(folder) for folder in runs]
    with pytest.raises(PageError, match="a plot needs matplotlib"):
        write_accuracy_plot(found, compare_runs(found), tmp_path / "plot.svg")
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert write_whole(path, b"before").file_bytes == 6
    (tmp_path / ".page.html.writing").mkdir()  # in the way
    with pytest.raises(PageError, match=r"page.html cannot be written \(Is a directory\): choose a file in a folder"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    with pytest.raises(PageError, match="No such file or directory"):
        write_whole(tmp_path / "absent" / "page.html", b"x")


def test_html_stands_alone(cache: Path, picture_folder: Path, tmp_path: Path) -> None:
    """One view of a cache at a time; and pictures must be those that the teachers saw."""
    page = tmp_path / "page.html"
    assert "--uncertain and --html exclude each other" in invoke(
        "inspect", cache, "--html", page, "--uncertain", 3, code=2
    )
    assert "--html and --json exclude each other" in invoke("inspect", cache, "--html", page, "--json", code=2)
    assert "--data needs --sample or --html" in invoke("inspect", cache, "--data", "digits", code=2)
    assert "was made from something else" in invoke("inspect", cache, "--html", page, "--data", picture_folder, code=1)
    assert not page.exists()
