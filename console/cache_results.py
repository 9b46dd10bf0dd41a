"""What became of a cache: written, planned, verified."""

from demkd.console.output import decimal_bytes, escape, plain_table, stdout
from demkd.pipeline.results import CachingPlan, CachingReport, MergeReport, PackReport, VerificationReport

_FAULTS_SHOWN = 10


def show_caching(report: CachingReport) -> None:
    """What stage one did."""
    console = stdout()
    console.print(
        f"{escape(str(report.folder))}: {_views(report.views, report.num_distinct_views)} of {report.samples:,} samples"
    )
    table = plain_table(left=("teacher", "network"), right=("top-1", "entropy", "answered", "time", "size"))
    for teacher in report.teachers:
        table.add_row(
            teacher.name,
            teacher.network,
            "" if teacher.top1 is None else f"{teacher.top1:.2%}",
            "" if teacher.mean_entropy is None else f"{teacher.mean_entropy:.3f}",
            f"{teacher.answered:,}",
            f"{teacher.seconds:.1f} s",
            "" if teacher.file_bytes is None else decimal_bytes(teacher.file_bytes),
        )
    console.print(table)
    for words in report.held:
        console.print(escape(words), soft_wrap=True)
    if report.held:
        console.print("nothing else is left to do; the last one to end computes the weights")
    if report.weighted:
        console.print(f"weights.h5 has the entropy weights of {', '.join(report.weighted)}")


def show_plan(plan: CachingPlan) -> None:
    """What stage one would cost."""
    console = stdout()
    console.print(
        f"{escape(str(plan.folder))}: {_views(plan.views, plan.num_distinct_views)} of {plan.samples:,} samples"
    )
    table = plain_table(left=("teacher", "network"), right=("to answer", "time", "file", "new on disk"))
    for teacher in plan.teachers:
        table.add_row(
            teacher.name,
            teacher.network,
            f"{teacher.pending:,}",
            f"{teacher.seconds:,.1f} s",
            decimal_bytes(teacher.file_bytes),
            decimal_bytes(teacher.new_bytes),
        )
    console.print(table)
    new = sum(teacher.new_bytes for teacher in plan.teachers)
    console.print(
        f"{decimal_bytes(new)} of {decimal_bytes(plan.free_bytes)} free on the disk; "
        f"about {_duration(plan.seconds)}, by a short probe{_parts(plan)}. It costs as many teacher passes as "
        f"{plan.break_even_epochs:.3g} epochs of one online student, which is {plan.break_even_runs:.2g} runs of "
        f"{plan.student_epochs} epochs; every epoch after those is free. Nothing was written.",
        soft_wrap=True,
    )


def _views(views: int, num_distinct_views: int | None) -> str:
    return f"{views} views" if num_distinct_views is None else f"{views} of {num_distinct_views} views"


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _parts(plan: CachingPlan) -> str:
    """What the time goes to, where pictures are decoded, and what more of the same machine would do."""
    if not plan.picture_seconds:
        return ""
    answers = sum(teacher.seconds for teacher in plan.teachers)
    return (
        f" ({_duration(plan.picture_seconds)} of decoding, {_duration(answers)} of answers; on eight such machines "
        f"{_duration(plan.seconds / 8)})"
    )


def show_verification(report: VerificationReport) -> None:
    """A verdict a file, and whatever is wrong."""
    console = stdout()
    for file in report.files:
        colour = {"damaged": "red", "unfinished": "yellow"}.get(file.verdict, "green")
        checked = f"{file.blocks:,} blocks, " if file.blocks else ""
        share = f" ({file.done:.0%} done)" if file.done < 1 and file.verdict != "damaged" else ""
        size = decimal_bytes(file.file_bytes)
        name = escape(f"{file.name}, {file.shard}" if file.shard else file.name)
        console.print(f"[{colour}]{file.verdict}[/]{share}  [bold]{name}[/]: {checked}{size}")
        for fault in file.faults[:_FAULTS_SHOWN]:
            console.print(f"    {escape(fault.text)}", soft_wrap=True)
        if len(file.faults) > _FAULTS_SHOWN:
            console.print(f"    and {len(file.faults) - _FAULTS_SHOWN} more; --json lists them all")
        if file.cure:
            console.print(f"    {escape(file.cure)}", soft_wrap=True)
    for repaired in report.repaired:
        again = f", {repaired.answered:,} answers given again" if repaired.answered else ""
        console.print(f"redone  [bold]{escape(repaired.name)}[/]{again}:")
        for place in repaired.redone[:_FAULTS_SHOWN]:
            console.print(f"    {escape(place)}", soft_wrap=True)
    for found in report.recomputed:
        verdict = "[green]agrees[/]" if found.agrees else "[red]differs[/]"
        console.print(
            f"{verdict}  [bold]{escape(found.teacher)}[/]: {found.pairs} answers given again in {found.precision}; "
            f"logits differ by up to {found.largest_difference:.3g} (sample {found.sample}, slot {found.slot}; "
            f"tolerance {found.tolerance:.3g}), top-1 is the same for {found.top1_agreement:.2%}",
            soft_wrap=True,
        )
    console.print(f"{escape(str(report.folder))} is {'sound' if report.sound else '[bold red]not sound[/]'}")


def show_merge(report: MergeReport) -> None:
    """What was put together."""
    console = stdout()
    for teacher in report.teachers:
        what = f"one file of {teacher.shards} shards" if teacher.shards else "one file already"
        console.print(f"[bold]{escape(teacher.name)}[/]: {what}, {decimal_bytes(teacher.file_bytes)}")


def show_pack(report: PackReport) -> None:
    """What a copy has, and what it weighs beside the original."""
    console = stdout()
    table = plain_table(left=("teacher", "logits", "features"), right=("views", "size"))
    for teacher in report.teachers:
        table.add_row(
            escape(teacher.name),
            "all" if teacher.keep is None else f"{teacher.keep} largest",
            escape(", ".join(teacher.features)) or "none",
            str(teacher.views),
            decimal_bytes(teacher.file_bytes),
        )
    console.print(table)
    console.print(
        f"{escape(str(report.folder))}: {decimal_bytes(report.file_bytes)}, of {decimal_bytes(report.source_bytes)}; "
        "complete README.md (the licence first), then upload the folder as it is",
        soft_wrap=True,
    )
