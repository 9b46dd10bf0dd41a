"""docs/runs.md lists exactly the files, fields and tags of a real run."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from demkd.pipeline.runs import RunFolder, scalars
from tests.conftest import CHECKOUT
from tests.pipeline.stages import Workshop

PAGE = CHECKOUT / "docs" / "runs.md"


@pytest.fixture(scope="module")
def runs(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run of labels alone, one of each kind of terms, and one with features."""
    place = tmp_path_factory.mktemp("runs")
    folders = [place / method for method in ("ce", "kd", "dist", "rank", "mlkd", "crld", "de-mkd")]
    for folder in folders:
        workshop.distill(folder, method=folder.name, learning_rate=0.01, views=4)
    return folders


def column(section: str, number: int) -> list[str]:
    """A column of the first table of a section, in backticks."""
    text = PAGE.read_text(encoding="utf-8").partition(f"# {section}\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+)`", row[number])[0] for row in rows]


def fields(line: Mapping[str, Any], prefix: str = "") -> set[str]:
    names: set[str] = set()
    for name, value in line.items():
        names |= fields(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name}
    return names


def test_every_field_of_a_line_is_documented_and_no_other(runs: list[Path]) -> None:
    found = set().union(*(fields(line) for run in runs for line in RunFolder(run).read_metrics()))
    documented = column("metrics.jsonl", 0)
    assert set(documented) == found
    assert len(documented) == len(set(documented))


def test_the_files_of_a_run_are_those_documented(runs: list[Path]) -> None:
    pytest.importorskip("tensorboard", reason="without tensorboard there is no event file")
    for run in runs:
        assert {file.name for file in run.iterdir()} == set(column("A run's folder", 0))


def test_every_tag_is_documented_with_the_field_it_shows(runs: list[Path]) -> None:
    pairs = list(zip(column("TensorBoard", 0), column("TensorBoard", 1), strict=True))
    for run in runs:
        for line in RunFolder(run).read_metrics():
            expected: dict[str, float] = {}
            for tag, field in pairs:
                expected |= values_of(line, tag, field)
            assert scalars(line) == expected


def values_of(line: Mapping[str, Any], tag: str, field: str) -> dict[str, float]:
    """The tags of a documented row: one per term of the loss, or teacher."""
    table, _, name = field.rpartition(".")
    if name == "TERM":
        return {tag.replace("TERM", term): value for term, value in line[table].items()}
    if table and not line[table]:
        return {}
    value = line[table][name] if table else line[name]
    if value is None:  # of validation images, in a run without
        return {}
    if "TEACHER" not in tag:
        return {tag: value}
    return {tag.replace("TEACHER", teacher): one for teacher, one in zip(line[table]["names"], value, strict=True)}
