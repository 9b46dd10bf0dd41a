"""A cache as Parquet, for `datasets.load_dataset("parquet", ...)` and the hub's viewer: one row per sample and view.

    sample, view, label, file                      file: the image's path, if the data are given and have files
    logits_T, entropy_T, prediction_T, weight_T    of teacher T; logits are a list of C float32

Rows are in the order of the views, and in a view in that of the samples. One batch of rows is in memory at a time.
"""

import json
import os
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from demkd.cache import Cache
from demkd.cache.disk import disk_errors_in_words, replace_durably
from demkd.config import ConfigError
from demkd.errors import visible_line
from demkd.pipeline.progress import Progress
from demkd.pipeline.results import ParquetReport

_LOGITS_IN_MEMORY, _LOGITS_IN_FILE = 1 << 22, 1 << 27  # 16 MB, 512 MB before compression


def export_rows(cache: Cache, out: Path, file_of: Callable[[int], str | None], progress: Progress) -> ParquetReport:
    """Write `train-00000-of-00003.parquet` and so on into a folder; each gets its name when it is complete."""
    try:
        from pyarrow.parquet import ParquetWriter
    except ImportError:
        raise ConfigError("pyarrow is not installed: pip install 'demkd[parquet]' installs it") from None
    logits_per_row = len(cache.teachers) * cache.classes
    rows = max(1, _LOGITS_IN_MEMORY // logits_per_row)
    batches = cache.num_views * -(-cache.samples // rows)
    count = min(batches, -(-cache.num_views * cache.samples * logits_per_row // _LOGITS_IN_FILE))
    files = [out / f"train-{number:05}-of-{count:05}.parquet" for number in range(count)]
    if others := set(out.glob("*.parquet")) - set(files):  # which would be read too
        raise ConfigError(f"{min(others)} is there already: choose another folder (`out`)")
    out.mkdir(parents=True, exist_ok=True)
    tables = _tables(cache, rows, file_of)
    with progress.task("writing", total=cache.num_views * cache.samples, unit="views") as task:
        for file, part in zip(files, np.array_split(np.arange(batches), count), strict=True):
            creating = file.with_name(f"{file.name}.creating")
            with disk_errors_in_words(creating, remove=True):
                creating.unlink(missing_ok=True)  # a link would be followed, and a pipe would block
                first = next(tables)
                with creating.open("wb") as target:
                    with ParquetWriter(target, first.schema, compression="zstd") as writer:
                        for table in chain([first], islice(tables, len(part) - 1)):
                            writer.write_table(table)
                            task.advance(len(table))
                    target.flush()
                    os.fsync(target.fileno())
                replace_durably(creating, file)
    file_bytes = sum(file.stat().st_size for file in files)
    return ParquetReport(folder=out, files=count, rows=cache.num_views * cache.samples, file_bytes=file_bytes)


def _tables(cache: Cache, rows: int, file_of: Callable[[int], str | None]) -> Iterator[Any]:
    """The rows, so many at a time."""
    import pyarrow as pa

    metadata = {"class_names": json.dumps(cache.class_names)}
    for view in range(cache.num_views):
        seen = cache.read_view(view)
        cache.check_logits(view, temperatures=[1.0])
        for start in range(0, cache.samples, rows):
            these = slice(start, min(start + rows, cache.samples))
            samples = np.arange(these.start, these.stop)
            columns: dict[str, Any] = {
                "sample": samples,
                "view": np.full(len(samples), view, np.int32),
                "label": cache.labels[these],
            }
            if file_of(0) is not None:
                columns["file"] = [visible_line(str(file_of(sample))) for sample in samples.tolist()]
            for k, logits in enumerate(cache.logits(view, these, temperature=1.0)):
                name, values = cache.names[k], logits.astype(np.float32).reshape(-1)
                ends = np.arange(0, len(values) + 1, cache.classes, dtype=np.int32)
                columns[f"logits_{name}"] = pa.ListArray.from_arrays(ends, values)
                columns[f"entropy_{name}"] = seen.entropy[k, these]
                columns[f"prediction_{name}"] = seen.prediction[k, these]
                if seen.teacher_weights is not None:
                    columns[f"weight_{name}"] = seen.teacher_weights[k, these]
            yield pa.table(columns).replace_schema_metadata(metadata)
