"""The cache page: provenance, teachers, agreement, classes and samples.

K teachers, N samples, C classes.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from demkd.report import samples
from demkd.report.cache_figures import (
    MOST_PAIRS,
    entropy_figure,
    heat_map,
    pair_figures,
    reliability_figure,
    weight_figure,
)
from demkd.report.classes import ClassSummary, by_class
from demkd.report.figures import Illustration
from demkd.report.gallery import Gallery, Picture, gallery
from demkd.report.rendering import render
from demkd.report.statistics import CacheStatistics
from demkd.report.summary import Agreement, CacheSummary, TeacherSummary, summarise
from demkd.report.suspects import suspects
from demkd.report.tables import Cell, Column, Table, number, share, word

GALLERY_SIZE = 12
MOST_CLASSES = 120
_STEPS = 6


def cache_page(statistics: CacheStatistics, *, picture: Picture | None) -> str:
    """The page of a cache, as HTML; with the pictures of some samples in the galleries, where they can be had."""
    galleries = _galleries(statistics, picture)
    summary = summarise(statistics)
    classes = by_class(statistics)
    figures = [entropy_figure(statistics), reliability_figure(statistics)]
    pairs = len(summary.teachers) * (len(summary.teachers) - 1) // 2
    return render(
        "cache.html.j2",
        title=f"Cache report: {summary.data or summary.folder.name}",
        summary=summary,
        facts_of_cache=_facts(summary),
        teachers=_teacher_table(summary.teachers),
        origins=[(teacher.name, _origin(teacher)) for teacher in summary.teachers],
        figures_of_certainty=[*figures, weight_figure(statistics)] if statistics.weights is not None else figures,
        pairs=pair_figures(statistics, summary.agreement),
        pairs_left_out=max(pairs - MOST_PAIRS, 0),
        agreement=_agreement_table(summary.agreement) if pairs else None,
        heat_maps=_heat_maps(classes, statistics.cache.names),
        classes=_class_table(classes, statistics.cache.names),
        galleries=galleries,
        has_pictures=picture is not None,
        shrunk=any(exhibit.shrunk for each in galleries for exhibit in each.exhibits),
    )


def _facts(summary: CacheSummary) -> list[tuple[str, str]]:
    num_distinct_views = "" if summary.num_distinct_views is None else f" of {summary.num_distinct_views} there are"
    unfinished = [
        f"{each.name} ({'unreadable' if each.progress is None else f'{each.progress:.0%} done'})"
        for each in summary.unfinished
    ]
    size = " x ".join(map(str, summary.picture_size))
    facts = {
        "folder": str(summary.folder),
        "data": f"{summary.data} {summary.split or ''}".strip(),
        "samples": f"{summary.samples:,} of {summary.classes} classes",
        "pictures": f"{size} pixels" if size else "",
        "views a sample": f"{summary.views}{num_distinct_views}, seed {summary.view_seed}",
        "views": summary.policy,
        "precision": summary.precision,
        "size": f"{summary.file_bytes / 1e6:,.2f} MB",
        "weights": summary.weighting or f"none: weights.h5 {summary.weights_state.replace('absent', 'is absent')}",
        "unfinished": ", ".join(unfinished),
        "pixels' SHA-256": (summary.pixels_sha256 or "")[:16],
        "labels' SHA-256": summary.labels_sha256[:16],
    }
    return [(name, value) for name, value in facts.items() if value]


def _origin(teacher: TeacherSummary) -> list[tuple[str, str]]:
    layers = [f"{layer} {' x '.join(map(str, shape))}" for layer, shape in teacher.features.items()]
    figures = "" if not teacher.mean else f"{_list(teacher.mean)} / {_list(teacher.std)}"
    facts = {
        "network": teacher.network,
        "parameters": "" if teacher.parameters is None else f"{teacher.parameters:,}",
        "weights' SHA-256": teacher.fingerprint[:16],
        "mean / std": figures,
        "input size": "" if teacher.input_size is None else f"{teacher.input_size} pixels",
        "features": ", ".join(layers) or "none",
        "views in the file": str(teacher.views),
        "file": f"{teacher.file_bytes / 1e6:,.2f} MB" + (f" in {teacher.shards} shards" if teacher.shards > 1 else ""),
        "device": teacher.device or "",
        "versions": ", ".join(f"{name} {version}" for name, version in teacher.versions.items()),
    }
    return [(name, value) for name, value in facts.items() if value]


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _teacher_table(teachers: Sequence[TeacherSummary]) -> Table:
    headings = ("top-1", "mean entropy", "25 %", "median", "75 %", "mean weight", "wrong and trusted")
    columns = [Column(text="teacher", numeric=False), Column(text="network", numeric=False)]
    columns += [Column(text=heading) for heading in headings]
    rows = [
        [
            word(teacher.name),
            word(teacher.network),
            share(teacher.top1, "top1"),
            number(teacher.mean_entropy, "mean_entropy"),
            *(number(value, name) for value, name in zip(teacher.quartiles, ("q25", "q50", "q75"), strict=True)),
            number(teacher.mean_weight, "mean_weight"),
            share(teacher.wrong_and_trusted, "wrong_and_trusted"),
        ]
        for teacher in teachers
    ]
    caption = (
        f"Over all views; entropies in nats, with their quartiles. Wrong and trusted: the share of views where the "
        f"teacher is wrong and weighs more than 1/{len(teachers)}."
    )
    return Table(key="teachers", title="Teachers", caption=caption, columns=columns, rows=rows)


def _agreement_table(agreement: Agreement) -> Table:
    rows = [
        [
            word(agreement.names[one]),
            word(agreement.names[other]),
            share(agreement.same_top1[one][other], "same_top1"),
            number(agreement.rank_correlation[one][other], "rank_correlation"),
        ]
        for one, other in itertools.combinations(range(len(agreement.names)), 2)
    ]
    columns = [Column(text="teacher", numeric=False), Column(text="and teacher", numeric=False)]
    columns += [Column(text="same prediction"), Column(text="rank correlation")]
    caption = (
        "The share of views for which two teachers predict the same class, and Spearman's rank correlation of the "
        "samples' mean entropies."
    )
    return Table(key="agreement", title="Agreement", caption=caption, columns=columns, rows=rows)


def _heat_maps(classes: Sequence[ClassSummary], names: Sequence[str]) -> list[Illustration]:
    known = sorted((row for row in classes if row.samples), key=lambda row: -(row.entropy or 0))
    cut = len(known) > MOST_CLASSES
    shown = [*known[: MOST_CLASSES // 2], *known[-MOST_CLASSES // 2 :]] if cut else known
    some = f" The {MOST_CLASSES // 2} hardest and {MOST_CLASSES // 2} easiest of {len(known)} classes." if cut else ""
    labels = [row.label for row in shown]
    # (K, C) each
    entropy = np.array([[row.teachers[k].entropy for row in shown] for k in range(len(names))], np.float64)
    errors = 1 - np.array([[row.teachers[k].top1 for row in shown] for k in range(len(names))], np.float64)
    caption = f"Classes by mean entropy over the teachers, highest first.{some}"
    return [
        heat_map(
            "class-entropy",
            "Mean entropy by class",
            values=entropy,
            rows=names,
            columns=labels,
            edges=_scale(entropy),
            shown=lambda value: f"{value:.2f} nats",
            caption=f"{caption} Dark in one row only: only this teacher is uncertain about the class.",
        ),
        heat_map(
            "class-errors",
            "Errors by class",
            values=errors,
            rows=names,
            columns=labels,
            edges=_scale(errors),
            shown=lambda value: f"{value:.0%}",
            caption=f"{caption} The share of wrong predictions, 1 - top-1. Darker here than in the map of entropy: "
            "confident errors.",
        ),
    ]


def _scale(values: NDArray[np.float64]) -> list[float]:
    """Edges of equal steps from 0 to the largest value."""
    return [float(edge) for edge in np.linspace(0.0, max(float(np.nanmax(values)), 1e-3) * 1.001, _STEPS + 1)]


def _class_table(classes: Sequence[ClassSummary], names: Sequence[str]) -> Table:
    columns = [Column(text="class", numeric=False), Column(text="samples"), Column(text="disagreement")]
    columns += [Column(text="top-1"), Column(text="entropy"), Column(text="wrong and trusted")]
    for name in names:
        columns += [Column(text=f"{name} top-1"), Column(text=f"{name} entropy")]
    highest = max((teacher.entropy or 0.0 for row in classes for teacher in row.teachers), default=0.0)
    rows = [_class_row(row, highest) for row in sorted(classes, key=lambda row: -(row.entropy or 0.0))]
    caption = (
        "Means over the views of a class, over all teachers and per teacher; entropy in nats. Disagreement: the "
        "share of views and pairs of teachers with different predictions. Darker cells: higher entropy."
    )
    return Table(key="classes", title="Classes", caption=caption, columns=columns, rows=rows, tall=True)


def _class_row(row: ClassSummary, highest: float) -> list[Cell]:
    cells = [
        word(row.label),
        number(row.samples, "samples", form=",d"),
        share(row.disagreement, "disagreement", digits=1),
        share(row.top1, "top1", digits=1),
        number(row.entropy, "entropy", level=_level(row.entropy, highest)),
        share(row.wrong_and_trusted, "wrong_and_trusted", digits=1),
    ]
    for teacher in row.teachers:
        cells.append(share(teacher.top1, f"{teacher.name}.top1", digits=1))
        cells.append(number(teacher.entropy, f"{teacher.name}.entropy", level=_level(teacher.entropy, highest)))
    return cells


def _level(value: float | None, highest: float) -> float | None:
    return None if value is None or highest <= 0 else value / highest


def _galleries(statistics: CacheStatistics, picture: Picture | None) -> list[Gallery]:
    found = [
        gallery(
            samples.uncertain(statistics, GALLERY_SIZE),
            picture,
            key="uncertain",
            title="Most uncertain",
            caption="Highest entropy, averaged over teachers and views.",
        )
    ]
    text = "Highest cross-entropy of the label, averaged over teachers and views."
    listing = suspects(statistics, GALLERY_SIZE)
    found.append(gallery(listing, picture, key="suspect", title="Possible label issues", caption=text))
    if statistics.disagreement is not None:
        text = "The largest share of views and pairs of teachers with different predictions."
        listing = samples.disputed(statistics, GALLERY_SIZE)
        found.append(gallery(listing, picture, key="disputed", title="Most disagreement", caption=text))
    if statistics.weights is not None:
        text = "Largest weight above 1/K of a wrong teacher, averaged over views."
        listing = samples.wrong_and_trusted(statistics, GALLERY_SIZE)
        found.append(gallery(listing, picture, key="trusted", title="Wrong and above 1/K", caption=text))
    return [each for each in found if each.table.rows]
