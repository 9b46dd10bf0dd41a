"""Rows that `datasets` reads of an exported cache are what its reader gives, in files and batches of bounded size."""

import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import demkd
from demkd.cache import CacheDamagedError, open_cache
from demkd.cli import main
from demkd.config import ConfigError
from demkd.pipeline import parquet
from tests.cache import counting
from tests.pipeline.stages import Workshop


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    for number, name in enumerate("ab"):
        counting.fill(tmp_path / "cache", counting.shape(), teacher=name, number=number)
    return tmp_path / "cache"


@pytest.mark.parametrize("options", [{}, {"logits": "uint8"}, {"top_k": 3}], ids=str)
def test_rows_are_what_the_reader_gives(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    batch = 16 * 2 * counting.CLASSES
    monkeypatch.setattr(parquet, "_LOGITS_IN_MEMORY", batch)
    monkeypatch.setattr(parquet, "_LOGITS_IN_FILE", 4 * batch)
    demkd.pack(cache, out=tmp_path / "packed", progress=False, **options)
    report = demkd.export(tmp_path / "packed", file_format="parquet", out=tmp_path / "rows", progress=False)
    files = sorted((tmp_path / "rows").iterdir())
    assert [file.name for file in files] == [f"train-0000{number}-of-00003.parquet" for number in range(3)]
    assert (report.rows, report.file_bytes) == (150, sum(file.stat().st_size for file in files))
    groups = [pq.ParquetFile(file).metadata for file in files]
    assert max(group.row_group(i).num_rows for group in groups for i in range(group.num_row_groups)) == 16
    rows = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "rows" / "*.parquet"), split="train", cache_dir=str(tmp_path / "hf")
    ).with_format("numpy")
    assert len(rows) == 150
    with open_cache(tmp_path / "packed") as opened:
        for view in range(3):
            here = rows[view * 50 : view * 50 + 50]
            assert (here["view"] == view).all()
            assert np.array_equal(here["sample"], np.arange(50))
            assert np.array_equal(here["label"], opened.labels)
            expected, logits = opened.read_view(view), opened.logits(view, slice(None), temperature=1.0)
            for k, name in enumerate(opened.names):
                assert here[f"logits_{name}"].dtype == np.float32
                assert np.array_equal(here[f"logits_{name}"], logits[k].astype(np.float32))
                assert np.array_equal(here[f"entropy_{name}"], expected.entropy[k])
                assert np.array_equal(here[f"prediction_{name}"], expected.prediction[k])
                assert np.array_equal(here[f"weight_{name}"], expected.teacher_weights[k])


def test_with_the_data_a_row_names_its_file(workshop: Workshop, tmp_path: Path) -> None:
    arguments = ["export", workshop.cache, "--format", "parquet", "--out", tmp_path / "rows", "--data", workshop.data]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert "rows: 300 rows in 1 Parquet file(s)" in result.output, result.output
    rows = pq.read_table(tmp_path / "rows").to_pydict()
    paths = sorted(path.relative_to(workshop.data / "train") for path in (workshop.data / "train").rglob("*.png"))
    assert rows["file"] == 5 * list(map(str, paths))
    assert rows["label"] == 5 * [label for label in range(3) for _ in range(20)]


def test_what_cannot_be_exported_leaves_no_file(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(**options: Any) -> None:
        demkd.export(cache, file_format="parquet", out=tmp_path / "rows", progress=False, **options)

    with pytest.raises(ConfigError, match="`network` is of a checkpoint"):
        export(network="resnet8")
    counting.flip(file := cache / counting.file_of("b"), counting.place(file, "logits", view=2))
    monkeypatch.setattr(parquet, "_LOGITS_IN_FILE", 50 * 2 * counting.CLASSES)
    with pytest.raises(CacheDamagedError, match="logits of teacher b, view 2"):
        export()
    assert {path.name for path in (tmp_path / "rows").iterdir()} == {
        "train-00000-of-00003.parquet",
        "train-00001-of-00003.parquet",
    }
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"train-00000-of-00003.parquet is there already: choose another folder"):
        export()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pyarrow is not installed: pip install 'demkd\[parquet\]'"):
        export()
