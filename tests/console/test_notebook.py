"""In a notebook: every report and a cache are shown as the command line shows them, safely, and bars move."""

import importlib.util
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import demkd
from demkd.console import ConsoleProgress
from demkd.console.shown import SHOWN
from demkd.display import Displayed
from demkd.pipeline import results
from demkd.report import gallery
from tests.cache import counting
from tests.conftest import CHECKOUT
from tests.pipeline.test_top_k import SILENT, TEACHERS, data, network


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebook") / "cache"
    demkd.cache_teachers(TEACHERS, data(), out=folder, views=2, features=(), **SILENT)
    return folder


def plain(html: str) -> str:
    """What a reader sees."""
    return unescape(re.sub(r"<[^>]*>", "", html))


def test_everything_that_says_it_can_be_shown_can_be() -> None:
    def kinds(of: type) -> Sequence[type]:
        return [one for kind in of.__subclasses__() for one in (kind, *kinds(kind))]

    assert {kind.__qualname__ for kind in kinds(Displayed)} == {kind.__qualname__ for kind in SHOWN}
    reports = {name for name in dir(results) if name.endswith("Report")} - {
        # lines of others
        "DeviceReport", "EpochReport", "NetworkReport", "RecomputeReport", "RepairReport", "TeacherCachingReport",
    }  # fmt: skip
    assert reports <= {kind.__name__ for kind in SHOWN}


def test_a_cache_shows_its_teachers(cache: Path) -> None:
    opened = demkd.open_cache(cache)
    shown = plain(opened._repr_html_())
    assert "60 samples of 12 classes, 2 views" in shown
    for teacher in opened.teachers:
        right = (teacher.read("prediction", 0) == teacher.labels).mean()
        assert re.search(rf"{teacher.name} +\S*Sequential +all +none +{right:.2%}", shown)
    with opened:
        pass
    assert "closed" in plain(opened._repr_html_())


def test_reports_show_what_the_command_line_shows(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = demkd.inspect(cache)
    run = demkd.train(
        network(1), train=data(), test=data(), epochs=1, out=tmp_path / "run", learning_rate=0.01, **SILENT
    )
    demkd.console.show(run)
    assert plain(run._repr_html_()).split() == capsys.readouterr().out.split()
    assert f"{summary.teachers[0].top1:.2%}" in plain(summary._repr_html_())
    found: list[Any] = [demkd.inspect(cache, **how) for how in ({"by_class": True}, {"sample": 3}, {"uncertain": 2})]
    found += [demkd.verify(cache, progress=False), demkd.pack(cache, out=tmp_path / "copy", progress=False)]
    for one in found:
        assert "<pre" in one._repr_html_()
        assert capsys.readouterr().out == "", "a notebook's cell prints nothing beside"


def test_rich_shows_the_same(cache: Path) -> None:
    console = Console(record=True, file=io.StringIO(), width=120)
    found = demkd.inspect(cache, uncertain=3)
    console.print(found)
    assert console.export_text().split() == plain(found._repr_html_()).split()


def test_a_gallery_has_the_pictures_of_its_samples(cache: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = demkd.gallery(cache, data(), disagree=4)
    html = shown._repr_html_()
    listed = [row.index for row in demkd.inspect(cache, disagree=4).rows]
    assert [int(index) for index in re.findall(r'alt="sample (\d+)"', html)] == listed
    for index, exhibit in zip(listed, shown.exhibits, strict=True):
        assert exhibit.picture == gallery._data_uri(data()[0][index].numpy())
        assert exhibit.picture in html
    assert len(demkd.gallery(cache, data()).exhibits) == 12
    with pytest.raises(demkd.UserError, match=r"data\.pixels_sha256 is"):
        demkd.gallery(cache, (data()[0].flip(0), data()[1]))


def test_a_strangers_names_are_no_html(tmp_path: Path) -> None:
    origin = counting.provenance(teacher__network="<script>alert(1)</script>")
    counting.fill(tmp_path, counting.shape(), origin=origin)
    html = demkd.open_cache(tmp_path)._repr_html_() + demkd.inspect(tmp_path)._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_bars_are_drawn_in_a_notebook_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich needs ipywidgets there; without, there are lines."""
    found = importlib.util.find_spec("rich")
    for spec in (found, None):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _, spec=spec: spec)
        told = ConsoleProgress(Console(force_jupyter=True))
        assert told._has_bars == (spec is not None)


def test_showing_is_imported_when_somebody_looks() -> None:
    code = (
        "import sys; from demkd.cache import open_cache; from demkd.pipeline.results import RunReport\n"
        "assert not {name for name in sys.modules if name.partition('.')[0] in ('rich', 'IPython', 'torch')}\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=True, timeout=60)


NOTEBOOK = """
import demkd, torch
torch.set_num_threads(1)
pixels = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8)
data = (pixels, torch.arange(40) % 4)
report = demkd.train("resnet8", train=data, test=data, epochs=2, out="run", learning_rate=0.01)
report
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages' own
def test_a_real_notebook_shows_bars_and_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="pip install ipykernel nbclient ipywidgets")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipywidgets")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]))
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    client.NotebookClient(
        page, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = page.cells[0].outputs
    assert any("application/vnd.jupyter.widget-view+json" in one.get("data", {}) for one in outputs), "bars"
    (last,) = (one for one in outputs if one.output_type == "execute_result")
    assert "test top-1" in plain(last.data["text/html"])
