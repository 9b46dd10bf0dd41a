"""README.md of a cache that is to be shared: what it is, from what, how good, how large, how to use it.

In Markdown with the front matter of the Hugging Face hub. Facts come from the summary; what only its maker knows, the
licence first, is left to fill in, and marked.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence

from demkd.cache import Cache
from demkd.cache.sums import SUMS_NAME
from demkd.report.summary import CacheSummary, TeacherSummary
from demkd.untrusted import visible_line

FILL_IN = "(fill in)"
_SIZES = (("n<1K", 1e3), ("1K<n<10K", 1e4), ("10K<n<100K", 1e5), ("100K<n<1M", 1e6), ("1M<n<10M", 1e7))
_MARKUP = re.compile(r"([\\`*_\[\]<>|#])")


def card(cache: Cache, summary: CacheSummary) -> str:
    """The text of the README, in Markdown."""
    parts = [_front_matter(summary), *_about(summary), *_quality(summary), *_contents(cache, summary), *_use(summary)]
    return "\n\n".join(parts) + "\n"


def _front_matter(summary: CacheSummary) -> str:
    size = next((word for word, most in _SIZES if summary.samples < most), "10M<n<100M")
    # A JSON text is a YAML text, whatever characters a name has.
    lines = [
        "license: other  # fill in: that of the data and of the teachers' weights",
        f"pretty_name: {json.dumps(f'Answers of {len(summary.teachers)} teachers to {_name(summary)}')}",
        "task_categories: [image-classification]",
        f"size_categories: [{json.dumps(size)}]",
        "tags: [knowledge-distillation, soft-labels, demkd]",
    ]
    return "\n".join(["---", *lines, "---"])


def _about(summary: CacheSummary) -> Iterator[str]:
    teachers = len(summary.teachers)
    views = f"{summary.views} views"
    if summary.num_distinct_views:
        views = f"{summary.views} of {summary.num_distinct_views} views"
    yield f"# Answers of {teachers} {'teacher' if teachers == 1 else 'teachers'} to {_plain(_name(summary))}"
    yield (
        f"What {teachers} image classifiers answer to {views} of each of {summary.samples:,} pictures of "
        f"{summary.classes:,} classes, for training students by knowledge distillation without loading a teacher. "
        "Pictures are not in here; you need your own copy of the data. Made by demkd."
    )
    yield (
        f"- **Licence:** {FILL_IN}: that of the data and of the teachers' weights, which this is made from\n"
        + "\n".join(f"- **{what}:** {FILL_IN}" for what in ("Made by", "Data from", "Teachers from"))
    )
    split = f", split {summary.split}" if summary.split else ""
    size = " x ".join(map(str, summary.picture_size))
    rows = [
        ("data", f"{_plain(_name(summary))}{split}: {summary.samples:,} samples, {summary.classes:,} classes"),
        *([("pictures", f"{size} pixels")] if size else []),
        *([("SHA-256 of the pictures", f"`{_hex(summary.pixels_sha256)}`")] if summary.pixels_sha256 else []),
        ("SHA-256 of the labels", f"`{_hex(summary.labels_sha256)}`"),
        ("views", f"{_plain(summary.policy)}; seed {summary.view_seed}"),
        ("precision", _plain(summary.precision)),
    ]
    yield "## Made from"
    yield _table(("", ""), rows)
    yield _table(
        ("teacher", "network", "parameters", "SHA-256 of its weights", "normalisation", "input", "ran with"),
        [_origin(teacher) for teacher in summary.teachers],
    )


def _origin(teacher: TeacherSummary) -> list[str]:
    means, deviations = (", ".join(f"{one:.4g}" for one in values) for values in (teacher.mean, teacher.std))
    versions = ", ".join(f"{name} {version}" for name, version in teacher.versions.items())
    return [
        _plain(teacher.name),
        _plain(teacher.network),
        "" if teacher.parameters is None else f"{teacher.parameters:,}",
        f"`{_hex(teacher.fingerprint)}`",
        f"{means} / {deviations}" if means else "",
        "" if teacher.input_size is None else f"{teacher.input_size} pixels",
        _plain(f"{versions}{f', {teacher.device}' if teacher.device else ''}"),
    ]


def _quality(summary: CacheSummary) -> Iterator[str]:
    yield "## How good"
    yield (
        f"Over all {summary.views} views of the pictures that the teachers were asked about, which may be those that "
        f"they were trained on. Entropy in nats, of at most {math.log(summary.classes):.2f}; the weight is that of "
        "entropy weighting."
    )
    yield _table(
        ("teacher", "top-1", "mean entropy", "quartiles", "mean weight", "wrong and trusted"),
        [
            (
                _plain(one.name),
                f"{one.top1:.2%}",
                f"{one.mean_entropy:.3f}",
                ", ".join(f"{quartile:.3f}" for quartile in one.quartiles),
                "" if one.mean_weight is None else f"{one.mean_weight:.3f}",
                "" if one.wrong_and_trusted is None else f"{one.wrong_and_trusted:.2%}",
            )
            for one in summary.teachers
        ],
    )
    names = summary.agreement.names
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    if pairs:
        yield "Share of views in which two teachers give the same first answer:"
        yield _table(
            ("teachers", "agree"),
            [(f"{_plain(names[i])}, {_plain(names[j])}", f"{summary.agreement.same_top1[i][j]:.2%}") for i, j in pairs],
        )


def _contents(cache: Cache, summary: CacheSummary) -> Iterator[str]:
    yield "## How large"
    rows = [
        (
            f"`{_code(teacher.path.name if len(teacher.files) == 1 else f'{teacher.name}.*.h5')}`",
            _kept(teacher.shape.keep, summary.classes),
            ", ".join(
                f"{_plain(layer)} {' x '.join(map(str, shape))}" for layer, shape in teacher.shape.features.items()
            ),
            f"{teacher.file_bytes:,}",
        )
        for teacher in cache.teachers
    ]
    yield _table(("file", "logits", "features", "bytes"), rows)
    total = f"{summary.file_bytes:,} bytes"
    weights = ", with `weights.h5`, the entropy weights of all teachers" if summary.weights_state == "matches" else ""
    yield f"{total} in all{weights}. Files are HDF5, which every tool reads; logits are float16."
    packed = dict.fromkeys(
        _plain(str(teacher.provenance.notes["packed"]))
        for teacher in cache.teachers
        if "packed" in teacher.provenance.notes
    )
    yield from (f"Note: {words}." for words in packed)


def _kept(keep: int | None, classes: int) -> str:
    return f"all {classes:,}" if keep is None else f"the {keep} largest, and the sum of the others"


def _use(summary: CacheSummary) -> Iterator[str]:
    yield "## How to use it"
    yield ("Check that it arrived whole, look at it, train a student (DATA is the data above; any other is refused):")
    sums = f"    sha256sum -c {SUMS_NAME}\n" if (summary.folder / SUMS_NAME).exists() else ""
    yield (
        f"{sums}"
        "    demkd verify .\n"
        "    demkd inspect .\n"
        "    demkd distill --data DATA --cache . --student resnet8 --out student"
    )
    yield "In Python, in a training loop of your own:"
    yield (
        "```python\n"
        "import demkd\n\n"
        'targets = demkd.CachedTargets(".", train_data, method="de-mkd-logits")\n'
        "for batch in targets.epoch(1, batch_size=64):\n"
        "    loss = targets.loss(student(batch.views), batch)\n"
        "```"
    )
    yield "This card was written by `demkd pack`."


def _name(summary: CacheSummary) -> str:
    return summary.data or "a data set"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *rows))


def _plain(text: str) -> str:
    """Text of a stranger's file, which shall be read as it stands: no markup, control characters spelt out."""
    return _MARKUP.sub(r"\\\1", visible_line(text))


def _code(text: str) -> str:
    """The same between backquotes, where nothing can be escaped."""
    return "".join(letter if letter.isprintable() and letter not in "`|" else "?" for letter in text)


def _hex(digest: str | None) -> str:
    return _code(digest or "")
