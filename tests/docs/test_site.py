"""The site builds without a warning, loads nothing from elsewhere, and has every public name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import demkd
from docs.write_api import page
from tests.conftest import CHECKOUT


def test_every_public_name_is_documented() -> None:
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", page(), re.MULTILINE | re.DOTALL))
    assert set(dir(demkd)) <= set(sections)
    for name in dir(demkd):
        prose = re.sub(r"```.*?```", "", sections[name], flags=re.DOTALL).strip()
        assert len(prose) > 10, name
    assert "callbacks: Sequence[Callback] = ()" in sections["distill"]
    assert "- `top_k: int | None = None`: Keep only the K largest logits" in sections["CacheConfig"]
    assert "- `epochs: int = 240`: Number of epochs. In [1, 1e6]." in sections["TrainConfig"]
    assert "`set_epoch(epoch: int)" in sections["SoftTargetLoader"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="pip install 'demkd[test]' installs it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "-f", "docs/site/mkdocs.yml", "--strict", "--quiet"]
    command += ["--site-dir", str(folder)]
    built = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=200)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, built.stderr
    return folder


def test_every_page_is_in_the_site_with_its_pictures(site: Path) -> None:
    pages = {"cli", "api", *(file.stem for file in (CHECKOUT / "docs").glob("*.md"))}
    assert {file.parent.name for file in site.glob("*/index.html")} >= pages
    home = (site / "index.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<img [^>]*src="(pictures/[^"]+)"', home)
    assert pictures
    assert all((site / picture).exists() for picture in pictures)
    assert not list(site.rglob("*.py"))


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for file in site.rglob("*.html"):
        text = file.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)"', text)
        fetched += re.findall(r'<link [^>]*href="([^"]+)"', text)
        assert not [one for one in fetched if re.match(r"(?:https?:)?//", one)], file
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//", style.read_text(encoding="utf-8")), style
