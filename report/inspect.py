"""What `inspect` shows: an overview of a cache, its classes, lists of samples, and one sample.

K teachers, V views, N samples, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from demkd.cache import Cache, CacheDamagedError, CacheError, CacheIncompleteError, CacheMissingError, ShardFile
from demkd.cache.shards import WEIGHTS, parse_name
from demkd.pipeline.results import is_near_chance
from demkd.report.statistics import CacheStatistics, by_class, label_scores, log_softmax, rank_correlation
from demkd.report.table import Column, ReportError, Table

HISTOGRAM_BINS = 20
MOST_PROBABLE = 5
_NOTES = {  # of the columns of classes
    "entropy": "entropy in nats",
    "disagreement": "disagreement: fraction of views and pairs of teachers with different predictions",
    "wrong_above_uniform": "above 1/K: fraction of views where a wrong teacher weighs more than 1/K",
}


def overview(statistics: CacheStatistics) -> dict[str, Any]:
    """A whole cache: facts, and the tables "teachers", "provenance" and, for two teachers or more, "agreement"."""
    cache = statistics.cache
    first = cache.teachers[0].provenance
    data, views = first.identity["data"], first.identity["views"]
    file_bytes = sum(teacher.file_bytes for teacher in cache.teachers)
    if cache.teacher_weights is not None:
        weighting = cache.teacher_weights.weighting
        file_bytes += (cache.folder / WEIGHTS).stat().st_size
    elif (cache.folder / WEIGHTS).exists():
        weighting = "of other teachers or fewer views: leave --teachers out, or run cache-teachers again"
    else:
        weighting = "none: run cache-teachers again, which computes them"
    unfinished = []
    for file in sorted(cache.folder.glob("*.h5.partial")):
        name, shard = parse_name(file.name) or (file.name, None)
        try:
            progress = f"{ShardFile(file).progress():.0%} done"
        except (CacheError, OSError):  # damaged, or renamed by the writer since the folder was listed
            progress = "unreadable"
        unfinished.append(f"{f'{name} ({shard})' if shard and shard.count > 1 else name} ({progress})")
    precisions = dict.fromkeys(teacher.provenance.identity["precision"] for teacher in cache.teachers)
    return {
        "folder": str(cache.folder),
        "data": str(first.notes.get("data", "")),
        "split": _of_type(str, data.get("split")),
        "samples": cache.samples,
        "classes": cache.classes,
        "image_size": " x ".join(str(int(side)) for side in _numbers(data.get("image_size"))),
        "views": cache.num_views,
        "distinct_views": _of_type(int, first.notes.get("num_distinct_views")),
        "augmentation": _in_words(views),
        "view_seed": views["seed"],
        "precision": ", ".join(precisions),
        "pixels_sha256": _of_type(str, data.get("pixels_sha256", data.get("files_sha256"))),
        "labels_sha256": data["labels_sha256"],
        "weights": weighting,
        "file_bytes": file_bytes,
        "unfinished": unfinished,
        "teachers": _teachers(statistics),
        "provenance": _provenance(cache),
        **({"agreement": agreement(statistics)} if len(cache.teachers) > 1 else {}),
    }


def _teachers(statistics: CacheStatistics) -> Table:
    cache, count = statistics.cache, len(statistics.cache.teachers)
    edges = np.linspace(0, np.log(cache.classes), HISTOGRAM_BINS + 1)[1:-1]
    quartiles, histograms = [], []
    for views in statistics.entropy:
        ordered = np.sort(np.concatenate(views))  # once for both
        quartiles.append(np.quantile(ordered, (0.25, 0.5, 0.75)))
        histograms.append(np.diff(np.searchsorted(ordered, edges), prepend=0, append=len(ordered)).tolist())
    top1s = statistics.top1.mean(1)
    columns: dict[Column, Any] = {
        Column("teacher"): cache.names,
        Column("top1", "top-1", "percent"): top1s,
        Column("entropy", format=".3f"): statistics.mean_entropy.mean(1),
    }
    for name, column in zip(("q25", "q50", "q75"), zip(*quartiles, strict=True), strict=True):
        columns[Column(f"entropy_{name}", f"entropy\n{name}", ".2f", 3, "q25, q50, q75: its quartiles")] = column
    columns[Column("histogram", "entropy\nhistogram", "bars", 4, "histogram: from 0 to ln C")] = histograms
    note = "entropy in nats over all views"
    if statistics.weights is not None and count > 1:  # a single teacher's weight is 1
        columns |= {Column("weight", format=".3f", rank=1): statistics.mean_weight.mean(1)}
        meaning = f"above 1/{count}: fraction of views where the teacher is wrong and weighs more than 1/{count}"
        last = Column("wrong_above_uniform", f"wrong and\nabove 1/{count}", "percent", 2, meaning)
        columns[last] = statistics.wrong_above_uniform.mean(1)
    low = [name for name, top1 in zip(cache.names, top1s, strict=True) if is_near_chance(float(top1), cache.classes)]
    if low:
        note += f"; near chance: {', '.join(low)}: check the class order and the normalization"
    return Table.from_columns("Entropy, accuracy and weight", columns, note)


def _provenance(cache: Cache) -> Table:
    columns = [Column("teacher"), Column("network", rank=2), Column("parameters", format=",d", rank=3)]
    columns += [Column("weights_sha256", "SHA-256\nof weights", rank=1), Column("views", format="d", rank=6)]
    columns += [Column("features", rank=5), Column("size", format="bytes", rank=4)]
    columns += [Column("shards", format="d", rank=7), Column("mean", rank=8), Column("std", rank=8)]
    columns += [Column("input_size", "input\nsize", rank=9), Column("device", rank=10), Column("versions", rank=11)]
    rows = []
    for teacher in cache.teachers:
        identity, notes = teacher.provenance.identity["teacher"], teacher.provenance.notes
        versions = notes.get("versions")
        rows.append(
            (
                teacher.name,
                identity["network"],
                _of_type(int, notes.get("parameters")),
                identity["state_sha256"][:12],
                teacher.shape.num_views,
                ", ".join(f"{layer} {'x'.join(map(str, shape))}" for layer, shape in teacher.shape.features.items()),
                teacher.file_bytes,
                len(teacher.files),
                " ".join(f"{value:g}" for value in _numbers(identity.get("mean"))),
                " ".join(f"{value:g}" for value in _numbers(identity.get("std"))),
                _of_type(int, identity.get("input_size")),
                _of_type(str, notes.get("device")),
                ", ".join(f"{key} {value}" for key, value in versions.items()) if isinstance(versions, Mapping) else "",
            )
        )
    return Table("Provenance", columns, rows)


def agreement(statistics: CacheStatistics) -> Table:
    """Pairs of teachers: the fraction of views with the same prediction, and Spearman's correlation of entropies."""
    names, correlation = statistics.cache.names, rank_correlation(statistics.mean_entropy)
    pairs = list(combinations(range(len(names)), 2))
    columns: dict[Column, Any] = {
        Column("teacher"): [names[i] for i, _ in pairs],
        Column("other", "and"): [names[j] for _, j in pairs],
        Column("same_top1", "same\nprediction", "percent"): [statistics.same_top1[pair] for pair in pairs],
        Column("rank_correlation", "rank\ncorrelation", ".3f"): [correlation[pair] for pair in pairs],
    }
    note = "rank correlation: Spearman's, of the samples' mean entropies"
    return Table.from_columns("Agreement", columns, note)


