"""Growing a cache: nothing that exists is computed again, and the old file is whole until the new one is."""

import json
from pathlib import Path

import numpy as np

from demkd.cache import ShardFile, open_cache
from demkd.cache.verify import OUTDATED, SOUND, verify_cache
from tests.reliability.conftest import Command, Run
from tests.reliability.scenarios import contents

SAMPLES = 60


def computed(run: Run, command: list[object]) -> dict[str, int]:
    """How many views were computed, by teacher."""
    report = json.loads(run(*command, "--json", code=0).stdout)
    return {teacher["name"]: teacher["computed"] for teacher in report["teachers"]}


def test_more_views_compute_only_the_new_ones(run: Run, caching: Command, tmp_path: Path) -> None:
    """And fewer views compute nothing, and keep all."""
    assert computed(run, caching(tmp_path, views=2, features="none")) == {"a": 2 * SAMPLES, "b": 2 * SAMPLES}
    old = {name: ShardFile(tmp_path / f"{name}.00001-of-00001.h5") for name in "ab"}
    assert computed(run, caching(tmp_path, views=5, features="none")) == {"a": 3 * SAMPLES, "b": 3 * SAMPLES}
    for name in "ab":
        grown = ShardFile(tmp_path / f"{name}.00001-of-00001.h5")
        for view in range(2):
            assert np.array_equal(grown.view("logits", view), old[name].view("logits", view))
    assert verify_cache(tmp_path).sound
    before = contents(tmp_path)
    assert computed(run, caching(tmp_path, views=2, features="none")) == {"a": 0, "b": 0}
    assert contents(tmp_path) == before


def test_a_teacher_joins_and_another_one_leaves(run: Run, caching: Command, cache: Path) -> None:
    """The others' files stay. Weights of another set of teachers are never used; stage one computes them again."""
    before = contents(cache)
    assert computed(run, caching(cache, names="c", views=4)) == {"c": 4 * SAMPLES}
    for name in ("a.00001-of-00001.h5", "b.00001-of-00001.h5"):
        assert contents(cache)[name] == before[name]
    weights = open_cache(cache).teacher_weights
    assert weights.values.shape == (3, 4, SAMPLES)
    (cache / "b.00001-of-00001.h5").unlink()
    assert open_cache(cache).teacher_weights is None
    verdicts = {file.name: file.verdict for file in verify_cache(cache).files}
    assert verdicts == {"a": SOUND, "c": SOUND, "weights": OUTDATED}
    assert computed(run, caching(cache, names="ac", views=4)) == {"a": 0, "c": 0}
    weights = open_cache(cache).teacher_weights
    assert weights.values.shape == (2, 4, SAMPLES)
    assert verify_cache(cache).sound


def test_teachers_may_grow_one_by_one(run: Run, caching: Command, cache: Path) -> None:
    """With one grown and one not, the cache is what both have, weights included."""
    before = open_cache(cache).read_view(3).teacher_weights
    run(*caching(cache, names="a", views=6), code=0)
    with open_cache(cache) as opened:
        assert opened.num_views == 4
        weights = opened.read_view(3).teacher_weights
        assert weights is not None
        assert np.array_equal(weights, before)
    run(*caching(cache, names="b", views=6), code=0)
    with open_cache(cache) as opened:
        assert opened.teacher_weights.values.shape == (2, 6, SAMPLES)


def test_a_stopped_growth_does_not_prevent_a_smaller_one(run: Run, caching: Command, cache: Path) -> None:
    """The old views stay as they were, and need not wait for the larger cache."""
    old = [np.array(open_cache(cache).logits(view, slice(None), temperature=1.0)) for view in range(4)]
    assert run(*caching(cache, views=9, features="none"), kill_at=75).code == -9
    assert (cache / "a.00001-of-00001.h5.partial").exists()
    with open_cache(cache) as opened:
        for view in range(4):
            assert np.array_equal(np.array(opened.logits(view, slice(None), temperature=1.0)), old[view])
    assert computed(run, caching(cache, views=4, features="none")) == {"a": 0, "b": 0}
