"""What the teachers know, as `inspect` shows it."""

from collections.abc import Sequence

from rich.markup import escape

from demkd.cache.summary import CacheSummary, SampleSummary, TeacherSummary
from demkd.console.output import decimal_bytes, plain_table, sparkline, stdout


def show_cache(summary: CacheSummary) -> None:
    """What a cache holds, a line a teacher."""
    console = stdout()
    size = decimal_bytes(sum(teacher.file_bytes for teacher in summary.teachers))
    console.print(
        f"[bold]{escape(str(summary.folder))}[/]: {len(summary.teachers)} teachers on {escape(summary.data)}, "
        f"{summary.samples:,} samples x {summary.views} views, {summary.classes} classes, {summary.precision}, {size}"
    )
    table = plain_table()
    table.add_column("teacher", no_wrap=True)
    for heading in ("top-1", "entropy", "quartiles"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("histogram", no_wrap=True)
    table.add_column("weight", justify="right", no_wrap=True)
    table.add_column("wrong, trusted", justify="right", min_width=7)
    for teacher in summary.teachers:
        table.add_row(*_teacher_cells(teacher, bins=20 if console.width >= 100 else 10))
    console.print(table)
    console.print("[dim]entropies in nats, their histogram from 0 to ln C[/]")
    if summary.weighting:
        console.print(f"[dim]weights: {escape(summary.weighting)}; trusted: weighs more than 1/K[/]")


def _teacher_cells(teacher: TeacherSummary, *, bins: int) -> Sequence[str]:
    width = len(teacher.histogram) // bins
    histogram = [sum(teacher.histogram[start : start + width]) for start in range(0, len(teacher.histogram), width)]
    return (
        teacher.name,
        f"{teacher.top1:.2%}",
        f"{teacher.mean_entropy:.3f}",
        " ".join(f"{quartile:.2f}" for quartile in teacher.quartiles),
        sparkline(histogram),
        "-" if teacher.mean_weight is None else f"{teacher.mean_weight:.3f}",
        "-" if teacher.wrong_and_trusted is None else f"{teacher.wrong_and_trusted:.2%}",
    )


def show_sample(sample: SampleSummary) -> None:
    """What every teacher says about one sample."""
    console = stdout()
    console.print(
        f"sample [bold]{sample.index}[/], label [bold]{escape(sample.label)}[/], "
        f"slot {sample.slot} (view {sample.view})"
    )
    table = plain_table(left=("teacher", "likeliest classes"), right=("entropy", "weight"))
    for opinion in sample.opinions:
        answers = ", ".join(
            f"{name} {probability:.1%}"
            for name, probability in zip(opinion.classes, opinion.probabilities, strict=True)
        )
        table.add_row(
            opinion.name,
            escape(answers),
            f"{opinion.entropy:.3f}",
            "-" if opinion.weight is None else f"{opinion.weight:.3f}",
        )
    console.print(table)
