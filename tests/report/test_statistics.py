"""What `inspect` finds in a cache equals what plain h5py, NumPy and SciPy find in its files."""

import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from demkd.cache import CacheDamagedError, open_cache
from demkd.report import inspect
from demkd.report.statistics import SCORES, CacheStatistics, label_scores, rank_correlation, read_statistics
from demkd.report.table import ReportError
from tests.cache.counting import flip
from tests.report.inspected import CLASSES, DATA, LABELS, TEACHERS, VIEWS, Plain, write_inspected, write_teacher

NAMES = DATA["class_names"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inspected(tmp_path_factory.mktemp("inspected") / "cache")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Plain:
    return Plain(folder)


@pytest.fixture(scope="module")
def statistics(folder: Path) -> CacheStatistics:
    return read_statistics(open_cache(folder))


def disagreement(plain: Plain) -> NDArray[np.float64]:
    """(N,): how many of the pairs differ in how many views."""
    pairs = list(itertools.combinations(range(3), 2))
    differing = sum((plain.prediction[i] != plain.prediction[j]).sum(0) for i, j in pairs)
    return np.asarray(differing / (VIEWS * len(pairs)))


def test_teachers_in_numbers(statistics: CacheStatistics, plain: Plain) -> None:
    for k, row in enumerate(inspect.overview(statistics)["teachers"]):
        expected = {
            "top1": plain.right[k].mean(),
            "entropy": plain.entropy[k].mean(),
            "weight": plain.weights[k].mean(),
            "wrong_above_uniform": plain.wrong_above_uniform[k].mean(),
            **{f"entropy_q{q}": np.quantile(plain.entropy[k], q / 100) for q in (25, 50, 75)},
        }
        assert row["teacher"] == TEACHERS[k]
        assert {key: row[key] for key in expected} == pytest.approx(expected)
        assert row["histogram"] == np.histogram(plain.entropy[k], 20, (0, math.log(CLASSES)))[0].tolist()


def test_agreement_is_that_of_scipy(statistics: CacheStatistics, plain: Plain) -> None:
    for (i, j), row in zip(itertools.combinations(range(3), 2), inspect.agreement(statistics), strict=True):
        assert (row["teacher"], row["other"]) == (TEACHERS[i], TEACHERS[j])
        assert row["same_top1"] == pytest.approx((plain.prediction[i] == plain.prediction[j]).mean())
        correlation = stats.spearmanr(plain.entropy[i].mean(0), plain.entropy[j].mean(0)).statistic
        assert row["rank_correlation"] == pytest.approx(correlation)


def test_ranks_of_equal_values_are_shared() -> None:
    """And no correlation with a teacher whose entropies are all the same."""
    values = np.stack([np.arange(40) // 7, np.arange(40) % 5, np.full(40, 0.25)]).astype(np.float64)
    found = rank_correlation(values)
    assert found[0, 1] == pytest.approx(stats.spearmanr(values[0], values[1]).statistic)
    assert np.isnan(found[0, 2])


def test_classes_one_by_one(statistics: CacheStatistics, plain: Plain) -> None:
    rows = sorted(inspect.classes(statistics), key=lambda row: row["index"])
    assert [row["class"] for row in rows] == NAMES
    for index, row in enumerate(rows[:3]):
        of_class = plain.labels == index
        assert row["samples"] == of_class.sum()
        values = {"top1": plain.right, "entropy": plain.entropy, "wrong_above_uniform": plain.wrong_above_uniform}
        expected = {key: value[:, :, of_class].mean() for key, value in values.items()}
        expected["disagreement"] = disagreement(plain)[of_class].mean()
        for k, name in enumerate(TEACHERS):
            for key, value in {**values, "weight": plain.weights}.items():
                expected[f"{name}.{key}"] = value[k][:, of_class].mean()
        assert {key: row[key] for key in expected} == pytest.approx(expected)
    assert rows[3]["samples"] == 0
    assert {value for key, value in rows[3].items() if key not in ("class", "index", "samples")} == {None}


def test_classes_can_be_sorted_by_every_column_and_both_ways(statistics: CacheStatistics) -> None:
    """A class without numbers comes last."""
    for column in inspect.classes(statistics).columns[1:]:
        for sign, sort in ((-1, column.key), (1, f"-{column.key}")):
            values = [row[column.key] for row in inspect.classes(statistics, sort=sort)]
            known = [value for value in values if value is not None]
            assert known == sorted(known, key=lambda value: sign * value)
            assert values[: len(known)] == known
        assert len(inspect.classes(statistics, sort=column.key, limit=2)) == 2


def test_the_most_uncertain_samples(statistics: CacheStatistics, plain: Plain) -> None:
    score = plain.entropy.mean((0, 1))
    expected = sorted(range(len(LABELS)), key=lambda index: (-score[index], index))[:5]
    rows = inspect.samples(statistics, "uncertain", 5)
    assert [row["index"] for row in rows] == expected
    assert [row["score"] for row in rows] == pytest.approx(score[expected])
    for row in rows:
        i = row["index"]
        assert row["label"] == NAMES[plain.labels[i]]
        for k, name in enumerate(TEACHERS):
            votes = np.bincount(plain.prediction[k, :, i], minlength=CLASSES)
            assert row[f"{name}.prediction"] == NAMES[votes.argmax()]
            assert row[f"{name}.fraction"] == votes.max() / VIEWS
            assert row[f"{name}.entropy"] == pytest.approx(plain.entropy[k, :, i].mean())
            assert row[f"{name}.weight"] == pytest.approx(plain.weights[k, :, i].mean())


def test_the_samples_with_most_disagreement(statistics: CacheStatistics, plain: Plain) -> None:
    """Then by how far apart the teachers' mean entropies are."""
    score, spread = disagreement(plain), np.ptp(plain.entropy.mean(1), axis=0)
    expected = sorted(range(len(LABELS)), key=lambda index: (-score[index], -spread[index], index))
    assert len(set(score)) < len(score), "the second criterion is needed"
    rows = inspect.samples(statistics, "disagree", len(LABELS))
    assert [row["index"] for row in rows] == expected
    assert [row["score"] for row in rows] == pytest.approx(score[expected])


def test_where_a_wrong_teacher_weighs_most(statistics: CacheStatistics, plain: Plain) -> None:
    excess = (plain.wrong_above_uniform * (plain.weights - 1 / 3)).mean(1)
    score = excess.max(0)
    rows = inspect.samples(statistics, "wrong_above_uniform", 100)
    assert 0 < len(rows) < len(LABELS), "other samples are not listed"
    assert {row["index"] for row in rows} == set(np.flatnonzero(plain.wrong_above_uniform.any((0, 1))))
    assert [row["score"] for row in rows] == pytest.approx(sorted(score[score > 0], reverse=True))
    for row in rows:
        assert excess[TEACHERS.index(row["wrong_teacher"]), row["index"]] == pytest.approx(row["score"])


def test_one_sample(folder: Path, plain: Plain) -> None:
    found = inspect.sample(open_cache(folder), 12, view_index=2)
    assert (found["label"], found["view"]) == ("ant", str(plain.views[0, 2, 12, 0]))
    for k, row in enumerate(found["predictions"]):
        probabilities = special.softmax(plain.logits[k, 2, 12].astype(np.float64))
        order = sorted(range(CLASSES), key=lambda c: (-probabilities[c], c))
        assert row["classes"] == [NAMES[c] for c in order]
        assert row["probabilities"] == pytest.approx(probabilities[order])
        assert (row["entropy"], row["weight"]) == (plain.entropy[k, 2, 12], plain.weights[k, 2, 12])
    for k, row in enumerate(found["views"]):
        assert row["entropy_mean"] == pytest.approx(plain.entropy[k, :, 12].mean())
        assert row["weight_by_view"] == pytest.approx(plain.weights[k, :, 12])
        assert row["top1"] == plain.right[k, :, 12].mean()
    for view, row in enumerate(inspect.sample_views(open_cache(folder), 12)):
        assert (row["view_index"], row["view"]) == (view, str(plain.views[0, view, 12, 0]))
        for k, name in enumerate(TEACHERS):
            assert row[f"{name}.prediction"] == NAMES[plain.prediction[k, view, 12]]
            assert row[f"{name}.correct"] == plain.right[k, view, 12]
            assert row[f"{name}.entropy"] == plain.entropy[k, view, 12]


def test_the_highest_entropy_counts_although_float32_rounds_it_up(statistics: CacheStatistics) -> None:
    uniform = np.full(len(LABELS), np.log(CLASSES), np.float32)
    assert float(uniform[0]) > math.log(CLASSES)
    found = inspect.overview(replace(statistics, entropy=[[uniform] * VIEWS] * 3))["teachers"][0]["histogram"]
    assert found == [0] * 19 + [VIEWS * len(LABELS)]


def test_teachers_in_another_order_keep_their_numbers(folder: Path, statistics: CacheStatistics) -> None:
    turned = inspect.overview(read_statistics(open_cache(folder, ["cleo", "ada", "bob"])))
    ada, bob, cleo = inspect.overview(statistics)["teachers"]
    assert list(turned["teachers"]) == [cleo, ada, bob]
    assert turned["weights"] == "a half in turn"


def test_provenance(folder: Path, statistics: CacheStatistics) -> None:
    found = inspect.overview(statistics)
    ada, bob, cleo, weights = (path.stat().st_size for path in sorted(folder.glob("*.h5")))
    expected = {
        "data": "insects",
        "split": "train",
        "samples": 14,
        "classes": 4,
        "views": 4,
        "distinct_views": 18,
        "view_seed": 7,
        "augmentation": "crop-flip, flip True, padding 1",
        "pixels_sha256": "cd" * 32,
        "file_bytes": ada + bob + cleo + weights,
        "weights": "a half in turn",
        "unfinished": [],
        "precision": "float32",
    }
    assert {key: found[key] for key in expected} == expected
    for teachers, size in ((["ada", "bob"], ada + bob), (["cleo"], cleo)):
        assert inspect.overview(read_statistics(open_cache(folder, teachers)))["file_bytes"] == size
    teacher = found["provenance"][1]
    assert (teacher["network"], teacher["parameters"], teacher["weights_sha256"]) == ("resnet16", 2000, "212121212121")
    assert (teacher["mean"], teacher["std"], teacher["features"]) == ("0.5 0.5 0.25", "0.25 0.25 0.25", "last 2")


def test_unfinished_files_and_missing_weights_are_reported(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    write_teacher(copy, 0, name="late", blocks=3)
    (copy / "torn.00001-of-00001.h5.partial").write_bytes(b"nothing")
    found = inspect.overview(read_statistics(open_cache(copy, ["ada", "bob"])))
    assert found["unfinished"] == ["late (25% done)", "torn (unreadable)"]
    assert found["weights"].startswith("of other teachers or fewer views")
    (copy / "weights.h5").unlink()
    bare = read_statistics(open_cache(copy))
    found = inspect.overview(bare)
    assert found["weights"].startswith("none: run cache-teachers again")
    assert "weight" not in found["teachers"][0]
    assert inspect.classes(bare)[0]["ada.wrong_above_uniform"] is None
    with pytest.raises(ReportError, match="has no weights of ada, bob, cleo: leave `teachers` out, or run `cache_"):
        inspect.samples(bare, "wrong_above_uniform", 3)
    alone = read_statistics(open_cache(copy, ["bob"]))
    assert inspect.classes(alone)[0]["disagreement"] is None


@pytest.mark.parametrize("name", ["entropy", "prediction", "logits"])
def test_a_flipped_bit_is_found_before_it_is_shown(folder: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    extent = open_cache(copy).teachers[1].files[0].header.contents[name]
    flip(copy / "bob.00001-of-00001.h5", extent.offset + extent.view_bytes + 2)  # view 1, first block
    cache = open_cache(copy)
    with pytest.raises(CacheDamagedError, match=rf"{name} of teacher bob, view 1, rows 0 to 4 do not match"):
        inspect.sample(cache, 3, view_index=1)
    if name != "logits":
        with pytest.raises(CacheDamagedError, match=rf"{name} of teacher bob, view 1"):
            read_statistics(cache)


def test_labels_beyond_16_bits_are_compared_whole(tmp_path: Path) -> None:
    names = [str(number) for number in range(65_540)]
    labels = np.array([65_537, 65_539])
    write_teacher(tmp_path, 0, data={**DATA, "samples": 2, "class_names": names}, labels=labels)
    cache = open_cache(tmp_path)
    right = [cache.teachers[0].read("prediction", view) == labels for view in range(VIEWS)]
    assert np.any(right)
    assert np.array_equal(read_statistics(cache).top1[0], np.mean(right, axis=0))


def by_hand(score: str, logits: list[float], label: int) -> float:
    """One score, from its definition."""
    total = sum(math.exp(logit) for logit in logits)
    p = [math.exp(logit) / total for logit in logits]
    wrong = p.index(max(p)) != label
    return {
        "cross-entropy": -math.log(p[label]),
        "margin": max(value for c, value in enumerate(p) if c != label) - p[label],
        "certainty": max(p) if wrong else 0.0,
        "disagreement": float(wrong),
        "entropy": -sum(value * math.log(value) for value in p),
    }[score]


@pytest.mark.parametrize("score", SCORES)
def test_a_score_of_labels_is_the_mean_over_teachers_and_views(
    folder: Path, statistics: CacheStatistics, plain: Plain, score: str
) -> None:
    places = [(k, v) for k in range(len(TEACHERS)) for v in range(VIEWS)]
    for labels in (plain.labels, (plain.labels + 1) % CLASSES):
        expected = [
            sum(by_hand(score, list(map(float, plain.logits[k, v, n])), int(label)) for k, v in places) / len(places)
            for n, label in enumerate(labels)
        ]
        cache = open_cache(folder)
        cache.labels = labels
        assert label_scores(cache, score) == pytest.approx(np.array(expected), abs=1e-12)
    highest = np.argsort(-label_scores(open_cache(folder), score), kind="stable")[:5]
    assert [row["index"] for row in inspect.samples(statistics, "label_issues", 5, score=score)] == list(highest)


def test_an_unknown_score_is_refused(statistics: CacheStatistics) -> None:
    with pytest.raises(ReportError, match=r"there is no `score=magic`: choose cross-entropy, margin"):
        inspect.samples(statistics, "label_issues", 5, score="magic")
