"""A headless browser without a network, and what is asked of a page inside it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_SWITCHES = (
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# Elements that hold text of their own, and are seen.
_TEXTS = """
const texts = [...document.querySelectorAll('body *')].filter((element) =>
  [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()) &&
  !['SCRIPT', 'STYLE'].includes(element.tagName) && !element.closest('.spoken') &&
  element.checkVisibility({ checkOpacity: true }) && element.getClientRects().length);
"""

# Text that leaves its figure, or is cut off by a box that does not scroll.
CLIPPED = f"""() => {{ {_TEXTS}
  return texts.filter((element) => {{
    const box = element.getBoundingClientRect();
    const svg = element.closest('svg');
    if (svg) {{
      const frame = svg.getBoundingClientRect();
      return box.left < frame.left - 1 || box.right > frame.right + 1 ||
        box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
    }}
    for (let parent = element; parent; parent = parent.parentElement) {{
      if (parent.classList.contains('scroll')) return false;
      if (getComputedStyle(parent).overflowX !== 'visible' && parent.scrollWidth > parent.clientWidth + 1) return true;
    }}
    return box.right > innerWidth + 1 || box.left < -1;
  }}).map((element) => element.textContent.trim().slice(0, 60)); }}"""

# The lowest contrast (WCAG 2) of any text with what lies behind it, and the text.
CONTRAST = f"""() => {{ {_TEXTS}
  const parse = (text) => {{
    const numbers = (text.match(/-?[\\d.]+(e-?\\d+)?/g) || []).map(Number);
    if (text.startsWith('color(srgb')) return [...numbers.slice(0, 3).map((n) => 255 * n), numbers[3] ?? 1];
    return [...numbers.slice(0, 3), numbers[3] ?? 1];
  }};
  const over = (top, below) => top.slice(0, 3).map((n, i) => n * top[3] + below[i] * (1 - top[3]));
  const light = (colour) => {{
    const [r, g, b] = colour.map((n) => n / 255).map((n) => n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }};
  const behind = (element) => {{
    if (!element) return [255, 255, 255];
    return over(parse(getComputedStyle(element).backgroundColor), behind(element.parentElement));
  }};
  return texts.map((element) => {{
    const style = getComputedStyle(element);
    const below = behind(element);
    const ink = over(parse(element.closest('svg') ? style.fill : style.color), below);
    const [high, low] = [light(ink), light(below)].sort((a, b) => b - a);
    return [(high + 0.05) / (low + 0.05), element.textContent.trim().slice(0, 60)];
  }}).sort((a, b) => a[0] - b[0])[0]; }}"""


def find_browser() -> str:
    """Where Chromium is; skips the test if it is nowhere."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs a browser: apt-get install chromium")
    return found


@contextmanager
def browser_without_network() -> Iterator[Any]:
    """Chromium, headless, with a profile of its own that is removed afterwards."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the browser")
    path = find_browser()
    with tempfile.TemporaryDirectory() as profile, playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=path, args=list(_SWITCHES), offline=True, viewport={"width": 1440, "height": 900}
        )
        yield context
        context.close()


class OpenPage:
    """A page in the browser, and what went wrong in it.

    Attributes:
        complaints: of its console, errors, and requests for anything but the file itself.
    """

    def __init__(self, context: Any, file: Path) -> None:
        self.file = file
        self.complaints: list[str] = []
        self.page = context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(request.url))
        self.page.on("request", self._note)

    def _note(self, request: Any) -> None:
        if not request.url.startswith(("data:", self.file.as_uri())):
            self.complaints.append(request.url)

    def show(self, *, width: int, dark: bool = False) -> Any:
        """Open the file at a width."""
        self.page.set_viewport_size({"width": width, "height": 900 if width > 600 else 812})
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        self.page.goto(self.file.as_uri())
        return self.page
