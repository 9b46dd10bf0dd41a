"""`inspect` in the terminal: every word at three widths, the same numbers as JSON and CSV, and what it refuses."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from demkd.cache import open_cache, write_weights
from demkd.cli import main
from demkd.dataset import load_images
from demkd.pipeline.preparation import view_facts
from tests.conftest import CHECKOUT, counting_picture
from tests.report.inspected import DATA, Plain, weights, write_inspected, write_teacher

EXPECTED = Path(__file__).parent / "expected"
LISTINGS = (
    "",
    "--teachers bob",
    "--by-class",
    "--by-class --sort -bob.weight --limit 2",
    "--uncertain 3",
    "--disagree 3",
    "--wrong-and-trusted 3",
    "--sample 12 --slot 2",
    "--sample 12 --views",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inspected(tmp_path_factory.mktemp("inspect") / "cache")


@pytest.fixture
def here(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the folder has the same name everywhere."""
    monkeypatch.chdir(cache.parent)


def inspect(folder: object, *arguments: object, width: int = 80, **environment: str) -> Result:
    words = ["inspect", str(folder), *(word for argument in arguments for word in str(argument).split())]
    return CliRunner(env={"COLUMNS": str(width), **environment}).invoke(main, words)


def transcript(width: int) -> Iterator[tuple[str, str]]:
    """What `expected/inspect-<width>.txt` says, command by command."""
    parts = (EXPECTED / f"inspect-{width}.txt").read_text(encoding="utf-8").split("$ demkd inspect cache")
    for part in parts[1:]:
        options, _, output = part.partition("\n")
        yield options.strip(), output


def shown(result: Result) -> str:
    """The output without blanks at the ends of lines, and with the files' sizes, which depend on HDF5, as zeros."""
    assert result.exit_code == 0, result.output
    text = "".join(f"{line.rstrip()}\n" for line in result.stdout.splitlines())
    return re.sub(r"\d+\.\d\d\skB", lambda size: re.sub(r"\d", "0", size[0]), text)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_word_at_every_width(width: int) -> None:
    found = dict(transcript(width))
    assert tuple(found) == LISTINGS
    for options, expected in found.items():
        assert shown(inspect("cache", options, width=width)) == expected, options


@pytest.mark.parametrize("options", [*LISTINGS, "--sample 3"])
def test_no_line_is_longer_than_the_terminal_and_no_figure_is_cut(tmp_path: Path, options: str) -> None:
    """With names that are longer than a narrow terminal likes: figures are left out as a whole, or shown as a whole."""
    long = {**DATA, "class_names": ["a_very_long_class_name", "蜂蜂蜂蜂蜂蜂蜂", "c", "d"]}
    for number, name in enumerate(("shufflenet_v2_x1_0_cifar", "bob", "wide_resnet_40_2")):
        write_teacher(tmp_path, number, name=name, data=long)
    opened = open_cache(tmp_path)
    write_weights(tmp_path, opened.teachers, weights(opened.samples), weighting="a half in turn")
    wide = set(_figures(shown(inspect(tmp_path, options, width=400))))
    for width in (50, 60, 80, 132, 200):
        text = shown(inspect(tmp_path, options, width=width))
        assert max(cell_len(line) for line in text.splitlines()) <= width
        assert "…" not in text
        assert set(_figures(text)) <= wide


def _figures(text: str) -> list[str]:
    return re.findall(r"\d+\.\d+%?", text)