def classes(statistics: CacheStatistics, *, sort: str = "entropy", limit: int | None = None) -> Table:
    """The classes by a column, largest first; `-COLUMN` is smallest first. What has no number comes last."""
    cache = statistics.cache
    by_column: dict[Column, Any] = {
        Column("class"): cache.class_names,
        Column("index", format="d", rank=9): range(cache.classes),
        Column("samples", format=",d", rank=5): np.bincount(cache.labels, minlength=cache.classes),
        Column("disagreement", "disagree-\nment", "percent", 3, _NOTES["disagreement"]): by_class(
            statistics, statistics.disagreement[None]
        )[0],
    }
    measures = [("top1", "top-1", "percent", 1, statistics.top1)]
    measures += [("entropy", "entropy", ".3f", 2, statistics.mean_entropy)]
    if len(cache.teachers) > 1:  # a single teacher's weight is 1
        measures += [("weight", "weight", ".3f", 6, statistics.mean_weight)]
        measures += [("wrong_above_uniform", "wrong and\nabove 1/K", "percent", 4, statistics.wrong_above_uniform)]
    for key, heading, form, rank, values in measures:
        of_class = by_class(statistics, values)
        if key != "weight":  # whose mean is 1 / K
            by_column[Column(key, f"mean\n{heading}", form, rank + 6, _NOTES.get(key, ""))] = of_class.mean(0)
        for name, row in zip(cache.names, of_class, strict=True):
            by_column[Column(f"{name}.{key}", f"{name}\n{heading}", form, rank, _NOTES.get(key, ""))] = row
    wanted, columns = sort.removeprefix("-"), list(by_column)
    keys = [column.key for column in columns]
    if wanted not in keys[1:]:
        raise ReportError(f"there is no column {wanted!r} to sort by: choose one of {', '.join(keys[1:])}")
    place, sign = keys.index(wanted), 1 if sort.startswith("-") else -1
    columns[place] = replace(columns[place], rank=0)  # always shown
    rows = Table.from_columns("", by_column).rows
    ranked = sorted(rows, key=lambda row: (row[place] is None, sign * (row[place] or 0)))
    return Table(
        f"Classes by {wanted}, {'smallest' if sign == 1 else 'largest'} first",
        columns,
        ranked[:limit],
        "means over views",
    )


