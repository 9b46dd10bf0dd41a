"""What the teachers know, as `inspect` shows it: a whole cache on one screen."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from demkd.console.bars import histogram_bars
from demkd.console.fitting import Column, fitted, number_text, room, share, words
from demkd.console.listings import show_classes, show_samples, show_views
from demkd.console.output import counted, decimal_bytes, stdout
from demkd.console.sample import show_sample
from demkd.report.classes import ClassListing
from demkd.report.rows import Inspection
from demkd.report.samples import SampleListing
from demkd.report.single_sample import SampleSummary, SampleViews
from demkd.report.summary import Agreement, CacheSummary, TeacherSummary

_DIGEST = 12  # characters of a SHA-256 are enough to tell two apart; --json has all

_WEIGHTS = {
    "absent": "none: run cache-teachers again, which computes them",
    "does not match": "of other teachers or fewer views: leave --teachers out, or run cache-teachers again",
}


def show_inspection(found: Inspection, *, picture: NDArray[Any] | None = None) -> None:
    """Whatever `inspect` found, as text.

    Args:
        picture: of the sample, (H, W, 3), uint8, to draw above what is said about it.
    """
    if isinstance(found, SampleSummary):
        show_sample(found, picture)
    elif isinstance(found, SampleViews):
        show_views(found)
    elif isinstance(found, ClassListing):
        show_classes(found)
    elif isinstance(found, SampleListing):
        show_samples(found)
    else:
        show_cache(found)


def show_cache(summary: CacheSummary) -> None:
    """What a cache holds, what it was made from, a line a teacher, and how alike they are."""
    console = stdout()
    headline = Text.assemble(
        words(str(summary.folder), "bold"),
        f": {counted(len(summary.teachers), 'teacher', 'teachers')} on ",
        words(summary.data),
        f", {summary.samples:,} samples x {counted(summary.views, 'view', 'views')}, "
        f"{counted(summary.classes, 'class', 'classes')}, {summary.precision}, ",
        decimal_bytes(summary.file_bytes),
    )
    console.print(headline, overflow="fold")
    console.print(_card(summary))
    console.print(fitted(console, _numbers(console, summary.teachers)))
    notes = "entropies in nats, their histogram from 0 to ln C"
    if summary.weighting:
        notes += f"; trusted: weighs more than 1/K = {1 / len(summary.teachers):.3f}"
    console.print(Text(notes, style="dim"))
    console.print(fitted(console, _origins(summary.teachers)))
    if len(summary.teachers) > 1:
        console.print(fitted(console, _matrices(console, summary.agreement)))
        console.print(Text("rank correlation: of the samples' mean entropies (Spearman)", style="dim"))


def _card(summary: CacheSummary) -> Table:
    """What the whole cache was made from."""
    card = Table.grid(padding=(0, 2, 0, 0))
    card.add_column(style="dim", no_wrap=True)
    card.add_column(overflow="fold")
    for name, text in _facts(summary):
        card.add_row(name, words(text))
    return card


def _facts(summary: CacheSummary) -> list[tuple[str, str]]:
    size = " x ".join(map(str, summary.picture_size))
    pictures = ", ".join(part for part in (f"{summary.split} split" if summary.split else "", size) if part)
    digests = f"pixels {(summary.pixels_sha256 or '-')[:_DIGEST]}, labels {summary.labels_sha256[:_DIGEST]}"
    unfinished = f"; besides, unfinished: {', '.join(_progress(summary))}" if summary.unfinished else ""
    facts = [
        ("pictures", f"{pictures}; {digests}" if pictures else digests),
        ("views", _views(summary)),
        ("weights", summary.weighting or _WEIGHTS[summary.weights_state]),
        ("files", f"complete{_shards(summary.teachers)}{unfinished}"),
    ]
    inputs = _merged([(teacher.name, _input(teacher)) for teacher in summary.teachers])
    made_by = _merged([(teacher.name, _software(teacher)) for teacher in summary.teachers])
    return [*facts, ("input", inputs), ("made by", made_by)]


def _shards(teachers: Sequence[TeacherSummary]) -> str:
    """In how many files the teachers' answers are, unless in one each."""
    if all(teacher.shards == 1 for teacher in teachers):
        return ""
    words = [(one.name, "one file" if one.shards == 1 else f"{one.shards} shards") for one in teachers]
    return f", {_merged(words)}"


