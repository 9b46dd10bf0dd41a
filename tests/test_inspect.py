"""`inspect` in the terminal: every word at three widths, the same numbers as JSON and CSV, and what it refuses."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from demkd.cache import open_cache, write_weights
from demkd.cache.writer import write_files
from demkd.cli import main
from demkd.dataset import load_images
from tests.conftest import CHECKOUT, counting_picture
from tests.report.inspected import DATA, weights, write_inspected, write_teacher

EXPECTED = Path(__file__).parent / "expected"
LISTINGS = (
    "",
    "--teachers bob",
    "--by-class",
    "--by-class --sort -bob.weight --limit 2",
    "--uncertain 3",
    "--disagree 3",
    "--wrong-above-uniform 3",
    "--sample 12 --view-index 2",
    "--sample 12 --views",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inspected(tmp_path_factory.mktemp("inspect") / "cache")


def inspect(folder: object, *arguments: object, width: int = 80, **environment: str) -> Result:
    words = ["inspect", str(folder), *(word for argument in arguments for word in str(argument).split())]
    return CliRunner(env={"COLUMNS": str(width), **environment}).invoke(main, words)


def shown(result: Result) -> str:
    """The output without blanks at the ends of lines, and with the files' sizes, which depend on HDF5, as zeros."""
    assert result.exit_code == 0, result.output
    text = "".join(f"{line.rstrip()}\n" for line in result.stdout.splitlines())
    return re.sub(r"\d+\.\d\d\skB", lambda size: re.sub(r"\d", "0", size[0]), text)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_word_at_every_width(cache: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cache.parent)  # so that the folder has the same name everywhere
    _, *parts = (EXPECTED / f"inspect-{width}.txt").read_text(encoding="utf-8").split("$ demkd inspect cache")
    found = {options.strip(): output for options, _, output in (part.partition("\n") for part in parts)}
    assert tuple(found) == LISTINGS
    for options, expected in found.items():
        assert shown(inspect("cache", options, width=width)) == expected, options


def test_no_line_is_longer_than_the_terminal_and_no_number_is_cut(tmp_path: Path) -> None:
    """With long names: numbers are left out as a whole, or shown as a whole."""
    long = {**DATA, "class_names": ["a_very_long_class_name", "蜂蜂蜂蜂蜂蜂蜂", "c", "d"]}
    for number, name in enumerate(("shufflenet_v2_x1_0_cifar", "bob", "wide_resnet_40_2")):
        write_teacher(tmp_path, number, name=name, data=long)
    opened = open_cache(tmp_path)
    write_weights(tmp_path, opened.teachers, weights(opened.samples), weighting="a half in turn")
    for options in (*LISTINGS, "--sample 3"):
        numbers = {}
        for width in (50, 60, 80, 132, 200, 400):
            text = shown(inspect(tmp_path, options, width=width))
            assert max(cell_len(line) for line in text.splitlines()) <= width
            assert "…" not in text
            numbers[width] = set(re.findall(r"\d+\.\d+%?", text))
        assert set().union(*numbers.values()) == numbers[400]


@pytest.mark.parametrize("options", LISTINGS)
def test_json_and_csv_agree(cache: Path, options: str) -> None:
    """Numbers in full; lists are separated by blanks."""
    found = json.loads(inspect(cache, options, "--json").stdout)
    rows = found if isinstance(found, list) else found.get("teachers") or found["predictions"]
    lists = [{key: " ".join(map(str, v)) if isinstance(v, list) else v for key, v in row.items()} for row in rows]
    table = list(csv.DictReader(io.StringIO(inspect(cache, options, "--csv").stdout)))
    assert len(rows) > 0
    assert table == [{key: "" if value is None else str(value) for key, value in row.items()} for row in lists]


def test_csv_of_an_empty_list_has_its_headings(tmp_path: Path, cache: Path) -> None:
    """Where all teachers weigh the same, none weighs more than 1/K."""
    write_inspected(tmp_path, weighted=False)
    opened = open_cache(tmp_path)
    alike = np.full((len(opened.teachers), opened.num_views, opened.samples), 1 / 3, np.float32)
    write_weights(tmp_path, opened.teachers, alike, weighting="all alike")
    assert json.loads(inspect(tmp_path, "--wrong-above-uniform 3 --json").stdout) == []
    headings = inspect(cache, "--wrong-above-uniform 3 --csv").stdout.splitlines()[0]
    assert inspect(tmp_path, "--wrong-above-uniform 3 --csv").stdout == f"{headings}\n"


USAGE = [
    ("--by-class --sample 1", "--by-class and --sample exclude each other: leave one out"),
    ("--uncertain 2 --wrong-above-uniform 2", "--uncertain and --wrong-above-uniform exclude each other"),
    ("--sort top1", "--sort needs --by-class"),
    ("--score margin", "--score needs --label-issues"),
    ("--html a.html --uncertain 3", "--uncertain and --html exclude each other"),
    ("--html a.html --json", "--html and --json exclude each other"),
    ("--data digits", "--data needs --sample or --html"),
    ("--view-index 1", "--view-index needs --sample"),
    ("--views", "--views needs --sample"),
    ("--sample 1 --views --view-index 0", "--views and --view-index exclude each other"),
    ("--json --csv", "--json and --csv exclude each other"),
    ("--uncertain 0", "0 is not in the range x>=1"),
]