def samples(statistics: CacheStatistics, by: str, count: int, *, score: str = "cross-entropy") -> Table:
    """The samples with the highest values, averaged over the views; equals by index.

    "uncertain" is the teachers' mean entropy; "disagree" the fraction of views and pairs of teachers with different
    predictions, among equals the distance of the teachers' mean entropies; "wrong_above_uniform" by how much a wrong
    teacher weighs more than 1 / K, if it does; "label_issues" the label's `score`.
    """
    cache, names = statistics.cache, statistics.cache.names
    then, by_weight = np.zeros(cache.samples), by == "wrong_above_uniform"
    form = ".3f"
    if by == "uncertain":
        title, heading, values = "Most uncertain samples", "mean\nentropy", statistics.mean_entropy.mean(0)
    elif by == "disagree":
        if len(names) == 1:
            raise ReportError(f"{names[0]} is the only teacher: disagreement needs two or more (`teachers`)")
        title, heading, form = "Samples with most disagreement", "disagree-\nment", "percent"
        values, then = statistics.disagreement, np.ptp(statistics.mean_entropy, axis=0)
    elif by_weight:
        if statistics.weights is None:
            raise ReportError(
                f"{cache.folder} has no weights of {', '.join(names)}: leave `teachers` out, or run `cache_teachers` "
                "again, which computes them"
            )
        title, heading = "Samples where a wrong teacher weighs more than 1/K", "above\n1/K"
        values = statistics.excess_weight.max(0)
        count = min(count, int((values > 0).sum()))
    else:
        title, heading, values = "Possible label issues", score.replace("-", "-\n"), label_scores(cache, score)
    chosen = np.lexsort((-then, -values))[:count]
    columns: dict[Column, Any] = {
        Column("index", "sample", "d"): chosen,
        Column("label"): [cache.class_names[label] for label in cache.labels[chosen]],
        Column("score", heading, form, 1): values[chosen],
    }
    if by_weight:
        worst = statistics.excess_weight[:, chosen].argmax(0)
        columns[Column("wrong_teacher", "wrong\nteacher")] = [names[k] for k in worst]
    for k, name in enumerate(names):
        predicted = np.stack([classes[chosen] for classes in statistics.prediction[k]], axis=1)
        votes = [np.bincount(row) for row in predicted]
        columns |= {
            Column(f"{name}.prediction", f"{name}\npredicts", "", 2, "predicts: the most frequent prediction"): [
                cache.class_names[v.argmax()] for v in votes
            ],
            Column(f"{name}.fraction", f"{name}\nof views", "percent", 5, "of views: fraction with this prediction"): [
                v.max() / v.sum() for v in votes
            ],
            Column(f"{name}.entropy", f"{name}\nentropy", ".3f", 4 if by_weight else 3): (
                statistics.mean_entropy[k, chosen]
            ),
            Column(f"{name}.weight", f"{name}\nweight", ".3f", _weight_rank(cache, 3 if by_weight else 6)): (
                statistics.mean_weight[k, chosen]
            ),
        }
    return Table.from_columns(title, columns, "means over the views")


