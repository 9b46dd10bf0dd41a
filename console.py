"""How progress, tables and errors look: the only place that knows rich. Progress goes to stderr, results to stdout."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from demkd.cache.summary import CacheSummary, SampleSummary, TeacherSummary
from demkd.pipeline.reports import (
    CachingPlan,
    CachingReport,
    DemoReport,
    EpochReport,
    EvaluationReport,
    ExportReport,
    NetworkListing,
    RunReport,
    VerificationReport,
)
from demkd.report.comparison import Comparison, Group

_BARS = " ▁▂▃▄▅▆▇█"
_FAULTS_SHOWN = 10


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: RichTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {task.fields['unit']}/s" if speed else "", style="progress.data.speed")


class ConsoleProgress:
    """The pipeline's progress on a terminal: bars there, one line an epoch where stderr is a file or a pipe."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def task(self, description: str, *, total: int, unit: str, done: int = 0) -> Iterator["_ConsoleTask"]:
        columns = [
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[facts]}"),
        ]
        with RichProgress(
            *columns, console=self._console, disable=not self._console.is_terminal, speed_estimate_period=10
        ) as bars:
            identity = bars.add_task(escape(description), total=total, completed=done, unit=unit, facts="")
            yield _ConsoleTask(bars, identity)

    def epoch(self, report: EpochReport) -> None:
        if not self._console.is_terminal:
            self._console.print(
                f"epoch {report.epoch}/{report.epochs}  loss {report.losses['loss']:.4f}  "
                f"train top-1 {report.train_top1:.2%}  test top-1 {report.test_top1:.2%}  {report.seconds:.1f} s",
                soft_wrap=True,
            )

    def note(self, text: str) -> None:
        self._console.print(f"[dim]{escape(text)}[/]", soft_wrap=True)

    def warn(self, text: str) -> None:
        self._console.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True)


class _ConsoleTask:
    def __init__(self, bars: RichProgress, identity: Any) -> None:
        self._bars, self._identity = bars, identity

    def advance(self, count: int) -> None:
        self._bars.advance(self._identity, count)

    def tell(self, facts: str) -> None:
        self._bars.update(self._identity, facts=facts)


def show_error(text: str) -> None:
    """One sentence on stderr."""
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)


def show_json(report: object) -> None:
    """A report as JSON on stdout, for programs."""
    assert is_dataclass(report)
    assert not isinstance(report, type)
    json.dump(asdict(report), sys.stdout, indent=2, default=_jsonable)
    sys.stdout.write("\n")


def show_caching(report: CachingReport) -> None:
    """What stage one did."""
    console = _stdout()
    console.print(f"{escape(str(report.folder))}: {report.views} of {report.orbit} views of {report.samples:,} samples")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("teacher", "network"):
        table.add_column(heading)
    for heading in ("top-1", "entropy", "answered", "time", "size"):
        table.add_column(heading, justify="right")
    for teacher in report.teachers:
        table.add_row(
            teacher.name,
            teacher.network,
            f"{teacher.top1:.2%}",
            f"{teacher.mean_entropy:.3f}",
            f"{teacher.answered:,}",
            f"{teacher.seconds:.1f} s",
            _bytes(teacher.file_bytes),
        )
    console.print(table)
    if report.weighted:
        console.print(f"weights.h5 has the entropy weights of {', '.join(report.weighted)}")


def show_plan(plan: CachingPlan) -> None:
    """What stage one would cost."""
    console = _stdout()
    console.print(f"{escape(str(plan.folder))}: {plan.views} of {plan.orbit} views of {plan.samples:,} samples")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("teacher", "network"):
        table.add_column(heading)
    for heading in ("to answer", "time", "file", "new on disk"):
        table.add_column(heading, justify="right")
    for teacher in plan.teachers:
        table.add_row(
            teacher.name,
            teacher.network,
            f"{teacher.pending:,}",
            f"{teacher.seconds:,.1f} s",
            _bytes(teacher.file_bytes),
            _bytes(teacher.new_bytes),
        )
    console.print(table)
    console.print(
        f"{_bytes(sum(teacher.new_bytes for teacher in plan.teachers))} of {_bytes(plan.free_bytes)} free on the disk; "
        f"about {plan.seconds:,.0f} s of answering, by a short probe. It costs as many teacher passes as "
        f"{plan.break_even_epochs:.3g} epochs of one online student, which is {plan.break_even_runs:.2g} runs of "
        f"{plan.student_epochs} epochs; every epoch after those is free. Nothing was written.",
        soft_wrap=True,
    )