def _views(summary: CacheSummary) -> str:
    count = (
        f"{summary.views}" if summary.num_distinct_views is None else f"{summary.views} of {summary.num_distinct_views}"
    )
    return f"{count}, {summary.policy}, view seed {summary.view_seed}"


def _progress(summary: CacheSummary) -> list[str]:
    return [
        f"{file.name} (damaged)" if file.progress is None else f"{file.name} ({file.progress:.0%} done)"
        for file in summary.unfinished
    ]


def _input(teacher: TeacherSummary) -> str:
    if not teacher.mean:
        return ""
    figures = "/".join(" ".join(f"{number:g}" for number in part) for part in (teacher.mean, teacher.std))
    resized = f", resized to {teacher.input_size} pixels" if teacher.input_size else ""
    return f"normalised by {figures}{resized}"


def _software(teacher: TeacherSummary) -> str:
    versions = [f"{name} {version}" for name, version in teacher.versions.items()]
    return ", ".join([*versions, *([teacher.device] if teacher.device else [])])


def _merged(texts: Sequence[tuple[str, str]]) -> str:
    """One text where all teachers have the same, else each teacher's."""
    different = dict.fromkeys(text for _, text in texts)
    if len(different) == 1:
        return texts[0][1] or "-"
    return "; ".join(f"{name}: {text or '-'}" for name, text in texts)


def _numbers(console: Console, teachers: Sequence[TeacherSummary]) -> list[Column]:
    """How sure, how right and how trusted each teacher is."""
    bins = 20 if console.width >= 100 else 10
    return [
        Column("teacher", [teacher.name for teacher in teachers], words=True),
        Column("top-1", [f"{teacher.top1:.2%}" for teacher in teachers]),
        Column("entropy", [f"{teacher.mean_entropy:.3f}" for teacher in teachers]),
        Column(
            "quartiles", [" ".join(f"{quartile:.2f}" for quartile in teacher.quartiles) for teacher in teachers], rank=3
        ),
        Column(
            "histogram",
            [histogram_bars(console, teacher.histogram, bins=bins) for teacher in teachers],
            rank=4,
            left=True,
        ),
        Column("weight", [number_text(teacher.mean_weight) for teacher in teachers], rank=1),
        Column(
            "wrong,\ntrusted",
            [share(teacher.wrong_and_trusted) for teacher in teachers],
            name="wrong-and-trusted",
            rank=2,
        ),
    ]


def _origins(teachers: Sequence[TeacherSummary]) -> list[Column]:
    """What each teacher is, and what its file keeps."""
    shapes = [
        ", ".join(f"{layer} {'x'.join(map(str, shape))}" for layer, shape in teacher.features.items()) or "none"
        for teacher in teachers
    ]
    parameters = ["-" if teacher.parameters is None else f"{teacher.parameters:,}" for teacher in teachers]
    return [
        Column("teacher", [teacher.name for teacher in teachers], words=True),
        Column("network", [teacher.network for teacher in teachers], words=True, rank=2),
        Column("parameters", parameters, rank=3),
        Column("weights' SHA-256", [teacher.fingerprint[:_DIGEST] for teacher in teachers], rank=1),
        Column("views", [f"{teacher.views}" for teacher in teachers], rank=6),
        Column("features", shapes, words=True, rank=5),
        Column("file", [decimal_bytes(teacher.file_bytes) for teacher in teachers], rank=4),
    ]


def _matrices(console: Console, alike: Agreement) -> list[Column]:
    """Both matrices side by side; pair by pair where there is no room for them."""
    count = len(alike.names)
    same = [Column("same\ntop-1\nas", alike.names, words=True)]
    ranks = [Column("rank\ncorrelation\nwith", alike.names, words=True)]
    for position, name in enumerate(alike.names):
        same.append(Column(name, [share(row[position]) for row in alike.same_top1]))
        ranks.append(Column(name, [number_text(row[position]) for row in alike.rank_correlation]))
    if room(same + ranks, console.width) >= 0:
        return same + ranks
    pairs = list(combinations(range(count), 2))
    return [
        Column("teacher", [alike.names[one] for one, _ in pairs], words=True),
        Column("and", [alike.names[other] for _, other in pairs], words=True),
        Column("same\ntop-1", [share(alike.same_top1[one][other]) for one, other in pairs]),
        Column("rank\ncorrelation", [number_text(alike.rank_correlation[one][other]) for one, other in pairs]),
    ]
