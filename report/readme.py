"""README.md of a packed cache: its content, origin, quality, size and use, with the front matter of Hugging Face's hub.

What only its author knows is marked "(fill in)"; the license, if it is not given.
"""

import json
import math
import re

from demkd.cache import Cache
from demkd.cache.shards import SUMS
from demkd.report import inspect
from demkd.report.statistics import read_statistics
from demkd.report.table import Table, escape_markdown, facts, to_markdown

_SIZES = (("n<1K", 1e3), ("1K<n<10K", 1e4), ("10K<n<100K", 1e5), ("100K<n<1M", 1e6), ("1M<n<10M", 1e7))


def readme(cache: Cache, license_name: str | None = None) -> str:
    """The text, in Markdown; a license is an identifier of the hub, such as cc-by-4.0, or any text."""
    front = "other  # fill in: that of the data and of the teachers' weights"
    if license_name:  # the hub refuses an unknown identifier
        known = re.fullmatch(r"[a-z][a-z0-9.-]*", license_name)
        front = json.dumps(license_name) if known else f"other\nlicense_name: {json.dumps(license_name)}"
    terms = (
        escape_markdown(license_name) if license_name else "(fill in): that of the data and of the teachers' weights"
    )
    overview = inspect.overview(read_statistics(cache))
    name, count = overview["data"] or "a data set", len(cache.teachers)
    title = f"Logits of {count} {'teacher' if count == 1 else 'teachers'} for {name}"
    size = next((word for word, most in _SIZES if cache.samples < most), "10M<n<100M")
    origin = "".join(f"- {key}: {escape_markdown(text)}\n" for key, text in facts(overview) if key != "folder")
    digests = "".join(
        f"- SHA-256 of {what}: `{digest}`\n"
        for what, digest in (
            ("the pixels", overview["pixels_sha256"]),
            ("the labels", overview["labels_sha256"]),
            *(
                (
                    f"the weights of {escape_markdown(teacher.name)}",
                    teacher.provenance.identity["teacher"]["state_sha256"],
                )
                for teacher in cache.teachers
            ),
        )
        if digest and digest.isalnum()
    )
    tables = "\n".join(
        f"## {table.title}\n\n{to_markdown(table)}\n{table.notes()}\n"
        for table in overview.values()
        if isinstance(table, Table)
    )
    packed = dict.fromkeys(str(teacher.provenance.notes.get("packed", "")) for teacher in cache.teachers)
    notes = "".join(f"\nNote: {escape_markdown(note)}.\n" for note in packed if note)
    kept = dict.fromkeys(
        f"{teacher.shape.encoding}: "
        + ("all" if teacher.shape.top_k is None else f"the {teacher.shape.top_k} largest, and the sum of the others")
        for teacher in cache.teachers
    )
    check = f"    sha256sum -c {SUMS}\n" if (cache.folder / SUMS).exists() else ""
    return f"""---
license: {front}
pretty_name: {json.dumps(title)}
task_categories: [image-classification]
size_categories: [{json.dumps(size)}]
tags: [knowledge-distillation, soft-labels, demkd]
viewer: false
---

# {escape_markdown(title)}

The logits of {count} image classifiers for {cache.num_views} views of each of {cache.samples:,} images
({cache.classes:,} classes), to train students by knowledge distillation without running a teacher. It contains no
images: you need your own copy of the data. Made by demkd.

- **License:** {terms}
- **Author:** (fill in)
- **Data from:** (fill in)
- **Teachers from:** (fill in)

## Made from

{origin}{digests}
{tables}
Entropy is at most ln C = {math.log(cache.classes):.2f} nats. The teachers may have been trained on these images.

## Files

HDF5, {overview["file_bytes"]:,} bytes; logits are {", ".join(kept)}.
{notes}
## How to use it

Check the files, look at them, train a student (DATA is the data above; any other is refused):

{check}    demkd verify .
    demkd inspect .
    demkd distill --data DATA --cache . --student resnet8 --out student

Without a copy, from the hub: `--cache hf://datasets/ORG/NAME`. In a training loop of your own:

```python
import demkd

loader = demkd.SoftTargetLoader(".", train_data, method="de-mkd-logits", batch_size=64)
criterion = demkd.DistillationLoss("de-mkd-logits", epochs=240)
for batch in loader:
    loss = criterion(student(batch.images), batch)
```

Written by `demkd pack`.
"""
