"""The README's pictures exist, load nothing, and (slow) show what the commands print."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs.pictures.make import FOLDER, picture, pictures
from tests.conftest import CHECKOUT
from tests.docs.shape import shape

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


def words(svg: str) -> str:
    """The text of a picture, from top to bottom and left to right."""
    texts = [element for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]
    spans = sorted(texts, key=lambda text: (float(text.get("y", 0)), float(text.get("x", 0))))
    return " ".join(" ".join(text.itertext()) for text in spans).replace("\xa0", " ")


def test_the_readme_shows_and_describes_every_picture() -> None:
    shown = dict(re.findall(r"!\[([^]]+)]\((docs/pictures/[^)]+)\)", README))
    assert {CHECKOUT / path for path in shown.values()} == {*FOLDER.glob("*.svg"), *FOLDER.glob("*.png")}
    assert all(len(text) > 20 for text in shown)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.svg")), ids=lambda file: file.name)
def test_a_picture_loads_nothing(file: Path) -> None:
    svg = file.read_text(encoding="utf-8")
    assert words(svg).split()[:2] == ["$", "demkd"]
    assert not re.findall(r"@font-face|@import|href=|src=|url\((?!#)", svg)


def test_a_picture_has_the_command_and_its_coloured_output() -> None:
    svg = picture("demkd inspect", "one \x1b[1mbold\x1b[0m <&>\n\x1b[38;2;1;2;3mcoloured\x1b[0m\n")
    assert words(svg).split() == ["$", "demkd", "inspect", "one", "bold", "<&>", "coloured"]
    assert "font-weight: bold" in svg
    assert "#010203" in svg


@pytest.mark.slow
def test_the_pictures_show_what_the_commands_print(tmp_path: Path) -> None:
    for name, svg in pictures(tmp_path).items():
        assert shape(words(svg)) == shape(words((FOLDER / name).read_text(encoding="utf-8"))), name
