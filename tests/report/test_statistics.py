"""What `inspect` says of a cache equals what plain h5py, NumPy and SciPy find in its files."""

import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from demkd.cache import CacheDamagedError, open_cache
from demkd.report.classes import by_class, class_columns, list_classes
from demkd.report.distributions import entropy_distributions, weight_distributions
from demkd.report.errors import InspectionError
from demkd.report.samples import disputed, uncertain, wrong_and_trusted
from demkd.report.single_sample import summarise_sample, views_of_sample
from demkd.report.statistics import CacheStatistics, read_statistics
from demkd.report.summary import agreement, summarise
from tests.cache.counting import flip
from tests.report.inspected import CLASSES, DATA, LABELS, TEACHERS, VIEWS, Plain, write_inspected, write_teacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inspected(tmp_path_factory.mktemp("inspected") / "cache")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Plain:
    return Plain(folder)


@pytest.fixture(scope="module")
def statistics(folder: Path) -> CacheStatistics:
    return read_statistics(open_cache(folder))


def test_teachers_in_numbers(statistics: CacheStatistics, plain: Plain) -> None:
    for k, teacher in enumerate(summarise(statistics).teachers):
        assert teacher.name == TEACHERS[k]
        assert teacher.top1 == pytest.approx(plain.right[k].mean())
        assert teacher.mean_entropy == pytest.approx(plain.entropy[k].mean())
        assert teacher.quartiles == pytest.approx(np.quantile(plain.entropy[k], [0.25, 0.5, 0.75]))
        counts, _ = np.histogram(plain.entropy[k], 20, (0, math.log(CLASSES)))
        assert teacher.histogram == tuple(counts)
        assert teacher.mean_weight == pytest.approx(plain.weights[k].mean())
        assert teacher.wrong_and_trusted == pytest.approx(plain.trusted[k].mean())


def test_agreement_is_that_of_scipy(statistics: CacheStatistics, plain: Plain) -> None:
    found = agreement(statistics)
    for one, other in itertools.product(range(3), repeat=2):
        assert found.same_top1[one][other] == pytest.approx((plain.prediction[one] == plain.prediction[other]).mean())
        correlation = stats.spearmanr(plain.entropy[one].mean(0), plain.entropy[other].mean(0)).statistic
        assert found.rank_correlation[one][other] == pytest.approx(correlation)


def test_ranks_of_equal_entropies_are_shared(tmp_path: Path) -> None:
    """Spearman's correlation with ties; and none at all for a teacher whose entropies are all the same."""
    samples = 40
    labels, data = np.arange(samples) % 3, {**DATA, "samples": samples}
    for name, number in (("a", 0), ("b", 1)):
        write_teacher(tmp_path, number, name=name, labels=labels, data=data)
    statistics = read_statistics(open_cache(tmp_path))
    one, other = statistics.mean_entropy
    one[:], other[:] = np.arange(samples) // 7, np.arange(samples) % 5
    assert agreement(statistics).rank_correlation[0][1] == pytest.approx(stats.spearmanr(one, other).statistic)
    one[:] = 0.25
    assert agreement(statistics).rank_correlation[0] == (None, None)


def test_classes_one_by_one(statistics: CacheStatistics, plain: Plain) -> None:
    rows = by_class(statistics)
    assert [row.label for row in rows] == DATA["class_names"]
    for number, row in enumerate(rows[:3]):
        of_class = plain.labels == number
        assert row.samples == of_class.sum()
        for k, teacher in enumerate(row.teachers):
            assert teacher.top1 == pytest.approx(plain.right[k][:, of_class].mean())
            assert teacher.entropy == pytest.approx(plain.entropy[k][:, of_class].mean())
            assert teacher.weight == pytest.approx(plain.weights[k][:, of_class].mean())
            assert teacher.wrong_and_trusted == pytest.approx(plain.trusted[k][:, of_class].mean())
        assert row.top1 == pytest.approx(plain.right[:, :, of_class].mean())
        assert row.entropy == pytest.approx(plain.entropy[:, :, of_class].mean())
        assert row.wrong_and_trusted == pytest.approx(plain.trusted[:, :, of_class].mean())
        assert row.disagreement == pytest.approx(_disagreement(plain)[of_class].mean())


def test_a_class_without_samples_has_no_numbers_and_comes_last(statistics: CacheStatistics) -> None:
    empty = by_class(statistics)[3]
    assert (empty.samples, empty.top1, empty.disagreement, empty.teachers[0].weight) == (0, None, None, None)
    for sort in ("top1", "-top1", "bob.entropy"):
        assert list_classes(statistics, sort=sort).rows[-1] == empty


@pytest.mark.parametrize("column", class_columns(TEACHERS))
def test_classes_can_be_sorted_by_every_column_and_both_ways(statistics: CacheStatistics, column: str) -> None:
    def value(row: object) -> float:
        teacher, _, name = column.rpartition(".")
        found = next((one for one in row.teachers if one.name == teacher), row)  # type: ignore[attr-defined]
        return float(getattr(found, name))

    full = [row for row in list_classes(statistics, sort=column).rows if row.samples]
    assert [value(row) for row in full] == sorted((value(row) for row in full), reverse=True)
    back = [row for row in list_classes(statistics, sort=f"-{column}").rows if row.samples]
    assert [value(row) for row in back] == sorted(value(row) for row in back)
    assert list_classes(statistics, sort=column, limit=2).rows == list_classes(statistics, sort=column).rows[:2]