@pytest.mark.parametrize(("options", "message"), USAGE)
def test_options_that_contradict_each_other(cache: Path, options: str, message: str) -> None:
    result = inspect(cache, options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


REFUSED = [
    ("--by-class --sort colour", "there is no column 'colour' to sort by: choose one of index, samples, "),
    ("--sample 14", "there is no sample 14: .* has samples 0 to 13"),
    ("--sample 1 --view-index 4", "there is no view 4: .* has views 0 to 3"),
    ("--teachers ada --disagree 2", r"ada is the only teacher: disagreement needs two or more \(--teachers\)"),
    ("--teachers ada,bob --wrong-above-uniform 2", "has no weights of ada, bob: leave --teachers out, or run "),
    ("--sample 1 --data digits", r"digits is not what the teachers saw: .* made from something else: .*pixels_sha256"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_there_is_not_is_said_in_one_sentence(cache: Path, options: str, message: str) -> None:
    result = inspect(cache, options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.search(message, result.stderr), result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.fixture
def with_images(picture_folder: Path, tmp_path: Path) -> Path:
    """A cache of the images of a folder."""
    images = load_images(str(picture_folder), split="train")
    changes = {"data": images.provenance(), "policy": {**images.default_augmentation.to_dict(), "seed": 7}}
    return write_inspected(tmp_path / "cache", labels=images.labels.numpy(), **changes)


def test_the_image_is_that_of_the_sample(with_images: Path, picture_folder: Path) -> None:
    """In a pipe, as shades of gray: a character for two rows of the image, the darker the emptier."""
    lines = inspect(with_images, "--sample 23 --data", picture_folder).stdout.splitlines()
    assert [line.split() for line in lines[:3]] == [["sample", "23"], ["file", "bee/003.png"], ["label", "bee"]]
    pixels = counting_picture(1, 3) @ np.array([0.299, 0.587, 0.114])  # the fourth bee
    gray = pixels.repeat(2, 0).repeat(2, 1).reshape(16, 2, 32).mean(1) / 255
    assert [line.ljust(32) for line in lines[5:21]] == ["".join(" .:-=+*#%@"[int(g * 10)] for g in row) for row in gray]


@pytest.mark.parametrize("options", ["--disagree 3", "--label-issues 3"])
def test_lists_name_the_files(with_images: Path, picture_folder: Path, options: str) -> None:
    images = load_images(str(picture_folder), split="train")
    rows = json.loads(inspect(with_images, options, "--json --data", picture_folder).stdout)
    assert [row["file"] for row in rows] == [images.file_of(row["index"]) for row in rows]
    for form in ("", "--csv"):
        assert rows[0]["file"] in inspect(with_images, options, form, "--data", picture_folder).stdout


def test_a_cache_names_its_files_without_the_data(with_images: Path, picture_folder: Path, tmp_path: Path) -> None:
    """Its files.json is that of these images, and unchanged, or is refused."""
    images = load_images(str(picture_folder), split="train")
    names = [str(images.file_of(index)) for index in range(len(images))]
    provenance = open_cache(with_images).teachers[0].provenance
    write_files(with_images, provenance, names)
    rows = json.loads(inspect(with_images, "--uncertain 3 --json").stdout)
    assert [row["file"] for row in rows] == [names[row["index"]] for row in rows]
    assert rows[0]["file"] in inspect(with_images, "--uncertain 3 --csv").stdout
    assert ["file", "bee/003.png"] in [line.split() for line in inspect(with_images, "--sample 23").stdout.splitlines()]
    inspect(with_images, "--html", tmp_path / "page.html")
    assert rows[0]["file"] in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "file" not in inspect(with_images, "--by-class").stdout

    text = (with_images / "files.json").read_text()
    write_files(with_images, provenance, names[1:])
    shorter = (with_images / "files.json").read_text()
    for wrong in (text.replace("003", "004", 1), shorter, "[" * 100_000, "{}"):
        (with_images / "files.json").write_text(wrong)
        result = inspect(with_images, "--sample 23")
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert "files.json is damaged, or of other images: remove it" in result.stderr


def test_inspect_imports_neither_torch_nor_scipy(cache: Path) -> None:
    code = (
        "import sys; from demkd.cli import main\n"
        "for options in ('', '--by-class', '--wrong-above-uniform 3', '--sample 12'):\n"
        f"    try: main(['inspect', {str(cache)!r}, *options.split()])\n"
        "    except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'scipy', 'h5py', 'matplotlib'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_people_do_not_see_the_weight_of_a_single_teacher(tmp_path: Path) -> None:
    """It is 1."""
    write_teacher(tmp_path, 1)
    opened = open_cache(tmp_path)
    write_weights(tmp_path, opened.teachers, weights(opened.samples)[:1] * 0 + 1, weighting="of one")
    for options in ("", "--by-class", "--uncertain 3", "--sample 3", "--sample 3 --views"):
        text = inspect(tmp_path, options, width=400).stdout
        assert "1.000" not in text
        assert "bob" in text