@pytest.mark.parametrize("options", LISTINGS)
def test_json_and_csv_say_the_same(cache: Path, options: str) -> None:
    report = json.loads(inspect(cache, options, "--json").stdout)
    rows = report.get("rows") or report.get("answers") or report["teachers"]
    table = list(csv.DictReader(io.StringIO(inspect(cache, options, "--csv").stdout)))
    assert len(rows) == len(table) > 0
    for row, line in zip(rows, table, strict=True):
        flat = _flat(row)
        assert flat.keys() <= line.keys()
        assert {key: line[key] for key in flat} == {
            key: "" if value is None else str(value) for key, value in flat.items()
        }


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested names joined by dots; list items by their name, or by their number."""
    if isinstance(value, list):
        named = [
            (str(inner.pop("name")) if isinstance(inner, dict) else f"{name}.{i}", inner)
            for i, inner in enumerate(value)
        ]
        return {key: kept for place, inner in named for key, kept in _flat(inner, place).items()}
    if isinstance(value, dict):
        inside = [_flat(inner, f"{name}.{key}" if name else key) for key, inner in value.items()]
        return {key: kept for one in inside for key, kept in one.items()}
    return {name: value}


def test_json_has_numbers_in_full(cache: Path) -> None:
    plain = Plain(cache)
    report = json.loads(inspect(cache, "--uncertain 1 --json").stdout)
    index = report["rows"][0]["index"]
    assert report["rows"][0]["score"] == plain.entropy[:, :, index].astype(np.float64).mean()
    views = json.loads(inspect(cache, "--sample 5 --views --json").stdout)
    entropies = [[said["entropy"] for said in row["teachers"]] for row in views["rows"]]
    assert np.array_equal(np.array(entropies).T, plain.entropy[:, :, 5])


def test_csv_of_an_empty_list_has_its_headings(tmp_path: Path, cache: Path) -> None:
    """Where all teachers weigh alike, none is trusted, wrong or not."""
    write_inspected(tmp_path, weighted=False)
    opened = open_cache(tmp_path)
    alike = np.full((len(opened.teachers), opened.num_views, opened.samples), 1 / 3, np.float32)
    write_weights(tmp_path, opened.teachers, alike, weighting="all alike")
    assert json.loads(inspect(tmp_path, "--wrong-and-trusted 3 --json").stdout)["rows"] == []
    headings = inspect(cache, "--wrong-and-trusted 3 --csv").stdout.splitlines()[0]
    assert inspect(tmp_path, "--wrong-and-trusted 3 --csv").stdout == f"{headings}\n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--by-class --limit 1", "1 class by entropy, largest first"),
        ("--by-class --limit 2", "2 classes by entropy, largest first"),
        ("--uncertain 1", "1 sample with the highest entropy, averaged over teachers and views"),
    ],
)
def test_one_is_not_many(cache: Path, options: str, line: str) -> None:
    assert inspect(cache, options).stdout.splitlines()[0] == line


USAGE = [
    ("--by-class --sample 1", "--by-class and --sample exclude each other: leave one out"),
    ("--uncertain 2 --wrong-and-trusted 2", "--uncertain and --wrong-and-trusted exclude each other"),
    ("--sort top1", "--sort needs --by-class"),
    ("--score margin", "--score needs --suspect"),
    ("--suspect 3 --uncertain 3", "--uncertain and --suspect exclude each other"),
    ("--limit 3 --uncertain 3", "--limit needs --by-class"),
    ("--slot 1", "--slot needs --sample"),
    ("--views", "--views needs --sample"),
    ("--data digits --by-class", "--data needs --sample"),
    ("--sample 1 --views --slot 0", "--views and --slot exclude each other"),
    ("--sample 1 --data digits --json", "--data and --json exclude each other"),
    ("--json --csv", "--json and --csv exclude each other"),
    ("--uncertain 0", "0 is not in the range x>=1"),
]


@pytest.mark.parametrize(("options", "message"), USAGE)
def test_options_that_contradict_each_other(cache: Path, options: str, message: str) -> None:
    result = inspect(cache, options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


REFUSED = [
    ("--by-class --sort colour", "there is no column 'colour' to sort by: choose one of number, samples, "),
    ("--sample 14", "there is no sample 14: .* has samples 0 to 13"),
    ("--sample -1", "there is no sample -1: "),
    ("--sample 1 --slot 4", "slot 4 is asked for, and .* has slots 0 to 3"),
    (
        "--teachers ada --disagree 2",
        "ada is the only teacher: disagreement needs two or more \\(--teachers\\)",
    ),
    ("--teachers ada,bob --wrong-and-trusted 2", "has no weights of ada, bob: leave --teachers out, or run "),
    ("--sample 1 --data digits", r"was made from something else: .*data\.pixels_sha256 is cdcd"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_there_is_not_is_said_in_one_sentence(cache: Path, options: str, message: str) -> None:
    result = inspect(cache, options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.search(message, result.stderr), result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_the_picture_is_that_of_the_sample(picture_folder: Path, tmp_path: Path) -> None:
    """In a pipe, as shades of grey: a character for two lines of the picture, the darker the emptier."""
    pictures = load_images(str(picture_folder), split="train")
    changes = {"data": pictures.facts(), "policy": view_facts(pictures.default_policy, 7)}
    write_inspected(tmp_path, labels=pictures.labels.numpy(), **changes)
    lines = inspect(tmp_path, "--sample 23 --data", picture_folder).stdout.splitlines()
    assert lines[0].startswith("sample 23, label bee, slot 0")
    pixels = counting_picture(1, 3) @ np.array([0.299, 0.587, 0.114])  # the fourth bee
    grey = pixels.repeat(2, 0).repeat(2, 1).reshape(16, 2, 32).mean(1) / 255
    assert [line.ljust(32) for line in lines[1:17]] == ["".join(" .:-=+*#%@"[int(g * 10)] for g in row) for row in grey]
    assert lines[17].startswith("drawn without colours: from dark to light")


def test_without_data_a_line_says_how_to_see_the_picture(cache: Path) -> None:
    assert "--data DATA draws the picture" in inspect(cache, "--sample 3").stdout


@pytest.mark.parametrize("options", LISTINGS)
def test_looking_needs_neither_torch_nor_scipy(cache: Path, options: str) -> None:
    code = (
        "import sys; from demkd.cli import main\n"
        f"try: main(['inspect', {str(cache)!r}, *{options.split()!r}])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'scipy', 'h5py', 'matplotlib'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_colours_are_extra(cache: Path) -> None:
    """On a colour terminal the text is the same, but for what styles it."""
    coloured = inspect(cache, "--uncertain 3", FORCE_COLOR="1", TERM="xterm-256color").stdout
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == inspect(cache, "--uncertain 3").stdout


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    evil = {**DATA, "class_names": ["ant\x1b[2J", "bee\n", "cat", "dog"]}
    for number in range(2):
        write_teacher(tmp_path, number, data=evil)
    assert open_cache(tmp_path).class_names[0] == "ant\x1b[2J"
    for options in ("--by-class", "--uncertain 14", "--sample 0", "--sample 0 --views"):
        assert "\x1b" not in inspect(tmp_path, options).stdout
        assert "ant?[2J" in inspect(tmp_path, options).stdout
