"""Steps of several views: neighbouring views of the same samples, whose losses are the mean of one view's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import demkd
from demkd.config import METHODS, ConfigError, choose_method
from demkd.dataset import seeds
from demkd.dataset.crop_flip import CropFlip
from demkd.dataset.randaugment import RandAugment
from demkd.losses import logit_terms
from demkd.pipeline.targets import SoftTargetLoader
from tests.pipeline.stages import Recorder, Workshop


def loader_of(workshop: Workshop, **options: Any) -> SoftTargetLoader:
    return SoftTargetLoader(workshop.cache, str(workshop.data), device="cpu", views=4, batch_size=60, **options)


@pytest.mark.parametrize("together", [1, 2, 3])
def test_a_step_has_neighbouring_views_and_a_round_every_view_once(together: int) -> None:
    groups = [
        [
            seeds.view_of_epoch(run_seed=3, epoch=epoch, num_views=6, place=place, together=together)
            for place in range(together)
        ]
        for epoch in range(1, 6 // together + 1)
    ]
    assert sorted(view for group in groups for view in group) == list(range(6))
    assert all(group == [group[0] + place for place in range(together)] for group in groups)
    assert all(group[0] % together == 0 for group in groups)


@pytest.mark.parametrize("name", ["kd", "dist", "mlkd-ls", "crld", "ca-mkd", "de-mkd"])
def test_a_batch_has_the_targets_of_its_views_one_after_another(workshop: Workshop, name: str) -> None:
    loader = loader_of(workshop, method=name, views_per_step=2)
    data = loader.start_epoch()
    (batch,) = loader.batches(data)
    assert [view.view_index for view in data.views] == [data.view_index, data.view_index + 1]
    samples, half = data.batches[0], len(batch.labels) // 2
    for place, view in enumerate(data.views):
        expected, rows = view.targets(samples), slice(half * place, half * (place + 1))
        for field in expected.soft.__dataclass_fields__:
            assert torch.equal(getattr(batch.targets.soft, field)[rows], getattr(expected.soft, field))
        for mine, theirs in zip(batch.targets.hints, expected.hints, strict=True):
            assert torch.equal(mine[rows], theirs)
        if expected.hint_weights is not None:
            assert torch.equal(batch.targets.hint_weights[:, rows], expected.hint_weights)
    statistics = loader.statistics()
    assert statistics.top1 == pytest.approx(torch.stack([view.measures[0] for view in data.views]).mean(0).tolist())


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs_teachers and name != "crld"])
def test_a_loss_of_two_views_is_the_mean_of_the_losses_of_each(workshop: Workshop, name: str) -> None:
    """What compares samples compares those of one view."""
    two = choose_method(name, views_per_step=2, hint_weight=0.0)
    (batch,) = loader_of(workshop, method=two)
    targets, size = batch.targets.soft, len(batch.labels) // 2
    logits = torch.randn(2 * size, 3, generator=torch.Generator().manual_seed(0))
    found = logit_terms(logits, batch.labels, targets, two)
    one = replace(two, views_per_step=1)
    halves = [
        logit_terms(logits[rows], batch.labels[rows], targets.rows(rows), one)
        for rows in (slice(0, size), slice(size, 2 * size))
    ]
    for term, value in found.items():
        torch.testing.assert_close(value.mean(), torch.stack([half[term].mean() for half in halves]).mean())


@pytest.mark.parametrize(("method", "per_step"), [("kd", 1), ("dkd", 2), ("mlkd", 2), ("crld", 2), ("de-mkd", 2)])
def test_the_first_step_is_that_of_online(workshop: Workshop, tmp_path: Path, method: str, per_step: int) -> None:
    """Before the runs can drift apart: one batch of all samples, each term to 4 digits."""
    cached, online = Recorder(), Recorder()
    options: dict[str, Any] = {"method": method, "batch_size": 60, "views": 4, "views_per_step": per_step}
    workshop.distill(tmp_path / "cached", progress=cached, **options)
    workshop.distill(tmp_path / "online", progress=online, online=True, **options)
    assert cached.reports[0].losses == pytest.approx(online.reports[0].losses, rel=5e-4)
    assert cached.reports[0].view_index == online.reports[0].view_index


def test_independent_views_online_are_several_too(workshop: Workshop, tmp_path: Path) -> None:
    recorder = Recorder()
    workshop.distill(tmp_path / "run", online=True, progress=recorder, method="mlkd", learning_rate=1e-3,
                     views="random", views_per_step=2)  # fmt: skip
    assert recorder.reports[0].view_index is None


def test_of_two_independent_views_the_first_is_the_weak_one(workshop: Workshop) -> None:
    """As in a cache, and as CRLD's thresholds take them."""
    alternating = RandAugment(base=CropFlip(padding=4, flip=True), strong_every=2)
    loader = SoftTargetLoader(None, str(workshop.data), method="ce", views_per_step=2, augment=alternating)
    for epoch in range(3):
        loader.set_epoch(epoch)
        weak, strong = loader.start_epoch().params[..., 1:]
        assert (weak == 0).all(), "no operations of RandAugment"
        assert (strong != 0).any()


def test_a_user_s_loop_has_the_losses_of_distill(workshop: Workshop, tmp_path: Path) -> None:
    recorder = Recorder()
    workshop.distill(tmp_path / "run", progress=recorder, method="mlkd", batch_size=60, views=4, views_per_step=2)
    (batch,) = loader_of(workshop, method="mlkd", views_per_step=2)
    assert batch.images.shape[0] == batch.labels.shape[0] == 120
    criterion = demkd.DistillationLoss("mlkd", epochs=1, views_per_step=2)
    terms = dict(zip(criterion.names, criterion.terms(torch.zeros(120, 3), batch.labels, batch.targets), strict=True))
    assert terms.keys() == recorder.reports[0].losses.keys() - {"loss"}
    assert terms["label_loss"].item() == pytest.approx(torch.log(torch.tensor(3.0)).item())


@pytest.mark.parametrize("online", [False, True])
def test_what_cannot_be_shared_out_is_refused(workshop: Workshop, tmp_path: Path, online: bool) -> None:
    with pytest.raises(ConfigError, match="`views` is 5, which is no multiple of 2"):
        workshop.distill(tmp_path / "run", online=online, views=5, views_per_step=2)
    assert not (tmp_path / "run").exists()
