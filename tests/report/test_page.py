"""Pages, plots and READMEs: complete, the same bytes every time, and nothing from outside as code."""

import base64
import io
import os
import re
import stat
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from demkd.cache import open_cache
from demkd.cli import main
from demkd.report.page import write_cache_page, write_whole
from demkd.report.readme import readme
from demkd.report.statistics import read_statistics
from demkd.report.table import ReportError
from tests.conftest import CHECKOUT
from tests.report import run_folders
from tests.report.inspected import DATA, LABELS, write_inspected, write_teacher

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


@pytest.fixture(scope="module")
def of_cache(cache: Path) -> str:
    """The page of a cache, with images."""
    path = cache.parent / "cache.html"
    return cache_page(cache, path, images=pixels().__getitem__, file_of=lambda index: f"folder/{index}.png")


@pytest.fixture(scope="module")
def of_runs(runs: list[Path]) -> str:
    return runs_page(runs, runs[0].parent / "runs.html", "--baseline", runs[1])


class Page(HTMLParser):
    """The tags, headings, texts and images of a page, read with the standard library."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.images: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.images += [found.get("src") or ""] if tag == "img" else []
        self.ids += [found["id"] or ""] if "id" in found else []

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip()] if data.strip() else []


def pixels(samples: int = len(LABELS), height: int = 6, width: int = 8) -> Any:
    return np.random.default_rng(0).integers(0, 256, (samples, height, width, 3), dtype=np.uint8)


def invoke(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def cache_page(folder: Path, path: Path, **options: Any) -> str:
    with open_cache(folder) as opened:
        write_cache_page(read_statistics(opened), path, **options)
    return path.read_text(encoding="utf-8")


def runs_page(folders: list[Path], path: Path, *options: object) -> str:
    invoke("compare", *folders, "--html", path, *options)
    return path.read_text(encoding="utf-8")


def png(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def svg_texts(uri: str) -> list[str]:
    """The texts of a figure."""
    head, _, data = uri.partition(",")
    assert head == "data:image/svg+xml;base64"
    return [text.strip() for text in ET.fromstring(base64.b64decode(data)).itertext() if text.strip()]


def numbers(*command: object) -> set[str]:
    """The numbers that a command prints where there is room for all columns."""
    result = CliRunner(env={"COLUMNS": "400"}).invoke(main, [str(word) for word in command])
    return set(re.findall(r"[-+]?\d+\.\d\d%|-?\d\.\d{3}", result.stdout))


def test_a_cache_page_shows_all_that_inspect_shows(cache: Path, of_cache: str) -> None:
    page = Page(of_cache)
    listings = [f"--{name}=12" for name in ("uncertain", "disagree", "label-issues", "wrong-above-uniform")]
    for options in ([], ["--by-class"], *([listing] for listing in listings)):
        assert numbers("inspect", cache, *options) <= set(page.texts), options
    assert page.tags.count("table") == 8
    figures = [image for image in page.images if image.startswith("data:image/svg")]
    assert len(figures) == 3 + 3 + 2, "entropy, accuracy, weights; pairs; maps of classes"
    assert "wrong predictions" in svg_texts(figures[0])
    assert sum(text.startswith("folder/") for text in page.texts) > 36
    thumbnails = [image for image in page.images if image.startswith("data:image/png")]
    index = read_statistics(open_cache(cache)).mean_entropy.mean(0).argmax()
    np.testing.assert_array_equal(np.asarray(png(thumbnails[0]).convert("RGB")), pixels()[index])


def test_a_runs_page_shows_the_comparison_and_every_curve(runs: list[Path], of_runs: str, tmp_path: Path) -> None:
    page = Page(of_runs)
    assert numbers("compare", *runs, "--baseline", runs[1], "--seeds") <= set(page.texts)
    for title in ("Test top-1", "loss", "hint_loss", "Teacher weights: de-mkd", "Effective number of teachers"):
        assert title in page.texts
    assert {"ce", "kd", "de-mkd", "epoch"} <= set(svg_texts(page.images[0]))
    alone = Page(runs_page(runs[:1], tmp_path / "alone.html"))
    assert not any("eacher" in text for text in alone.texts)


def test_pages_stand_alone(of_cache: str, of_runs: str) -> None:
    """One file, no script, no request, no id twice."""
    for page in (of_cache, of_runs):
        assert not re.search(r"(?:src|href)=[\"'](?!#|data:)", page)
        assert "@import" not in page
        assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
        parsed = Page(page)
        assert "script" not in parsed.tags
        assert len(parsed.ids) == len(set(parsed.ids))


def test_names_are_text_and_never_code(tmp_path: Path) -> None:
    """Class names come from folders, and folders from anywhere."""
    folder = write_inspected(tmp_path / "<b>cache", data={**DATA, "class_names": HOSTILE})
    page = Page(cache_page(folder, tmp_path / "page.html", images=pixels().__getitem__))
    assert not {"b", "x", "script"} & set(page.tags)
    assert all(image.startswith("data:image/") for image in page.images)
    assert HOSTILE[0] in page.texts
    odd = run_folders.write_run(tmp_path / "<i>run", method="ce", seed=0)
    for file, old, new in (("recipe.toml", '"ce"', "'<script>1</script>'"), ("metrics.jsonl", "label_loss", "<u>_$")):
        text = (odd / file).read_text()
        assert old in text
        (odd / file).write_text(text.replace(old, new))
    assert not {"i", "u", "script"} & set(Page(runs_page([odd], tmp_path / "runs.html")).tags)


@pytest.mark.parametrize("command", ["compare", pytest.param("inspect", marks=pytest.mark.slow)])
def test_another_process_writes_the_same_bytes(cache: Path, runs: list[Path], tmp_path: Path, command: str) -> None:
    """Whatever the hash seed and the user's matplotlibrc."""
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\ntext.color: red\naxes.grid: False\nfont.size: 30\n")
    environment = {**os.environ, "MATPLOTLIBRC": str(tmp_path), "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    words = [command, *map(str, [cache] if command == "inspect" else runs[::3]), "--html"]
    invoke(*words, tmp_path / "here.html")
    line = [sys.executable, str(CHECKOUT / "cli.py"), *words, str(tmp_path / "there.html")]
    subprocess.run(line, check=True, capture_output=True, env=environment, timeout=120)
    assert (tmp_path / "here.html").read_bytes() == (tmp_path / "there.html").read_bytes()


def test_a_plot_is_what_its_suffix_says(runs: list[Path], tmp_path: Path) -> None:
    invoke("compare", *runs, "--plot", tmp_path / "plot.SVG")
    assert {"epoch", "ce", "kd", "de-mkd"} <= {
        text.strip() for text in ET.parse(tmp_path / "plot.SVG").getroot().itertext()
    }
    invoke("compare", *runs, "--plot", tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size[0] == 1200
    assert "plot.pdf is neither .svg nor .png" in invoke("compare", *runs, "--plot", tmp_path / "plot.pdf", code=1)
    assert not (tmp_path / "plot.pdf").exists()


def test_one_teacher_of_many_classes_without_weights_has_a_small_page_too(tmp_path: Path) -> None:
    """Large images are shrunk."""
    labels = np.arange(400, dtype=np.int64) % 200
    data = {**DATA, "samples": 400, "class_names": [f"class number {number}" for number in range(200)]}
    write_teacher(tmp_path, 1, data=data, labels=labels)
    text = cache_page(tmp_path, tmp_path / "page.html", images=pixels(400, 160, 120).__getitem__)
    page = Page(text)
    assert len(text) < 5_000_000
    assert "The 60 hardest and 60 easiest of 200 classes." in text
    figures = [image for image in page.images if image.startswith("data:image/svg")]
    assert (page.tags.count("table"), len(figures)) == (5, 4)
    assert not {"weight", "bob weight", "Agreement", "Distribution of weights"} & set(page.texts)
    assert png(next(image for image in page.images if image.startswith("data:image/png"))).size == (48, 64)


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_missing_library_is_named_with_its_cure(
    cache: Path, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for command, what in (
        (("inspect", cache, "--html"), "an HTML report"),
        (("compare", *runs, "--html"), "an HTML report"),
        (("compare", *runs, "--plot"), "a plot"),
    ):
        error = invoke(*command, tmp_path / "page.svg", code=1)
        assert f"{what} needs matplotlib and jinja2: pip install 'demkd[report]' installs them" in error
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert write_whole(path, b"before") == 6
    (tmp_path / "page.html.creating").mkdir()  # in the way
    with pytest.raises(ReportError, match=r"page.html cannot be written \(Is a directory\): choose a file in a folder"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    with pytest.raises(ReportError, match="No such file or directory"):
        write_whole(tmp_path / "absent" / "page.html", b"x")
    link = tmp_path / "link.html"
    link.symlink_to(tmp_path / "target.html")
    for content in (b"broken", b"not"):
        write_whole(link, content)
        assert link.is_symlink()
        assert (tmp_path / "target.html").read_bytes() == content
    write_whole(Path("/dev/null"), b"content")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_images_must_be_those_that_the_teachers_saw(cache: Path, picture_folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert "was made from something else" in invoke("inspect", cache, "--html", page, "--data", picture_folder, code=1)
    assert not page.exists()


def test_a_readme_has_yaml_and_the_facts_of_inspect_without_markup(tmp_path: Path) -> None:
    with open_cache(write_inspected(tmp_path / "cache")) as opened:
        text = readme(opened)
        _, front, rest = text.split("---\n", 2)
        facts = yaml.safe_load(front)
        assert (facts["license"], facts["size_categories"]) == ("other", ["n<1K"])
        assert facts["pretty_name"] == "Logits of 3 teachers for insects"
        assert "**License:** (fill in)" in rest
        for given, expected in (("mit", ("mit", None)), ("no: #x", ("other", "no: #x"))):
            facts = yaml.safe_load(readme(opened, given).split("---\n", 2)[1])
            assert (facts["license"], facts.get("license_name")) == expected
        table = read_statistics(opened)
        for k, name in enumerate(opened.names):
            assert f"| {name} | {table.top1[k].mean():.2%} | {table.mean_entropy[k].mean():.3f} |" in rest
        for fact in ("cd" * 32, "21" * 32, "resnet16", "torch 2.6", "crop-flip, flip True, padding 1"):
            assert fact in rest
    data = {**DATA, "split": "<img src=x> [a](b) | \x1b[31m\u202e*bold*"}
    with open_cache(write_inspected(tmp_path / "hostile", data=data)) as opened:
        text = readme(opened)
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert r"\<img src=x\> \[a\](b) \| \\x1b\[31m\\u202e\*bold\*" in text