def test_the_most_uncertain_samples(statistics: CacheStatistics, plain: Plain) -> None:
    score = plain.entropy.mean((0, 1))
    expected = sorted(range(len(LABELS)), key=lambda index: (-score[index], index))
    listing = uncertain(statistics, 5)
    assert [row.index for row in listing.rows] == expected[:5]
    assert [row.score for row in listing.rows] == pytest.approx([score[index] for index in expected[:5]])
    for row in listing.rows:
        assert row.label == DATA["class_names"][plain.labels[row.index]]
        for k, teacher in enumerate(row.teachers):
            votes = np.bincount(plain.prediction[k, :, row.index], minlength=CLASSES)
            assert teacher.prediction == DATA["class_names"][votes.argmax()]
            assert teacher.share == votes.max() / VIEWS
            assert teacher.top1 == pytest.approx(plain.right[k, :, row.index].mean())
            assert teacher.entropy == pytest.approx(plain.entropy[k, :, row.index].mean())
            assert teacher.weight == pytest.approx(plain.weights[k, :, row.index].mean())


def test_the_most_disputed_samples(statistics: CacheStatistics, plain: Plain) -> None:
    """Ordered by disagreement, then by how far apart the teachers' mean entropies are."""
    score, spread = _disagreement(plain), np.ptp(plain.entropy.mean(1), axis=0)
    expected = sorted(range(len(LABELS)), key=lambda index: (-score[index], -spread[index], index))
    assert len(set(score)) < len(score), "the second criterion is needed"
    rows = disputed(statistics, len(LABELS)).rows
    assert [row.index for row in rows] == expected
    assert [row.score for row in rows] == pytest.approx([score[index] for index in expected])


def test_where_a_wrong_teacher_weighs_most(statistics: CacheStatistics, plain: Plain) -> None:
    excess = (plain.trusted * (plain.weights - 1 / 3)).mean(1)
    score = excess.max(0)
    rows = wrong_and_trusted(statistics, 100).rows
    assert 0 < len(rows) < len(LABELS), "samples without a wrong and trusted teacher are not listed"
    assert {row.index for row in rows} == set(np.flatnonzero(plain.trusted.any((0, 1))))
    assert [row.score for row in rows] == pytest.approx(sorted(score[score > 0], reverse=True))
    for row in rows:
        assert row.trusted is not None
        assert excess[TEACHERS.index(row.trusted), row.index] == pytest.approx(row.score)


def test_a_sample_from_close_by(folder: Path, plain: Plain) -> None:
    sample = summarise_sample(open_cache(folder), 12, slot=2)
    assert (sample.label, sample.view) == ("ant", str(plain.views[0, 2, 12, 0]))
    for k, answer in enumerate(sample.answers):
        logits = plain.logits[k, 2, 12].astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        order = sorted(range(CLASSES), key=lambda number: (-probabilities[number], number))
        assert answer.classes == tuple(DATA["class_names"][number] for number in order)
        assert answer.probabilities == pytest.approx([probabilities[number] for number in order])
        assert (answer.entropy, answer.weight) == (plain.entropy[k, 2, 12], plain.weights[k, 2, 12])
    for slot, row in enumerate(views_of_sample(open_cache(folder), 12).rows):
        assert (row.slot, row.view) == (slot, str(plain.views[0, slot, 12, 0]))
        for k, said in enumerate(row.teachers):
            assert said.prediction == DATA["class_names"][plain.prediction[k, slot, 12]]
            assert said.right == plain.right[k, slot, 12]
            assert (said.entropy, said.weight) == (plain.entropy[k, slot, 12], plain.weights[k, slot, 12])


def test_distributions(statistics: CacheStatistics, plain: Plain) -> None:
    for found, values, highest in (
        (entropy_distributions(statistics, bins=9), plain.entropy, math.log(CLASSES)),
        (weight_distributions(statistics, bins=8), plain.weights, 1.0),
    ):
        for k, one in enumerate(found):
            counts, edges = np.histogram(values[k], len(one.counts), (0, highest))
            assert (one.name, one.counts) == (TEACHERS[k], tuple(counts))
            assert one.edges == pytest.approx(edges)
            assert one.right == tuple(np.histogram(values[k][plain.right[k]], edges)[0])


def test_the_highest_entropy_counts_although_float32_rounds_it_up(statistics: CacheStatistics) -> None:
    """A teacher that knows nothing has entropy ln C everywhere, and all of it is in the last bin."""
    ignorance = np.full(len(LABELS), np.log(CLASSES), np.float32)
    assert float(ignorance[0]) > math.log(CLASSES)
    ignorant = replace(statistics, entropy=[[ignorance] * VIEWS] * 3)
    assert summarise(ignorant).teachers[0].histogram == (*[0] * 19, VIEWS * len(LABELS))
    assert entropy_distributions(ignorant, bins=5)[0].counts == (0, 0, 0, 0, VIEWS * len(LABELS))


