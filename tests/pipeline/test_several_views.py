"""Steps of several views: neighbouring slots of the same samples, whose losses are the mean of one view's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import demkd
from demkd.cache import open_cache
from demkd.dataset import seeded
from demkd.pipeline.cached_teachers import CachedTeachers
from demkd.pipeline.logit_losses import logit_terms
from demkd.pipeline.methods import METHODS, Method, MethodError, choose_method
from demkd.pipeline.several_views import in_every_view
from demkd.pipeline.target_source import TargetSource
from tests.pipeline.stages import Recorder, Workshop

TWO: dict[str, Any] = {"views": 4, "views_per_step": 2}


def source_of(workshop: Workshop, method: Method, place: int) -> TargetSource:
    cache = open_cache(workshop.cache)
    labels = torch.from_numpy(cache.labels.copy())
    return CachedTeachers(cache, labels, method, views=4, run_seed=0, device=torch.device("cpu"), place=place,
                          together=method.views_per_step)  # fmt: skip


@pytest.mark.parametrize("together", [1, 2, 3])
def test_a_step_shows_neighbouring_slots_and_a_round_every_slot_once(together: int) -> None:
    groups = [
        [
            seeded.slot_of_epoch(run_seed=3, epoch=epoch, slots=6, place=place, together=together)
            for place in range(together)
        ]
        for epoch in range(1, 6 // together + 1)
    ]
    assert sorted(slot for group in groups for slot in group) == list(range(6))
    assert all(group == [group[0] + place for place in range(together)] for group in groups)
    assert all(group[0] % together == 0 for group in groups)


@pytest.mark.parametrize("name", ["kd", "dist", "mlkd-ls", "ca-mkd", "de-mkd"])
def test_the_targets_of_a_batch_are_those_of_its_slots_one_after_another(workshop: Workshop, name: str) -> None:
    method = choose_method(name, views_per_step=2)
    both = in_every_view(lambda place: source_of(workshop, method, place), 2)
    each = [source_of(workshop, method, place) for place in (0, 1)]
    shown, alone = both.start_epoch(1), [one.start_epoch(1) for one in each]
    assert torch.equal(shown.records, torch.cat([one.records for one in alone]))
    assert alone[0].slot is not None
    assert [one.slot for one in alone] == [shown.slot, alone[0].slot + 1]
    indices = torch.tensor([7, 3, 11])
    found = both.batch_targets(indices.repeat(2), {})
    for place, one in enumerate(each):
        expected, rows = one.batch_targets(indices, {}), slice(3 * place, 3 * place + 3)
        assert found.targets is not None
        assert expected.targets is not None
        for field in expected.targets.__dataclass_fields__:
            assert torch.equal(getattr(found.targets, field)[rows], getattr(expected.targets, field))
        for mine, theirs in zip(found.hints, expected.hints, strict=True):
            assert torch.equal(mine[rows], theirs)
        if expected.hint_weights is not None:
            assert found.hint_weights is not None
            assert torch.equal(found.hint_weights[:, rows], expected.hint_weights)
    told = both.statistics()
    halves = [one.statistics() for one in each]
    assert told is not None
    for index in range(3):
        assert told.top1[index] == pytest.approx(sum(half.top1[index] for half in halves if half) / 2)


@pytest.mark.parametrize("name", [name for name, one in METHODS.items() if one.needs_teachers])
def test_a_loss_of_two_views_is_the_mean_of_the_losses_of_each(workshop: Workshop, name: str) -> None:
    """What compares samples compares those of one view."""
    two = choose_method(name, views_per_step=2, hint_weight=0.0)
    source = in_every_view(lambda place: source_of(workshop, two, place), 2)
    source.start_epoch(1)
    indices = torch.arange(12)
    targets = source.batch_targets(indices.repeat(2), {}).targets
    assert targets is not None
    labels = torch.from_numpy(open_cache(workshop.cache).labels.copy())[indices]
    logits = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    found = logit_terms(logits, labels.repeat(2), targets, two)
    one = replace(two, views_per_step=1)
    halves = [logit_terms(logits[rows], labels, targets.part(rows), one) for rows in (slice(0, 12), slice(12, 24))]
    for term, value in found.items():
        torch.testing.assert_close(value.mean(), torch.stack([half[term].mean() for half in halves]).mean())


@pytest.mark.parametrize("method", ["ce", "kd", "mlkd", "de-mkd"])
def test_cached_equals_online_in_two_views(workshop: Workshop, tmp_path: Path, method: str) -> None:
    cached, online = Recorder(), Recorder()
    options: dict[str, Any] = {"method": method, "batch_size": 60, "learning_rate": 1e-4, **TWO}
    workshop.distill(tmp_path / "cached", progress=cached, **options)
    workshop.distill(tmp_path / "online", progress=online, online=True, **options)
    assert cached.reports[0].losses == pytest.approx(online.reports[0].losses, rel=5e-4)
    assert cached.reports[0].slot == online.reports[0].slot
    single = Recorder()
    workshop.distill(tmp_path / "single", progress=single, **{**options, "views_per_step": 1})
    assert single.reports[0].losses != pytest.approx(cached.reports[0].losses, rel=5e-4)


def test_independent_views_online_are_several_too(workshop: Workshop, tmp_path: Path) -> None:
    recorder = Recorder()
    workshop.distill(tmp_path / "run", online=True, progress=recorder, method="mlkd", learning_rate=1e-3,
                     views="random", views_per_step=2)  # fmt: skip
    assert recorder.reports[0].slot is None


def test_a_loop_of_ones_own_has_the_losses_of_distill(workshop: Workshop, tmp_path: Path) -> None:
    recorder = Recorder()
    workshop.distill(tmp_path / "run", progress=recorder, method="mlkd", batch_size=60, learning_rate=1e-6, **TWO)
    targets = demkd.CachedTargets(workshop.cache, str(workshop.data), method="mlkd", epochs=1, device="cpu", **TWO)
    (batch,) = targets.epoch(1, batch_size=60)
    assert batch.views.shape[0] == batch.labels.shape[0] == 120
    terms = targets.terms(torch.zeros(120, 3), batch)
    assert terms.keys() == recorder.reports[0].losses.keys() - {"loss"}
    assert terms["label_loss"].item() == pytest.approx(torch.log(torch.tensor(3.0)).item())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"views": 5, "views_per_step": 2}, "`views` is 5, which is no multiple of the 2 that a step shows together"),
        ({"views": 5, "views_per_step": 0}, "`views_per_step` cannot be 0: it must be 1 or a larger whole number"),
        ({"views": 5, "views_per_step": 1.5}, "`views_per_step` cannot be 1.5"),
    ],
)
@pytest.mark.parametrize("online", [False, True])
def test_what_cannot_be_shared_out_is_refused(
    workshop: Workshop, tmp_path: Path, options: dict[str, Any], why: str, online: bool
) -> None:
    with pytest.raises(MethodError, match=why):
        workshop.distill(tmp_path / "run", online=online, **options)
    assert not (tmp_path / "run").exists()
