"""What the commands print about a stage: each report as sentences and tables."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from demkd.pipeline import results
from demkd.pipeline.progress import decimal_bytes
from demkd.report.table import Column, Table

Blocks = Iterator[str | Table]
_FAULTS_SHOWN = 10


def blocks_of(report: Any) -> Blocks:
    """The sentences and tables of a report."""
    return _BLOCKS[type(report)](report)


def _caching(report: results.CachingReport) -> Blocks:
    yield _views(report)
    columns = [Column("teacher"), Column("network"), Column("top-1", format="percent"), Column("entropy", format=".3f")]
    columns += [Column("computed", "new logits", ",d"), Column("time"), Column("size", format="bytes")]
    rows = [
        (one.name, one.network, one.top1, one.mean_entropy, one.computed, f"{one.seconds:.1f} s", one.file_bytes)
        for one in report.teachers
    ]
    yield Table("", columns, rows)
    yield from report.held
    if report.held:
        yield "this process is done; the last process computes the weights"
    if report.weighted:
        yield f"weights.h5 has the entropy weights of {', '.join(report.weighted)}"


def _plan(plan: results.CachingPlan) -> Blocks:
    yield _views(plan)
    columns = [Column("teacher"), Column("network"), Column("pending", "missing logits", ",d"), Column("time")]
    columns += [Column("file", format="bytes"), Column("new on disk", format="bytes")]
    rows = [
        (one.name, one.network, one.pending, f"{one.seconds:,.1f} s", one.file_bytes, one.new_bytes)
        for one in plan.teachers
    ]
    yield Table("", columns, rows)
    features, whole = (sum(getattr(one, name) for one in plan.teachers) for name in ("feature_bytes", "file_bytes"))
    if features > whole / 2:
        yield (
            f"features are {features / whole:.0%} of these bytes; only methods with features read them, and --features "
            "none leaves them out"
        )
    new = sum(teacher.new_bytes for teacher in plan.teachers)
    decoding = ""
    if plan.decode_seconds:
        teachers = sum(teacher.seconds for teacher in plan.teachers)
        decoding = (
            f" ({_duration(plan.decode_seconds)} of decoding, {_duration(teachers)} of teachers; on eight such "
            f"machines {_duration(plan.seconds / 8)})"
        )
    yield (
        f"{decimal_bytes(new)} of {decimal_bytes(plan.free_bytes)} free on the disk; about {_duration(plan.seconds)}, "
        f"by a short probe{decoding}. It costs as much as {plan.break_even_epochs:.3g} epochs with live teachers. "
        "Nothing was written."
    )


def _views(report: results.CachingReport | results.CachingPlan) -> str:
    of = "" if report.num_distinct_views is None else f" of {report.num_distinct_views}"
    there = min(one.views for one in report.teachers)
    wanted = f" are there; {report.views} wanted" if there > report.views else ""
    return f"{report.folder}: {there}{of} views of {report.samples:,} samples{wanted}"


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def _verification(report: results.VerificationReport) -> Blocks:
    for file in report.files:
        name = f"{file.name}, {file.shard}" if file.shard else file.name
        checked = f"{file.blocks:,} blocks, " if file.blocks else ""
        done = f" ({file.done:.0%} done)" if file.verdict in ("unfinished", "growing") else ""
        yield f"{file.verdict}{done}  {name}: {checked}{decimal_bytes(file.file_bytes)}"
        yield from (f"    {fault.text}" for fault in file.faults[:_FAULTS_SHOWN])
        if len(file.faults) > _FAULTS_SHOWN:
            yield f"    and {len(file.faults) - _FAULTS_SHOWN} more; --json lists them all"
        if file.cure:
            yield f"    {file.cure}"
    for found in report.recomputed:
        yield (
            f"{'agrees' if found.agrees else 'differs'}  {found.teacher}: {found.pairs} views computed again in "
            f"{found.precision}; logits differ by up to {found.largest_difference:.3g} (sample {found.sample}, view "
            f"{found.view_index}; tolerance {found.tolerance:.3g}), top-1 is the same for {found.top1_agreement:.2%}"
        )
    yield f"{report.folder} is {'sound' if report.sound else 'not sound'}"


def _pack(report: results.PackReport) -> Blocks:
    columns = [Column("teacher"), Column("logits"), Column("features"), Column("views", format="d")]
    rows = [
        (
            teacher.name,
            "all" if teacher.top_k is None else f"{teacher.top_k} largest",
            ", ".join(teacher.features) or "none",
            teacher.views,
            teacher.file_bytes,
        )
        for teacher in report.teachers
    ]
    yield Table("", [*columns, Column("size", format="bytes")], rows)
    yield (
        f"{report.folder}: {decimal_bytes(report.file_bytes)}, of {decimal_bytes(report.source_bytes)}; complete "
        "README.md where it says (fill in), then upload the folder as it is"
    )


def _run(report: results.RunReport) -> Blocks:
    split = "" if report.best_split == "test" else f"{report.best_split} top-1 "
    changes = ", ".join(f"{name}={value}" for name, value in report.method_changes.items())
    method = f"{report.method} ({changes})" if changes else report.method
    yield (
        f"{report.network}, {method}, seed {report.seed}: test top-1 {report.test_top1:.2%} "
        f"({round(report.test_top1 * report.test_samples)} of {report.test_samples}) after {report.epochs} "
        f"{'epoch' if report.epochs == 1 else 'epochs'}; best {split}{report.best_top1:.2%} in epoch "
        f"{report.best_epoch}; "
        f"{report.seconds:.1f} s of training; {report.folder}"
    )


def _evaluation(report: results.EvaluationReport) -> Blocks:
    yield (
        f"{report.network} in {report.folder}: top-1 {report.top1:.2%}, top-5 {report.top5:.2%} of {report.samples:,} "
        f"{report.split} images"
    )


def _export(report: results.ExportReport) -> Blocks:
    yield (
        f"{report.file}: {report.network} as {report.format}, {decimal_bytes(report.file_bytes)}, input "
        f"(B, {', '.join(map(str, report.input_shape))}), {report.classes} classes. Loaded in a fresh process, its "
        f"logits of {report.images} test images differ from the student's by {report.largest_difference:.2g} at most"
    )


def _parquet(report: results.ParquetReport) -> Blocks:
    size = decimal_bytes(report.file_bytes)
    yield f"{report.folder}: {report.rows:,} rows in {report.files} Parquet file(s), {size}"


def _demo(report: results.DemoReport) -> Blocks:
    caching = report.caching
    yield from _caching(caching)
    by_method: dict[str, list[results.RunReport]] = {}
    for run in report.students:
        by_method.setdefault(run.method, []).append(run)
    rows = []
    for method, runs in by_method.items():
        top1 = [run.test_top1 for run in runs]
        learns = "labels" if method == "ce" else f"labels and teachers ({method})"
        epoch = sum(run.seconds for run in runs) / sum(run.epochs for run in runs)
        rows.append((learns, statistics.mean(top1), statistics.stdev(top1), f"{epoch:.1f} s"))
    columns = [Column("learns", "the student learns from"), Column("top-1", "test top-1", "percent")]
    columns += [Column("std", format="percent"), Column("epoch")]
    samples = report.students[0].test_samples
    yield Table("Students", columns, rows, f"resnet8, mean and deviation of {len(runs)} seeds, {samples} test images")
    alone, last = rows[0][1], rows[-1][1]
    yield f"40 % of the training labels are wrong. Labels alone: {alone:.1%}; with three teachers: {last:.1%}."
    seconds, size = (sum(getattr(one, name) or 0 for one in caching.teachers) for name in ("seconds", "file_bytes"))
    live = sum(run.epochs for run in report.students if run.method != "ce")
    took = f"took {seconds:.1f} s, once" if seconds else "was there already"
    yield f"The cache of {decimal_bytes(size)} {took}; no teacher runs while a student trains."
    yield f"Predictions per teacher and image: {caching.views}. Live teachers: {live}. In all: {report.seconds:.0f} s."
    yield f"Next: demkd inspect {report.folder}/cache"
    yield "Own data: demkd cache-teachers --data FOLDER --teacher NETWORK@CHECKPOINT --out runs/cache"


_BLOCKS: Mapping[type, Callable[[Any], Blocks]] = {
    results.CachingPlan: _plan,
    results.CachingReport: _caching,
    results.DemoReport: _demo,
    results.EvaluationReport: _evaluation,
    results.ExportReport: _export,
    results.PackReport: _pack,
    results.ParquetReport: _parquet,
    results.RunReport: _run,
    results.VerificationReport: _verification,
}