def test_teachers_in_another_order_keep_their_numbers(folder: Path, statistics: CacheStatistics) -> None:
    turned = summarise(read_statistics(open_cache(folder, ["cleo", "ada", "bob"])))
    straight = summarise(statistics)
    assert turned.teachers == (straight.teachers[2], *straight.teachers[:2])
    assert turned.weights_state == "matches"
    assert turned.agreement.same_top1[0][1] == straight.agreement.same_top1[2][0]


def test_provenance(folder: Path, statistics: CacheStatistics) -> None:
    summary = summarise(statistics)
    assert (summary.data, summary.split, summary.samples, summary.classes) == ("insects", "train", 14, 4)
    assert (summary.views, summary.num_distinct_views, summary.view_seed) == (4, 18, 7)
    assert summary.policy == "crop-flip, flip True, padding 1"
    assert summary.pixels_sha256 == "cd" * 32
    assert summary.file_bytes == sum((folder / f"{name}.h5").stat().st_size for name in (*TEACHERS, "weights"))
    assert (summary.weighting, summary.weights_state, summary.unfinished) == ("a half in turn", "matches", ())
    teacher = summary.teachers[1]
    assert (teacher.network, teacher.parameters, teacher.fingerprint) == ("resnet16", 2000, "21" * 32)
    assert (teacher.mean, teacher.std) == ((0.5, 0.5, 0.25), (0.25, 0.25, 0.25))
    assert (teacher.features, teacher.precision, teacher.versions["torch"]) == ({"last": (2,)}, "float32", "2.6")


def test_the_size_is_that_of_the_chosen_teachers(folder: Path, tmp_path: Path) -> None:
    """Neither other teachers' files count, nor weights that are not theirs."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    ada, bob, cleo, weights = ((copy / f"{name}.h5").stat().st_size for name in (*TEACHERS, "weights"))
    for teachers, expected in ((None, ada + bob + cleo + weights), (["ada", "bob"], ada + bob), (["cleo"], cleo)):
        assert summarise(read_statistics(open_cache(copy, teachers))).file_bytes == expected
    (copy / "weights.h5").unlink()
    assert summarise(read_statistics(open_cache(copy))).file_bytes == ada + bob + cleo


def test_what_is_unfinished_or_without_weights_is_said(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    write_teacher(copy, 0, name="late", blocks=3)
    (copy / "torn.h5.partial").write_bytes(b"nothing")
    found = summarise(read_statistics(open_cache(copy))).unfinished
    assert [(file.name, file.progress) for file in found] == [("late", 3 / 12), ("torn", None)]
    assert summarise(read_statistics(open_cache(copy, ["ada", "bob"]))).weights_state == "does not match"
    (copy / "weights.h5").unlink()
    bare = read_statistics(open_cache(copy))
    assert summarise(bare).weights_state == "absent"
    assert summarise(bare).teachers[0].mean_weight is None
    assert by_class(bare)[0].teachers[0].wrong_and_trusted is None
    with pytest.raises(InspectionError, match="has no weights of ada, bob, cleo: leave `teachers` out, or run `cache_"):
        wrong_and_trusted(bare, 3)
    alone = read_statistics(open_cache(copy, ["bob"]))
    assert by_class(alone)[0].disagreement is None
    with pytest.raises(InspectionError, match="bob is the only teacher: disagreement needs two or more"):
        disputed(alone, 3)


@pytest.mark.parametrize("name", ["entropy", "prediction", "logits"])
def test_a_flipped_bit_is_found_before_it_is_shown(folder: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    extent = open_cache(copy).teachers[1].files[0].header.contents[name]
    flip(copy / "bob.h5", extent.offset + extent.slot_bytes + 2)  # slot 1, first block
    cache = open_cache(copy)
    with pytest.raises(CacheDamagedError, match=rf"{name} of teacher bob, slot 1, rows 0 to 4 do not match"):
        summarise_sample(cache, 3, slot=1)
    if name != "logits":
        with pytest.raises(CacheDamagedError, match=rf"{name} of teacher bob, slot 1"):
            read_statistics(cache)


def _disagreement(plain: Plain) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(N,): how many of the pairs differ in how many slots."""
    pairs = list(itertools.combinations(range(3), 2))
    differing = sum((plain.prediction[one] != plain.prediction[other]).sum(0) for one, other in pairs)
    return np.asarray(differing / (VIEWS * len(pairs)))


def test_labels_beyond_16_bits_are_compared_whole(tmp_path: Path) -> None:
    names = [str(number) for number in range(65_540)]
    labels = np.array([65_537, 65_539])
    write_teacher(tmp_path, 0, data={**DATA, "samples": 2, "class_names": names}, labels=labels)
    cache = open_cache(tmp_path)
    right = [cache.teachers[0].read("prediction", slot) == labels for slot in range(VIEWS)]
    assert np.any(right)
    assert np.array_equal(read_statistics(cache).top1[0], np.mean(right, axis=0))
