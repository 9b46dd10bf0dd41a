"""Lists of classes, samples and slots, as `inspect` shows them."""

from rich.text import Text

from demkd.console.fitting import Column, fitted, number_text, share, words
from demkd.console.output import counted, stdout
from demkd.report.classes import ClassListing
from demkd.report.samples import SampleListing
from demkd.report.single_sample import SampleViews

_MORE = "--csv and --json have it"

# What a list of samples is ordered by: in words, and as the heading of the column.
_ORDERS = {
    "uncertain": ("the highest entropy, averaged over teachers and views", "entropy"),
    "disputed": (
        "most disagreement: the share of views and pairs of teachers with different predictions",
        "disagree",
    ),
    "suspect": ("a label that the teachers contradict most, averaged over teachers and views", "suspicion"),
    "wrong and trusted": ("a wrong teacher's weight farthest above 1/K, averaged over views", "above 1/K"),
}


def show_classes(listing: ClassListing) -> None:
    """A line a class; a measure of all teachers is shown or left out as a whole."""
    console = stdout()
    rows = listing.rows
    sorted_by = listing.sort.removeprefix("-")
    first = "smallest" if listing.sort.startswith("-") else "largest"
    console.print(Text(f"{counted(len(rows), 'class', 'classes')} by {sorted_by}, {first} first"))
    columns = [
        Column("class", [row.label for row in rows], words=True),
        Column("number", [f"{row.number}" for row in rows], rank=_rank(sorted_by, "number", 9)),
        Column("samples", [f"{row.samples:,}" for row in rows], rank=_rank(sorted_by, "samples", 5)),
        Column("disagree", [share(row.disagreement) for row in rows], rank=_rank(sorted_by, "disagreement", 3)),
    ]
    for measure, heading, rank in _MEASURES:
        columns += _measure_columns(listing, measure, heading, rank, sorted_by)
    console.print(fitted(console, columns, more=_MORE))
    console.print(
        Text(
            "mean entropies in nats; disagree: share of views and pairs of teachers; trusted: weighs more than 1/K",
            style="dim",
        )
    )


_MEASURES = (
    ("top1", "top-1", 1),
    ("entropy", "entropy", 2),
    ("weight", "weight", 6),
    ("wrong_and_trusted", "wrong,\ntrusted", 4),
)


def _measure_columns(listing: ClassListing, measure: str, heading: str, rank: int, sorted_by: str) -> list[Column]:
    """A measure's mean over the teachers, and a column a teacher; what the list is sorted by is always shown."""
    name = measure.replace("top1", "top-1").replace("_", "-")
    text = number_text if measure in ("entropy", "weight") else share
    columns = []
    if measure != "weight":  # whose mean is 1/K
        columns.append(
            Column(
                f"{heading}\nmean",
                [text(getattr(row, measure)) for row in listing.rows],
                rank=_rank(sorted_by, measure, rank + 6),
                name=f"mean {name}",
            )
        )
    for position, teacher in enumerate(listing.teachers):
        columns.append(
            Column(
                f"{heading}\n{teacher}",
                [text(getattr(row.teachers[position], measure)) for row in listing.rows],
                rank=_rank(sorted_by, f"{teacher}.{measure}", rank),
                name=f"{name} by teacher",
            )
        )
    return columns


def _rank(sorted_by: str, column: str, rank: int) -> int:
    return 0 if sorted_by == column else rank


def show_samples(listing: SampleListing) -> None:
    """A line a sample, with every teacher's most frequent prediction; right ones are bold, and equal the label."""
    console = stdout()
    rows = listing.rows
    order, heading = _ORDERS[listing.order]
    console.print(Text(f"{counted(len(rows), 'sample', 'samples')} with {order}"))
    if not rows:
        return
    percent, trusted = listing.order == "disputed", listing.order == "wrong and trusted"
    columns = [
        Column("sample", [f"{row.index}" for row in rows]),
        Column("label", [row.label for row in rows], words=True),
        Column(heading, [share(row.score) if percent else f"{row.score:.3f}" for row in rows], rank=1),
    ]
    if trusted:
        columns.append(Column("of", [row.trusted or "" for row in rows], words=True))
    for position, teacher in enumerate(listing.teachers):
        said = [row.teachers[position] for row in rows]
        answers = [
            words(one.prediction, "bold" if one.prediction == row.label else "")
            for one, row in zip(said, rows, strict=True)
        ]
        columns += [
            Column("says", answers, group=teacher, rank=2, words=True, name="predictions"),
            Column("in", [f"{one.share:.0%}" for one in said], group=teacher, rank=5, name="in how many views"),
            Column(
                "entropy",
                [number_text(one.entropy) for one in said],
                group=teacher,
                rank=4 if trusted else 3,
                name="entropy by teacher",
            ),
            Column("weight", [number_text(one.weight) for one in said], group=teacher, rank=3 if trusted else 6),
        ]
    console.print(fitted(console, columns, more=_MORE))
    console.print(Text("means over the views; says: the most frequent prediction; closer: --sample I", style="dim"))


def show_views(views: SampleViews) -> None:
    """A line a slot."""
    console = stdout()
    console.print(
        Text.assemble(
            f"sample {views.index}, label ",
            words(views.label, "bold"),
            f", {counted(len(views.rows), 'slot', 'slots')}",
        )
    )
    columns = [
        Column("slot", [f"{row.slot}" for row in views.rows]),
        Column("view", [f"{row.view}" for row in views.rows], rank=4),
    ]
    for position, teacher in enumerate(views.teachers):
        said = [row.teachers[position] for row in views.rows]
        answers = [words(one.prediction, "bold" if one.right else "") for one in said]
        columns += [
            Column("says", answers, group=teacher, rank=2, words=True, name="predictions"),
            Column("entropy", [number_text(one.entropy) for one in said], group=teacher, rank=1),
            Column("weight", [number_text(one.weight) for one in said], group=teacher, rank=3),
        ]
    console.print(fitted(console, columns, more=_MORE))
