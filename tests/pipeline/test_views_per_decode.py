"""Several views of a decode: m epochs, a turn, show every picture in m slots, and decode it once."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import demkd
from demkd.cache import open_cache
from demkd.dataset import Reading, StreamedImages, load_images
from demkd.errors import UserError
from demkd.pipeline.recipe import TrainingOptions
from demkd.pipeline.several_views import turn_of
from tests.pipeline.photos import SIZES, TEACHERS, VIEWS, network, student_losses
from tests.pipeline.stages import Recorder

POLICY = VIEWS["resized-crop"]


class Watched(StreamedImages):
    """Pictures that say who asked for which view."""

    def views(self, policy: Any, tasks: Any, device: Any) -> Any:
        def told() -> Any:
            for task in tasks:
                for view, records in enumerate(task.records.tolist()):
                    self.asked.extend(  # type: ignore[attr-defined]
                        (index, view, tuple(record))
                        for index, record in zip(task.indices.tolist(), records, strict=True)
                    )
                yield task

        return super().views(policy, told(), device)


def watched(photos: Path) -> tuple[Watched, list[Any], list[int]]:
    source = load_images(str(photos), split="train", reading=Reading(workers=0))
    assert isinstance(source, StreamedImages)
    found = Watched(**{name: getattr(source, name) for name in source.__dataclass_fields__})
    asked: list[Any] = []
    read: list[int] = []

    def reader(index: int) -> Tensor:
        read.append(index)
        return source.read(index)

    found = replace(found, reader=reader)
    object.__setattr__(found, "asked", asked)
    return found, asked, read


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", ["ebkd", "dist"])
def test_cached_equals_online(photos: Path, cache: Path, tmp_path: Path, method: str, workers: int) -> None:
    options: dict[str, Any] = {"method": method, "views_per_decode": 2, "reading": Reading(workers=workers)}
    cached = student_losses(photos, tmp_path / "cached", cache=cache, **options)
    options |= {"live_teachers": TEACHERS, "policy": POLICY, "views": 4, "input_size": SIZES}
    online = student_losses(photos, tmp_path / "online", **options)
    assert cached[0] == pytest.approx(online[0], rel=5e-4)
    assert cached[1] == pytest.approx(online[1], rel=1e-3)
    single = student_losses(photos, tmp_path / "single", **{**options, "views_per_decode": 1})
    assert single[0] != pytest.approx(online[0], rel=1e-3), "other pictures give other losses: the comparison can fail"


def test_every_sample_is_seen_as_often_in_as_many_slots_and_decoded_once_a_turn(
    photos: Path, cache: Path, tmp_path: Path
) -> None:
    """Two turns of two epochs, of an odd number of samples in each epoch or not, go through all four slots."""
    source, asked, read = watched(photos)
    options: dict[str, Any] = {"epochs": 4, "batch_size": 10, "method": "ebkd", "size": 24, "test": str(photos)}
    demkd.distill(network(3), train=source, out=tmp_path, cache=cache, views_per_decode=2, progress=False,
                  precision="float32", device="cpu", **options)  # fmt: skip
    samples = len(source)
    assert Counter(read) == dict.fromkeys(range(samples), 2)
    assert len(asked) == 4 * samples
    turns = asked[: 2 * samples], asked[2 * samples :]
    for turn in turns:
        assert Counter(index for index, _, _ in turn) == dict.fromkeys(range(samples), 2)
    slots = [[tuple(record) for record in open_cache(cache).view(slot).tolist()] for slot in range(4)]
    shown = {(index, record) for index, _, record in asked}
    assert shown == {(index, slot[index]) for index in range(samples) for slot in slots}


def test_a_run_goes_on_in_the_middle_of_a_turn(photos: Path, cache: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache": cache, "views_per_decode": 2, "epochs": 4, "batch_size": 10}
    whole = student_losses(photos, tmp_path / "whole", **options)
    told = Recorder(interrupt_after=1)
    settings = {"method": "ebkd", "learning_rate": 1e-4, "size": 24, "precision": "float32", "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        demkd.distill(network(3), train=str(photos), out=tmp_path / "cut", progress=told, **options, **settings)
    rest = student_losses(photos, tmp_path / "cut", **options)
    assert rest == whole[1:]


def test_training_on_labels_takes_it_too(photos: Path, tmp_path: Path) -> None:
    source, asked, read = watched(photos)
    demkd.train(network(3), train=source, test=str(photos), out=tmp_path, policy=POLICY, views_per_decode=3, epochs=3,
                batch_size=12, progress=False, precision="float32", device="cpu")  # fmt: skip
    assert Counter(read) == dict.fromkeys(range(len(source)), 1)
    assert len({(index, record) for index, _, record in asked}) == 3 * len(source)


@pytest.mark.parametrize("samples", [1, 7, 60, 61])
@pytest.mark.parametrize("views", [1, 2, 4])
def test_a_turns_epochs_share_out_the_samples(samples: int, views: int) -> None:
    options = TrainingOptions(data="d", network="n", views_per_decode=views)
    places = [turn_of(epoch, options) for epoch in range(1, 2 * views + 1)]
    assert places == [(turn, place) for turn in (1, 2) for place in range(views)]
    parts = np.array_split(np.arange(samples), views)
    assert [len(part) for part in parts] == [(samples + views - 1 - place) // views for place in range(views)]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"batch_size": 31},
            "`batch_size` is 31, no multiple of the 2 views of `views_per_decode`: choose 32",
        ),
        ({"epochs": 3}, "`epochs` is 3, no multiple of the 2 views of `views_per_decode`: choose 4"),
        ({"views": 3}, r"`views` is 3, which is no multiple of the 2 .* \(`views_per_decode`\)"),
        ({"views_per_step": 2}, "`views_per_decode` is 2 and `views_per_step` is 2: choose one; the views"),
        ({"views_per_decode": 0}, "`views_per_decode` is 0: choose 1 or more"),
    ],
)
def test_what_would_show_some_more_often_is_refused(
    photos: Path, cache: Path, tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        student_losses(photos, tmp_path, cache=cache, **{"views_per_decode": 2, **options})


def test_an_order_of_its_own_is_that_of_another_seed(photos: Path, cache: Path, tmp_path: Path) -> None:
    """With --order-seed, students of different seeds meet the same samples in the same slots."""
    found = []
    for seed, order in ((0, None), (1, 0), (1, None)):
        source, asked, _ = watched(photos)
        demkd.distill("resnet8", train=source, test=str(photos), out=tmp_path / f"{seed}-{order}", cache=cache,
                      seed=seed, order_seed=order, epochs=2, batch_size=16, size=24, method="ebkd", progress=False,
                      precision="float32", device="cpu")  # fmt: skip
        found.append(asked)
    assert found[0] == found[1] != found[2]
