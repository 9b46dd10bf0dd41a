"""Batches for a loop of one's own, shared among processes: together they are those of one."""

from pathlib import Path

import pytest
import torch

import demkd
from demkd.pipeline.arguments import ArgumentError
from tests.pipeline.test_top_k import SAMPLES, SILENT, TEACHERS, data


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets") / "cache"
    demkd.cache_teachers(TEACHERS, data(), out=folder, views=2, features=(), **SILENT)
    return folder


@pytest.mark.parametrize(("batch_size", "steps"), [(16, 4), (60, 1), (59, 1), (29, 3)])
def test_steps_are_the_batches_of_an_epoch(cache: Path, batch_size: int, steps: int) -> None:
    """A last batch of one is left out, of two is not."""
    targets = demkd.CachedTargets(cache, data(), method="kd", device="cpu")
    assert targets.steps(batch_size=batch_size) == steps
    assert len(list(targets.epoch(1, batch_size=batch_size))) == targets.steps(batch_size=batch_size)


def test_processes_share_every_batch(cache: Path) -> None:
    """Every sample of a batch goes to one of them, in the same view, with the same targets."""
    targets = [demkd.CachedTargets(cache, data(), method="kd", device="cpu") for _ in range(4)]
    alone = targets[0].epoch(2, batch_size=18)
    parts = [targets[1 + rank].epoch(2, batch_size=18, rank=rank, world_size=3) for rank in range(3)]
    seen = 0
    for whole, *shared in zip(alone, *parts, strict=True):
        indices = torch.cat([part.indices for part in shared])
        assert sorted(indices.tolist()) == sorted(whole.indices.tolist())
        place = {int(index): number for number, index in enumerate(whole.indices)}
        order = [place[int(index)] for index in indices]
        assert torch.equal(torch.cat([part.views for part in shared]), whole.views[order])
        logits = torch.randn(len(indices), targets[0].classes, generator=torch.manual_seed(0))
        split = torch.split(logits, [len(part.indices) for part in shared])
        losses = [one.loss(some, part) for one, some, part in zip(targets[1:], split, shared, strict=True)]
        mean = sum(loss * len(part.indices) for loss, part in zip(losses, shared, strict=True)) / len(indices)
        back = torch.empty_like(logits)
        back[order] = logits
        torch.testing.assert_close(mean, targets[0].loss(back, whole))
        seen += len(indices)
    assert seen == SAMPLES


@pytest.mark.parametrize("wrong", [{"rank": 2}, {"rank": -1}, {"batch_size": 3}])
def test_no_process_is_left_without_a_batch(cache: Path, wrong: dict[str, int]) -> None:
    targets = demkd.CachedTargets(cache, data(), method="kd", device="cpu")
    with pytest.raises(ArgumentError, match="`world_size` 2"):
        next(targets.epoch(1, **{"rank": 0, "world_size": 2, "batch_size": 16, **wrong}))
