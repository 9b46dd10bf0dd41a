"""docs/runs.md lists the files, fields and tags of a real run, all of them and no others."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from demkd.pipeline.events import scalars
from tests.conftest import CHECKOUT
from tests.pipeline.stages import Workshop

PAGE = CHECKOUT / "docs" / "runs.md"


@pytest.fixture(scope="module")
def runs(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run of labels alone, one of each kind of terms, and one with features."""
    workshop = Workshop(data=picture_folder, folder=tmp_path_factory.mktemp("workshop"))
    workshop.make()
    methods = ("ce", "kd", "dist", "mlkd", "de-mkd")
    for method in methods:
        workshop.distill(workshop.folder / method, method=method, learning_rate=0.01)
    return [workshop.folder / method for method in methods]


def column(section: str, number: int) -> list[str]:
    """A column of the first table of a section: what stands between backquotes."""
    text = PAGE.read_text(encoding="utf-8").partition(f"# {section}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+)`", row[number])[0] for row in rows]


def fields(line: Mapping[str, Any], prefix: str = "") -> set[str]:
    """The names of a line's values, those of tables with a dot."""
    names: set[str] = set()
    for name, value in line.items():
        names |= fields(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name}
    return names


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_field_of_a_line_is_documented_and_no_other(runs: list[Path]) -> None:
    found = set().union(*(fields(line) for run in runs for line in lines(run)))
    documented = column("metrics.jsonl", 0)
    assert set(documented) == found
    assert len(documented) == len(set(documented))


def test_the_files_of_a_run_are_those_documented(runs: list[Path]) -> None:
    pytest.importorskip("tensorboard", reason="without tensorboard there is no event file")
    for run in runs:
        assert {file.name for file in run.iterdir()} == set(column("A run's folder", 0))


def test_every_tag_is_documented_with_the_field_it_shows(runs: list[Path]) -> None:
    """Each documented field, taken from a line by its path, is what the tag beside it shows."""
    pairs = list(zip(column("TensorBoard", 0), column("TensorBoard", 1), strict=True))
    for run in runs:
        for line in lines(run):
            expected: dict[str, float] = {}
            for tag, field in pairs:
                expected |= values_of(line, tag, field)
            assert scalars(line) == expected


def values_of(line: Mapping[str, Any], tag: str, field: str) -> dict[str, float]:
    """A documented row, spelt out for one line: a tag a term of the loss, and a tag a teacher."""
    table, _, name = field.rpartition(".")
    if name == "TERM":
        return {tag.replace("TERM", term): value for term, value in line[table].items()}
    if table and not line[table]:
        return {}
    value = line[table][name] if table else line[name]
    if "TEACHER" not in tag:
        return {tag: value}
    return {tag.replace("TEACHER", teacher): one for teacher, one in zip(line[table]["names"], value, strict=True)}
