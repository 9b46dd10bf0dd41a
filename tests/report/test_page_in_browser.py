"""Both pages in a real browser without a network, on a phone and on a desktop."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demkd.cache import open_cache
from demkd.report.compare import compare, read_run
from demkd.report.page import write_cache_page, write_runs_page
from demkd.report.statistics import read_statistics
from tests.report import run_folders
from tests.report.inspected import DATA, write_inspected

NAMES = [f"a rather long name {number}" if number % 7 else f"<b>{number}" for number in range(40)]
LABELS = np.arange(120, dtype=np.int64) % len(NAMES)
PIXELS = np.random.default_rng(0).integers(0, 256, (len(LABELS), 6, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    data = {**DATA, "samples": len(LABELS), "class_names": NAMES}
    with open_cache(write_inspected(folder / "cache", data=data, labels=LABELS)) as cache:
        write_cache_page(read_statistics(cache), folder / "cache.html", images=PIXELS.__getitem__)
    runs = [read_run(run) for run in run_folders.write_runs(folder / "runs with a name of some length")]
    write_runs_page(runs, compare(runs, baseline="kd"), folder / "runs.html")
    return {name: folder / f"{name}.html" for name in ("cache", "runs")}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        profile = tmp_path_factory.mktemp("profile")
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=path, args=["--no-sandbox", "--headless", "--disable-gpu"], offline=True
        )
        yield context
        context.close()


@pytest.mark.parametrize("name", ["cache", "runs"])
@pytest.mark.parametrize("width", [375, 1440])
def test_a_page_is_complete_and_fits_the_window(browser: Any, files: dict[str, Path], name: str, width: int) -> None:
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(files[name].as_uri())
    assert page.title().endswith("- demkd")
    images = page.locator("img")
    assert images.count() >= 8
    assert images.evaluate_all("all => all.every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []
    page.close()


def test_scripts_do_not_run(browser: Any, files: dict[str, Path]) -> None:
    """The second lock: even in the page's text."""
    altered = files["runs"].with_name("altered.html")
    altered.write_text(files["runs"].read_text().replace("<main>", "<main><script>window.hacked = 1</script>", 1))
    page = browser.new_page()
    page.goto(altered.as_uri())
    assert page.evaluate("window.hacked") is None
    page.close()