def show_verification(report: VerificationReport) -> None:
    """A verdict a file, and whatever is wrong."""
    console = _stdout()
    for file in report.files:
        colour = {"damaged": "red", "unfinished": "yellow"}.get(file.verdict, "green")
        checked = f"{file.blocks:,} blocks, " if file.blocks else ""
        share = f" ({file.done:.0%} done)" if file.done < 1 and file.verdict != "damaged" else ""
        console.print(
            f"[{colour}]{file.verdict}[/]{share}  [bold]{escape(file.name)}[/]: {checked}{_bytes(file.file_bytes)}"
        )
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


def show_cache(summary: CacheSummary) -> None:
    """What a cache holds, a line a teacher."""
    console = _stdout()
    size = _bytes(sum(teacher.file_bytes for teacher in summary.teachers))
    console.print(
        f"[bold]{escape(str(summary.folder))}[/]: {len(summary.teachers)} teachers on {escape(summary.data)}, "
        f"{summary.samples:,} samples x {summary.views} views, {summary.classes} classes, {summary.precision}, {size}"
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
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
    console = _stdout()
    console.print(
        f"sample [bold]{sample.index}[/], label [bold]{escape(sample.label)}[/], "
        f"slot {sample.slot} (view {sample.view})"
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("teacher", "likeliest classes"):
        table.add_column(heading)
    for heading in ("entropy", "weight"):
        table.add_column(heading, justify="right")
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


def show_run(report: RunReport) -> None:
    """What a run came to."""
    _stdout().print(
        f"{report.network}, {report.method}, seed {report.seed}: test top-1 [bold]{report.test_top1:.2%}[/] "
        f"({round(report.test_top1 * report.test_samples)} of {report.test_samples}) after {report.epochs} epochs; "
        f"best {report.best_top1:.2%} in epoch {report.best_epoch}; {report.seconds:.1f} s of training; "
        f"{escape(str(report.folder))}",
        soft_wrap=True,
    )


def show_evaluation(report: EvaluationReport) -> None:
    """How good a network is."""
    _stdout().print(
        f"{report.network} in {escape(str(report.folder))}: top-1 [bold]{report.top1:.2%}[/], top-5 {report.top5:.2%} "
        f"of {report.samples:,} test pictures",
        soft_wrap=True,
    )


def show_comparison(comparison: Comparison, *, form: str) -> None:
    """Groups of runs, best mean in bold: as a table of text or Markdown, or as CSV."""
    headings = ["runs", "seeds", "last top-1 %", "best top-1 %"]
    if comparison.baseline:
        headings += [f"against {comparison.baseline}", "95 % interval", "detectable"]
    rows = [_comparison_cells(group, with_difference=comparison.baseline is not None) for group in comparison.groups]
    best = max(range(len(rows)), key=lambda position: comparison.groups[position].last)
    if form == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerows([headings, *rows])
    elif form == "markdown":
        shown = [[f"**{cell}**" if i == best and cell else cell for cell in row] for i, row in enumerate(rows)]
        for line in (headings, ["---"] * len(headings), *shown):
            sys.stdout.write(f"| {' | '.join(line)} |\n")
    else:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for position, heading in enumerate(headings):
            table.add_column(heading, justify="left" if position == 0 else "right")
        for position, row in enumerate(rows):
            table.add_row(*map(escape, row), style="bold" if position == best else None)
        _stdout().print(table)


def _comparison_cells(group: Group, *, with_difference: bool) -> list[str]:
    cells = [
        group.name,
        str(len(group.seeds)),
        _with_deviation(group.last, group.last_deviation),
        _with_deviation(group.best, group.best_deviation),
    ]
    if not with_difference:
        return cells
    difference = group.difference
    if difference is None:
        return [*cells, "", "", ""]
    if difference.low is None or difference.high is None or difference.detectable is None:
        return [*cells, f"{100 * difference.mean:+.2f}", "", ""]
    interval = f"{100 * difference.low:+.2f} to {100 * difference.high:+.2f}"
    return [*cells, f"{100 * difference.mean:+.2f}", interval, f"{100 * difference.detectable:.2f}"]


def _with_deviation(share: float, deviation: float | None) -> str:
    return f"{100 * share:.2f}" if deviation is None else f"{100 * share:.2f} ± {100 * deviation:.2f}"


def show_demo(report: DemoReport) -> None:
    """Teachers, students, and what the cache cost and saved."""
    console = _stdout()
    show_caching(report.caching)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "network"):
        table.add_column(heading)
    for heading in ("top-1", "right", "training"):
        table.add_column(heading, justify="right")
    for name, top1 in report.teachers.items():
        table.add_row("teacher", name, f"{top1:.2%}", str(round(top1 * report.test_samples)), "")
    table.add_section()
    for run in report.students:
        who = "student alone" if run.method == "ce" else f"student, {run.method}"
        right = str(round(run.test_top1 * report.test_samples))
        table.add_row(who, run.network, f"{run.test_top1:.2%}", right, f"{run.seconds:.1f} s")
    console.print(table)
    console.print(f"[dim]of {report.test_samples} test pictures; one is {1 / report.test_samples:.2%}[/]")
    cost = f"{report.cached_passes} teacher passes, {report.caching_seconds:.1f} s and {_bytes(report.cache_bytes)}"
    console.print(
        f"The cache cost {cost}. With live teachers, these students would have cost {report.live_passes} passes; from "
        f"the cache they cost none, and neither does the next one. All of this took {report.seconds:.0f} s."
    )
    folder = escape(str(report.folder))
    console.print(
        f"[dim]Look closer: demkd inspect {folder}/cache, demkd evaluate {folder}/student-de-mkd --data digits[/]"
    )


def show_networks(listing: NetworkListing) -> None:
    """What networks there are."""
    console = _stdout()
    _, height, width = listing.picture
    console.print(f"{listing.classes} classes; multiply-accumulates and features of one {height} x {width} picture")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("network", no_wrap=True)
    for heading in ("parameters", "MACs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("features (channels x height x width)")
    for network in listing.networks:
        shapes = "  ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in network.features.items())
        table.add_row(network.name, f"{network.parameters:,}", f"{network.macs / 1e6:,.1f} M", shapes)
    console.print(table)
    console.print("Others: torchvision:NAME, timm:NAME, or my_module:function of your own")


def show_export(report: ExportReport) -> None:
    """What was written, and how it was checked."""
    shape = ", ".join(str(side) for side in report.input_shape)
    _stdout().print(
        f"{escape(str(report.file))}: {report.network} as {report.format}, {_bytes(report.file_bytes)}, "
        f"input (B, {shape}), {report.classes} classes. Loaded in a fresh process, its logits of {report.pictures} "
        f"test pictures differ from the student's by {report.largest_difference:.2g} at most",
        soft_wrap=True,
    )


def sparkline(counts: Sequence[int]) -> str:
    """A histogram a character a bin; a bin that is not empty never looks empty."""
    highest = max(max(counts), 1)
    return "".join(_BARS[0 if count == 0 else max(1, round(count / highest * (len(_BARS) - 1)))] for count in counts)


def _stdout() -> Console:
    return Console(highlight=False)


def _bytes(count: int) -> str:
    """Decimal units, as disks are sold."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def _jsonable(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(type(value))
