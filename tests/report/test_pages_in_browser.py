"""Both pages in a real browser, narrow and wide, light and dark; a failed test leaves a picture of what it saw."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demkd.cache import open_cache
from demkd.report.comparison import compare_runs, read_run
from demkd.report.pages import write_cache_page, write_runs_page
from demkd.report.statistics import read_statistics
from tests.conftest import CHECKOUT
from tests.report import run_folders
from tests.report.browser import CLIPPED, CONTRAST, OpenPage, browser_without_network
from tests.report.inspected import DATA, write_inspected

ARTEFACTS = CHECKOUT / "runs" / "test-artefacts"
WIDTHS = (375, 1440)
NAMES = [f"a rather long name {number}" if number % 7 else f"<b>{number}" for number in range(40)]
LABELS = np.arange(120, dtype=np.int64) % len(NAMES)
PIXELS = np.random.default_rng(0).integers(0, 256, (len(LABELS), 6, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def context() -> Iterator[Any]:
    with browser_without_network() as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a cache with pictures and many classes, that of runs, and that of a cache without pictures."""
    folder = tmp_path_factory.mktemp("pages")
    data = {**DATA, "samples": len(LABELS), "class_names": NAMES}
    with open_cache(write_inspected(folder / "cache", data=data, labels=LABELS)) as cache:
        statistics = read_statistics(cache)
        write_cache_page(statistics, folder / "cache.html", picture=PIXELS.__getitem__)
        write_cache_page(statistics, folder / "bare.html")
    runs = [read_run(run) for run in run_folders.write_runs(folder / "runs with a name of some length")]
    write_runs_page(runs, compare_runs(runs, baseline=str(runs[1].folder)), folder / "runs.html")
    return {name: folder / f"{name}.html" for name in ("cache", "runs", "bare")}


@pytest.fixture
def opened(context: Any, files: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[OpenPage]:
    name = request.node.callspec.params["name"]
    failed = request.session.testsfailed
    page = OpenPage(context, files[name])
    yield page
    if request.session.testsfailed > failed:
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        label = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
        page.page.screenshot(path=ARTEFACTS / f"{label}.png", full_page=True)
    page.page.close()


every_page = pytest.mark.parametrize("name", ["cache", "runs", "bare"])
every_width = pytest.mark.parametrize("width", WIDTHS)


@every_page
def test_a_page_opens_without_a_complaint_or_a_request(opened: OpenPage, name: str) -> None:
    page = opened.show(width=1440)
    page.wait_for_load_state("load")
    assert opened.complaints == []
    assert page.title().endswith("- demkd")


@every_page
@every_width
def test_every_figure_can_be_seen_and_read(opened: OpenPage, name: str, width: int) -> None:
    page = opened.show(width=width)
    figures = page.locator("figure").all()
    assert len(figures) >= 8
    for figure in figures:
        assert figure.locator("h3").inner_text()
        assert figure.locator("figcaption").inner_text().endswith(".")
        assert figure.locator(".legend li").count() >= 1
        drawing = figure.locator("svg[role=img]")
        assert len(drawing.get_attribute("aria-label")) > 30
        box = drawing.bounding_box()
        assert box["width"] > 250
        assert box["height"] > 100
        sizes = drawing.locator("text").evaluate_all(
            """texts => texts.map(text => {
              const { a, b } = text.getScreenCTM();
              return Number.parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
            })"""
        )
        assert min(sizes) > 9


@every_page
@every_width
def test_nothing_is_wider_than_the_window(opened: OpenPage, name: str, width: int) -> None:
    page = opened.show(width=width)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(CLIPPED) == []
    wide = page.locator(".scroll").evaluate_all("all => all.filter(e => e.scrollWidth > e.clientWidth).length")
    assert wide > 0 or width > 1000, "the tables are wider than a phone, and scroll in their own boxes"


@every_page
@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_by_day_and_by_night(opened: OpenPage, name: str, dark: bool) -> None:
    page = opened.show(width=1440, dark=dark)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    contrast, text = page.evaluate(CONTRAST)
    assert contrast >= 4.5, text
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(red, green, blue) < 50) == dark
    ink = page.locator("figure svg text").first.evaluate("text => getComputedStyle(text).fill")
    assert ink == page.evaluate("getComputedStyle(document.body).color"), "figures have the page's ink"


def column(page: Any, table: str, position: int) -> list[str]:
    """A column's texts, top to bottom."""
    texts: list[str] = page.locator(f"#{table} tbody tr > :nth-child({position})").all_inner_texts()
    return texts


@pytest.mark.parametrize("name", ["bare"])
def test_tables_sort_by_mouse_and_keyboard(opened: OpenPage, name: str) -> None:
    page = opened.show(width=1440)
    headings = page.locator("#classes thead th")
    entropy, label = headings.nth(4), headings.nth(0)
    values = [float(value) for value in column(page, "classes", 5)]
    entropy.locator("button").click()
    assert entropy.get_attribute("aria-sort") == "descending"
    assert [float(value) for value in column(page, "classes", 5)] == sorted(values, reverse=True)
    entropy.locator("button").focus()
    page.keyboard.press("Enter")
    assert entropy.get_attribute("aria-sort") == "ascending"
    assert [float(value) for value in column(page, "classes", 5)] == sorted(values)
    label.locator("button").click()
    assert (label.get_attribute("aria-sort"), entropy.get_attribute("aria-sort")) == ("ascending", None)
    numbers = [int(text.removeprefix("a rather long name ").removeprefix("<b>")) for text in column(page, "classes", 1)]
    assert numbers == [*range(0, 40, 7), *(number for number in range(40) if number % 7)]


@pytest.mark.parametrize("name", ["runs"])
def test_cells_without_a_number_come_last(opened: OpenPage, name: str) -> None:
    page = opened.show(width=1440)
    button = page.locator("#final thead th").nth(6).locator("button")  # the interval, which a single seed lacks
    for _ in range(2):
        button.click()
        texts = column(page, "final", 7)
        assert [text == "-" for text in texts] == [False, True, True]
    assert column(page, "final", 1)[0] == "de-mkd ★"


@pytest.mark.parametrize("name", ["cache"])
def test_galleries_show_the_very_pixels(opened: OpenPage, name: str) -> None:
    page = opened.show(width=375)
    pictures = page.locator(".gallery img")
    assert pictures.count() == 4 * 12
    shown = pictures.first
    index = int(shown.get_attribute("alt").split(",")[0].removeprefix("Sample "))
    values = shown.evaluate(
        """(picture) => {
          const canvas = document.createElement('canvas');
          canvas.width = picture.naturalWidth; canvas.height = picture.naturalHeight;
          const context = canvas.getContext('2d');
          context.drawImage(picture, 0, 0);
          return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
        }"""
    )
    np.testing.assert_array_equal(np.reshape(values, (6, 8, 4))[..., :3], PIXELS[index])
    assert shown.evaluate("picture => getComputedStyle(picture).imageRendering") == "pixelated"
    assert shown.bounding_box()["width"] > 100


@pytest.mark.parametrize("name", ["bare"])
def test_scripts_of_strangers_do_not_run(opened: OpenPage, name: str) -> None:
    """The second lock: even in the page's text, no script runs but the page's own."""
    opened.show(width=1440)
    altered = opened.file.with_name("altered.html")
    text = opened.file.read_text().replace("<main>", "<main><script>window.hacked = 1</script>", 1)
    altered.write_text(text)
    opened.page.goto(altered.as_uri())
    assert opened.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)
