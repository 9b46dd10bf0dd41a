"""Growing a cache: nothing that exists is computed again, and the old file is whole until the new one is."""

import json
from pathlib import Path

import numpy as np
import pytest

from demkd.cache import TeacherFile, open_cache
from demkd.cache.integrity import OUTDATED, SOUND, verify_cache
from tests.reliability.conftest import Command, Run, contents

SAMPLES = 60


def answered(run: Run, command: list[object]) -> dict[str, int]:
    """How many views each teacher was asked about."""
    report = json.loads(run(*command, "--json", code=0).stdout)
    return {teacher["name"]: teacher["answered"] for teacher in report["teachers"]}


def test_more_views_ask_only_about_the_new_ones(run: Run, caching: Command, tmp_path: Path) -> None:
    assert answered(run, caching(tmp_path, views=4, features="none")) == {
        "a": 4 * SAMPLES,
        "b": 4 * SAMPLES,
    }
    old = {name: TeacherFile(tmp_path / f"{name}.h5") for name in "ab"}
    assert answered(run, caching(tmp_path, views=9, features="none")) == {
        "a": 5 * SAMPLES,
        "b": 5 * SAMPLES,
    }
    for name in "ab":
        grown = TeacherFile(tmp_path / f"{name}.h5")
        for slot in range(4):
            assert np.array_equal(grown.read("logits", slot), old[name].read("logits", slot))
    assert verify_cache(tmp_path).sound


def test_fewer_views_ask_about_nothing_and_keep_all(run: Run, caching: Command, cache: Path) -> None:
    before = contents(cache)
    command = caching(cache, views=2, features="none")
    assert answered(run, command) == {"a": 0, "b": 0}
    assert contents(cache) == before


def test_more_features_keep_the_logits_that_are_there(run: Run, caching: Command, tmp_path: Path) -> None:
    """The teachers look again, because features cannot be had otherwise, but only features are written."""
    run(*caching(tmp_path, views=3, features="none"), code=0)
    old = TeacherFile(tmp_path / "a.h5")
    ledgers = {name: np.array(old.ledger(name)) for name in old.shape.answers()}
    run(*caching(tmp_path, views=3), code=0)
    run(*caching(tmp_path, views=3, features="stage1"), code=0)
    grown = TeacherFile(tmp_path / "a.h5")
    assert set(grown.shape.features) == {"stage1", "stage3"}
    for name, ledger in ledgers.items():
        assert np.array_equal(grown.ledger(name), ledger)
    assert verify_cache(tmp_path).sound


def test_another_teacher_leaves_the_others_alone_and_joins_the_weights(run: Run, caching: Command, cache: Path) -> None:
    before = contents(cache)
    assert answered(run, caching(cache, names="c", views=4)) == {"c": 4 * SAMPLES}
    after = contents(cache)
    assert after["a.h5"] == before["a.h5"]
    assert after["b.h5"] == before["b.h5"]
    weights = open_cache(cache).teacher_weights
    assert weights is not None
    assert weights.values.shape == (3, 4, SAMPLES)


def test_a_removed_teacher_leaves_the_weights(run: Run, caching: Command, tmp_path: Path) -> None:
    """Weights of another set of teachers are never used, even before stage one computes them anew."""
    run(*caching(tmp_path, names="abc", views=4), code=0)
    (tmp_path / "b.h5").unlink()
    assert open_cache(tmp_path).teacher_weights is None
    verdicts = {file.name: file.verdict for file in verify_cache(tmp_path).files}
    assert verdicts == {"a": SOUND, "c": SOUND, "weights": OUTDATED}
    assert answered(run, caching(tmp_path, names="ac", views=4)) == {"a": 0, "c": 0}
    weights = open_cache(tmp_path).teacher_weights
    assert weights is not None
    assert weights.values.shape == (2, 4, SAMPLES)
    assert verify_cache(tmp_path).sound


def test_teachers_may_grow_one_by_one(run: Run, caching: Command, cache: Path) -> None:
    """With one grown and one not, the cache is what both have, weights included."""
    before = open_cache(cache).read_slot(3).teacher_weights
    run(*caching(cache, names="a", views=9), code=0)
    with open_cache(cache) as opened:
        assert opened.num_views == 4
        weights = opened.read_slot(3).teacher_weights
        assert weights is not None
        assert np.array_equal(weights, before)
    run(*caching(cache, names="b", views=9), code=0)
    with open_cache(cache) as opened:
        assert opened.teacher_weights is not None
        assert opened.teacher_weights.values.shape == (2, 9, SAMPLES)


@pytest.mark.parametrize(
    "kill_at", [30, pytest.param(12, marks=pytest.mark.slow), pytest.param(45, marks=pytest.mark.slow)]
)
def test_a_cache_can_be_used_while_it_grows(run: Run, caching: Command, tmp_path: Path, kill_at: int) -> None:
    """Killed during growth: students go on with the old slots; the next call finishes the new ones."""
    run(*caching(tmp_path, views=3, features="none"), code=0)
    old = [np.array(open_cache(tmp_path).logits(slot, slice(None), temperature=1.0)) for slot in range(3)]
    grow = caching(tmp_path, views=9)
    assert run(*grow, kill_at=kill_at).code == -9
    with open_cache(tmp_path) as cache:
        for slot in range(3):
            assert np.array_equal(np.array(cache.logits(slot, slice(None), temperature=1.0)), old[slot])
            assert cache.read_slot(slot).teacher_weights is not None
    run(*grow, code=0)
    assert open_cache(tmp_path).num_views == 9
    assert not list(tmp_path.glob("*.partial"))


def test_a_started_growth_does_not_stand_in_the_way_of_less(run: Run, caching: Command, cache: Path) -> None:
    """Whoever grew a cache by mistake and stopped it still has the smaller one, without waiting for the larger."""
    assert run(*caching(cache, views=9, features="none"), kill_at=75).code == -9
    assert (cache / "a.h5.partial").exists()
    small = caching(cache, views=4, features="none")
    assert answered(run, small) == {"a": 0, "b": 0}
