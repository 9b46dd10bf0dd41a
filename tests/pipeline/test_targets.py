"""The loader alone: the batches of an epoch, and how ranks share them."""

from pathlib import Path
from typing import Any

import pytest
import torch

import demkd
from tests.pipeline.test_top_k import SAMPLES, SILENT, TEACHERS, data

CPU: dict[str, Any] = {"method": "kd", "device": "cpu"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets") / "cache"
    demkd.cache_teachers(TEACHERS, data(), out=folder, views=2, features=(), **SILENT)
    return folder


@pytest.mark.parametrize(("batch_size", "batches"), [(16, 4), (60, 1), (59, 1), (29, 3)])
def test_the_length_is_the_number_of_batches(cache: Path, batch_size: int, batches: int) -> None:
    """A last batch of one is left out, of two is not."""
    loader = demkd.SoftTargetLoader(cache, data(), batch_size=batch_size, **CPU)
    assert len(loader) == len(list(loader)) == batches


@pytest.mark.parametrize("method", ["kd", "dist"])
def test_ranks_share_every_batch(cache: Path, method: str) -> None:
    """Each has a contiguous part, in the same views, with the same targets."""
    options: dict[str, Any] = {"batch_size": 18, "device": "cpu", "method": method}
    alone = demkd.SoftTargetLoader(cache, data(), **options)
    ranks = [demkd.SoftTargetLoader(cache, data(), rank=rank, world_size=3, **options) for rank in range(3)]
    criterion = demkd.DistillationLoss("kd", epochs=4)
    for loader in (alone, *ranks):
        loader.set_epoch(1)
    seen = 0
    for whole, *parts in zip(alone, *ranks, strict=True):
        for name in ("indices", "images", "labels"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        seen += len(whole.indices)
        if method == "kd":
            logits = torch.randn(len(whole.labels), alone.dataset.classes, generator=torch.manual_seed(0))
            split = torch.split(logits, [len(part.labels) for part in parts])
            losses = [criterion(some, part) * len(some) for some, part in zip(split, parts, strict=True)]
            torch.testing.assert_close(torch.stack(losses).sum() / len(logits), criterion(logits, whole))
    assert seen == SAMPLES


def test_an_epoch_is_the_same_whenever_it_is_asked_for(cache: Path) -> None:
    loader = demkd.SoftTargetLoader(cache, data(), **CPU)
    loader.set_epoch(3)
    first = [batch.images for batch in loader]
    loader.set_epoch(0)
    assert not all(map(torch.equal, first, (batch.images for batch in loader)))
    loader.set_epoch(3)
    assert all(map(torch.equal, first, (batch.images for batch in loader)))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"world_size": 2, "rank": 2}, "for 2 processes"),
        ({"world_size": 2, "rank": -1}, "for 2 processes"),
        ({"world_size": 2, "batch_size": 3}, "for 2 processes"),
        ({"label_noise": -0.5}, "`label_noise` is -0.5: give a number of at least 0 and at most 1"),
        ({"label_noise": 2}, "`label_noise` is 2: give"),
        ({"views": 2.7}, "`views` is 2.7: give a whole number of at least 1, or random"),
        ({"cache": None, "live_teachers": TEACHERS, "views": "radnom"}, "`views` is 'radnom': give"),
        ({"teachers": ["b", "a", "b"]}, "`teachers` has b twice: name each once"),
        ({"indices": [0, 1, SAMPLES]}, f"`indices` are not numbers of images: .* from 0 to {SAMPLES - 1}"),
        ({"indices": [True] * SAMPLES}, "`indices` are not numbers of images"),
    ],
)
def test_a_loader_refuses_what_it_cannot_use(cache: Path, wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(demkd.UserError, match=why):
        demkd.SoftTargetLoader(**{"cache": cache, "train": data(), **CPU, **wrong})
