"""A picture in the terminal shows the colours that it has, where there are colours, and greys where there are none."""

import io

import numpy as np
from rich.color import ColorTriplet
from rich.console import Console
from rich.style import Style
from rich.text import Text

from demkd.console.picture import draw, explain

GENERATOR = np.random.default_rng(0)


def terminal(width: int = 80, *, colours: bool = True, no_color: bool = False) -> Console:
    system = "truecolor" if colours else None
    return Console(file=io.StringIO(), force_terminal=True, color_system=system, width=width, no_color=no_color)


def triplets(line: Text) -> list[tuple[ColorTriplet | None, ColorTriplet | None]]:
    """The colours of the upper and the lower half of every character of a line."""
    styles = [span.style for span in line.spans]
    assert all(isinstance(style, Style) for style in styles)
    return [
        (style.color and style.color.triplet, style.bgcolor and style.bgcolor.triplet)
        for style in styles
        if isinstance(style, Style)
    ]


def test_every_pixel_is_half_a_character_of_its_colour() -> None:
    pixels = GENERATOR.integers(0, 256, (32, 32, 3), np.uint8)
    lines = draw(terminal(), pixels)
    assert [line.plain for line in lines] == ["▀" * 32] * 16
    for row, line in enumerate(lines):
        for column, (upper, lower) in enumerate(triplets(line)):
            assert upper == tuple(pixels[2 * row, column])
            assert lower == tuple(pixels[2 * row + 1, column])


def test_small_pictures_are_enlarged_by_whole_numbers() -> None:
    pixels = GENERATOR.integers(0, 256, (7, 8, 3), np.uint8)
    lines = draw(terminal(), pixels)
    assert (len(lines), len(lines[0])) == (14, 32), "four times"
    assert triplets(lines[5])[13] == (tuple(pixels[10 // 4, 13 // 4]), tuple(pixels[11 // 4, 13 // 4]))
    odd = draw(terminal(), GENERATOR.integers(0, 256, (17, 20, 3), np.uint8))
    assert len(odd) == 9
    assert [over for over, _ in triplets(odd[-1])] == [under for _, under in triplets(odd[-1])], "the last row twice"


def test_large_pictures_are_averaged_to_fit() -> None:
    pixels = GENERATOR.integers(0, 256, (126, 126, 3), np.uint8)
    lines = draw(terminal(), pixels.repeat(2, 0).repeat(2, 1))
    assert len(lines) == 32
    assert max(len(line) for line in lines) == 64
    lines = draw(terminal(43), pixels)
    expected = pixels.reshape(42, 3, 42, 3, 3).mean((1, 3)).round()
    assert [len(line) for line in lines] == [42] * 21
    assert triplets(lines[4])[7] == (tuple(expected[8, 7]), tuple(expected[9, 7]))


def test_without_colours_darkness_is_drawn() -> None:
    ramp = np.linspace(0, 255, 32).round().astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (4, 32, 3))
    for console in (terminal(colours=False), terminal(no_color=True)):
        (first, second) = draw(console, pixels)
        assert first.plain == second.plain
        assert (first.plain[0], first.plain[-1]) == (" ", "@")
        places = [" .:-=+*#%@".index(character) for character in first.plain]
        assert places == sorted(places)
        assert set(places) == set(range(10))
        assert not first.spans
        assert "without colours" in explain(console)
    assert explain(terminal()) == ""