def sample(cache: Cache, index: int, *, view_index: int = 0) -> dict[str, Any]:
    """One sample: the most probable classes in one view, and entropy and weight over all views.

    Reads only the blocks of this sample.
    """
    by_view = list(sample_views(cache, index))
    if not 0 <= view_index < cache.num_views:
        raise CacheIncompleteError(
            f"there is no view {view_index}: {cache.folder} has views 0 to {cache.num_views - 1}"
        )
    view = by_view[view_index]
    columns = [Column("teacher"), Column("predictions"), Column("entropy", format=".3f")]
    columns += [Column("weight", format=".3f", rank=_weight_rank(cache, 1))]
    columns += [Column("classes", rank=None), Column("probabilities", rank=None)]
    rows = []
    for teacher in cache.teachers:
        for name in teacher.shape.logit_sets():
            teacher.read_one(name, view_index, index)  # checks the block
        logits = teacher.logits(view_index, np.array([index]), temperature=1.0)
        probabilities = np.exp(log_softmax(logits))[0]
        best = np.argsort(-probabilities, kind="stable")[:MOST_PROBABLE]
        names, values = [cache.class_names[c] for c in best], probabilities[best].tolist()
        words = ", ".join(f"{name} {value:.1%}" for name, value in zip(names, values, strict=True))
        measures = (view[f"{teacher.name}.entropy"], view[f"{teacher.name}.weight"])
        rows.append((teacher.name, words, *measures, names, values))
    found = {
        "sample": index,
        "label": cache.class_names[int(cache.labels[index])],
        "view_index": view_index,
        "view": view["view"],
        "predictions": Table("Most probable classes", columns, rows),
    }
    if cache.num_views == 1:
        return found
    over_views: dict[Column, Any] = {
        Column("teacher"): cache.names,
        Column("top1", "top-1", "percent", 3): [
            np.mean([view[f"{name}.correct"] for view in by_view]) for name in cache.names
        ],
    }
    for key, rank, bars_rank in (("entropy", 1, 2), ("weight", _weight_rank(cache, 1), _weight_rank(cache, 4))):
        by_teacher = [[view[f"{name}.{key}"] for view in by_view] for name in cache.names]
        array = np.array(by_teacher, np.float64)  # (K, V), NaN where there are no weights
        for which, of_teacher in (("min", array.min(1)), ("mean", array.mean(1)), ("max", array.max(1))):
            over_views[Column(f"{key}_{which}", f"{key}\n{which}", ".3f", rank)] = of_teacher
        over_views[Column(f"{key}_by_view", f"{key}\nby view", "bars", bars_rank)] = [
            None if None in values else values for values in by_teacher
        ]
    return found | {"views": Table.from_columns("Over all views", over_views, "--views lists every view")}


def sample_views(cache: Cache, index: int) -> Table:
    """What all teachers predict for one sample, view by view: V rows."""
    if not 0 <= index < cache.samples:
        raise CacheMissingError(f"there is no sample {index}: {cache.folder} has samples 0 to {cache.samples - 1}")
    label, views = int(cache.labels[index]), range(cache.num_views)
    params: list[str] = []
    for view in views:
        distinct = {" ".join(map(str, teacher.read_one("params", view, index))) for teacher in cache.teachers}
        if len(distinct) > 1:
            raise CacheDamagedError(f"teachers in {cache.folder} saw different views of sample {index} (view {view})")
        params += distinct
    columns: dict[Column, Any] = {
        Column("view_index", "view", "d"): views,
        Column("view", "parameters", rank=4): params,
    }
    for k, (name, teacher) in enumerate(zip(cache.names, cache.teachers, strict=True)):
        predicted = [int(teacher.read_one("prediction", view, index)) for view in views]
        if max(predicted) >= cache.classes:
            raise CacheDamagedError(f"{teacher.path} predicts class {max(predicted)}: remove it and make it again")
        weights = cache.teacher_weights
        columns |= {
            Column(f"{name}.prediction", f"{name}\npredicts", rank=2): [cache.class_names[c] for c in predicted],
            Column(f"{name}.correct", rank=None): [c == label for c in predicted],
            Column(f"{name}.entropy", f"{name}\nentropy", ".3f", 1): [
                teacher.read_one("entropy", view, index) for view in views
            ],
            Column(f"{name}.weight", f"{name}\nweight", ".3f", _weight_rank(cache, 3)): [
                np.nan if weights is None else weights.values[k, view, index] for view in views
            ],
        }
    return Table.from_columns(f"Sample {index}, label {cache.class_names[label]}, all views", columns)


def with_files(result: dict[str, Any] | Table, file_of: Callable[[int], str | None]) -> dict[str, Any] | Table:
    """A list of samples, or one sample, with the path of each image where there is one."""
    if isinstance(result, dict):
        return {"sample": result["sample"], "file": file_of(result["sample"]), **result}
    files = [file_of(row[0]) for row in result.rows]
    if None in files or any(column.key == "file" for column in result.columns):
        return result
    rows = [(row[0], file, *row[1:]) for row, file in zip(result.rows, files, strict=True)]
    return replace(result, columns=[result.columns[0], Column("file", rank=1), *result.columns[1:]], rows=rows)


def _weight_rank(cache: Cache, rank: int) -> int | None:
    """The rank of a column of weights: people do not see those of a single teacher, which are 1."""
    return rank if len(cache.teachers) > 1 else None


def _of_type(kind: type[Any], value: Any) -> Any:
    """A value of the notes or of a data set's facts, if it is of the expected type."""
    return value if type(value) is kind else None


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Sequence) and all(type(item) in (int, float) for item in value) else ()


def _in_words(views: Mapping[str, Any]) -> str:
    """An augmentation and its parameters; that of the views below it in brackets."""
    parameters = [
        f"{name} ({_in_words(value)})" if isinstance(value, Mapping) else f"{name} {value}"
        for name, value in views.items()
        if name not in ("policy", "seed")
    ]
    return ", ".join([str(views.get("policy")), *parameters])
