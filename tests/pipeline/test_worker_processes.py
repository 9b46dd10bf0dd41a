"""Whoever works with pictures in other processes leaves none behind, though nothing is collected, nor after errors."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import demkd
from demkd.dataset import load_images
from demkd.dataset.workers import Workers
from tests.dataset.photos import write_photos
from tests.pipeline.parallel_program import network
from tests.pipeline.stages import Recorder

QUIET: dict[str, Any] = {"progress": False, "precision": "float32", "device": "cpu"}
READING = demkd.ImageConfig(workers=2)


def children() -> set[str]:
    """The processes that this one has started and that have not ended."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.fixture(autouse=True)
def _nothing_is_collected() -> Iterator[None]:
    """Neither what is left of other tests, nor meanwhile."""
    gc.collect()
    gc.disable()
    before = children()
    yield
    gc.enable()
    assert children() <= before


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, a cache of them, and a run."""
    folder = tmp_path_factory.mktemp("made")
    photos = str(write_photos(folder / "photos"))
    demkd.cache_teachers(teacher(), photos, out=folder / "cache", **VIEWS, images=demkd.ImageConfig(workers=0), **QUIET)
    distill(folder, folder / "run", images=demkd.ImageConfig(workers=0))
    return folder


VIEWS: dict[str, Any] = {"views": 2, "augment": demkd.ResizedCrop(size=16)}
STUDENT: dict[str, Any] = {"epochs": 2, "batch_size": 8, "method": "ebkd", "size": 16}


def teacher() -> dict[str, nn.Module]:
    made = network(1)
    made[-1] = nn.Linear(8, 3)  # type: ignore[index,operator]
    return {"a": made}


def distill(made: Path, out: Path, **changes: Any) -> object:
    options = {"images": READING, **STUDENT, **QUIET, **changes}
    return demkd.distill("resnet8", train=str(made / "photos"), cache=made / "cache", out=out, **options)


CALLS: dict[str, Callable[[Path, Path], object]] = {
    "cache_teachers": lambda made, out: demkd.cache_teachers(
        teacher(), str(made / "photos"), out=out, images=READING, **VIEWS, **QUIET
    ),
    "plan_caching": lambda made, out: demkd.plan_caching(
        teacher(), str(made / "photos"), out=out, images=READING, **VIEWS, **QUIET
    ),
    "recompute": lambda made, _: demkd.recompute(
        made / "cache", teacher(), str(made / "photos"), pairs=10, images=READING, **QUIET
    ),
    "distill": distill,
    "evaluate": lambda made, _: demkd.evaluate(made / "run", str(made / "photos"), images=READING, **QUIET),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_process_outlives_the_call(made: Path, tmp_path: Path, name: str) -> None:
    before = children()
    CALLS[name](made, tmp_path / "out")
    assert children() == before


def test_none_outlives_an_error_while_somebody_still_looks_at_it(made: Path, tmp_path: Path) -> None:
    before = children()
    with pytest.raises(KeyboardInterrupt) as interrupted:
        distill(made, tmp_path / "run", progress=Recorder(interrupt_after=1))
    assert children() == before, "the traceback holds all that was at work"
    assert interrupted.tb


def test_workers_end_in_the_middle_of_their_work_and_start_again() -> None:
    before = children()
    with Workers(abs, 2) as workers:
        results = workers.map(range(0, -100, -1))
        assert next(results) == 0
        assert len(children() - before) == 2
        workers.close()
        assert children() == before
        assert list(workers.map([-1, -2, -3])) == [1, 2, 3]
    assert children() == before


def test_a_source_can_be_used_again_after_a_rest(made: Path) -> None:
    source = load_images(str(made / "photos"), split="train", images=READING)
    before = children()
    for _ in range(2):
        demkd.evaluate(made / "run", source, **QUIET)
        assert children() == before
