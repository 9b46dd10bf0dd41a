"""Over a long run memory stays the same, and so do the views of a sample."""

from pathlib import Path

import numpy as np
import pytest
import torch

from demkd.cache import ShardFile, open_cache
from demkd.config import METHODS
from demkd.pipeline import stage_one
from demkd.pipeline.progress import Progress
from demkd.pipeline.teacher_targets import CachedTeachers
from tests.pipeline.stages import cache_one
from tests.reliability import scenarios
from tests.reliability.conftest import Command, Run

FLAT = 4 << 20  # bytes; less than a leak of one block, or of the logits of a step, leaves in these tests


def anonymous_memory() -> int:
    """Bytes of this process, without the pages of files that it mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


class MemoryProgress(Progress):
    """Notes the memory after every block."""

    def __init__(self) -> None:
        self.memory: list[int] = []

    def advance(self, count: int) -> None:  # noqa: ARG002
        self.memory.append(anonymous_memory())


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@needs_proc
def test_stage_one_keeps_no_view_in_memory(
    picture_folder: Path, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 views of 60 x 1,024 features, 240 kB each, are 12 MB."""
    monkeypatch.setattr(stage_one, "_BLOCK_BYTES", 1)  # what may wait to be written: one view; else all of these fit
    progress = MemoryProgress()
    checkpoint = teachers / "a.safetensors"
    cache_one(picture_folder, checkpoint, tmp_path, progress=progress, views=50, features=("stage1",), feature_grid=8)
    assert len(progress.memory) == 50
    # The memory of a view in progress comes and goes, by more than the bound; a leak raises the smallest ones.
    assert min(progress.memory[-10:]) - min(progress.memory[:10]) < FLAT


class Interrupted(Progress):
    """Ctrl-C after so many batches."""

    def __init__(self, batches: int) -> None:
        self._left = batches

    def advance(self, count: int) -> None:  # noqa: ARG002
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("seconds", [0, 10])
def test_an_interrupt_loses_the_predictions_of_some_seconds(
    picture_folder: Path, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """One block of 60 images in 5 views: batches of 16, 16, 16 and 12 images, each in 5 views."""
    monkeypatch.setattr(stage_one, "_SECONDS_BETWEEN_SYNCS", seconds)
    options = {"views": 5, "batch_size": 16, "features": ("stage1",)}
    cache_one(picture_folder, teachers / "a.safetensors", tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):  # in the third view of the third batch
        cache_one(picture_folder, teachers / "a.safetensors", tmp_path / "cut", progress=Interrupted(13), **options)
    report = cache_one(picture_folder, teachers / "a.safetensors", tmp_path / "cut", **options)
    assert report.teachers[0].computed == 5 * 60 - (0 if seconds else 12 * 16)
    assert scenarios.contents(tmp_path / "cut") == scenarios.contents(tmp_path / "whole")


@needs_proc
def test_stage_two_keeps_no_epoch_in_memory(pristine_cache: Path) -> None:
    with open_cache(pristine_cache) as cache:
        labels = torch.from_numpy(np.array(cache.labels))
        teachers = CachedTeachers(cache, labels, METHODS["de-mkd"], seed=0)
        memory = []
        for epoch in range(200):
            teachers.read_view(epoch % 4).targets(torch.arange(60))
            memory.append(anonymous_memory())
    assert memory[-1] - memory[20] < FLAT


def test_batch_size_and_resuming_never_change_a_view(run: Run, caching: Command, tmp_path: Path) -> None:
    """Params are the same for any batch size; logits are, up to rounding."""
    for size in (7, 256):
        command = [*caching(tmp_path / f"{size}", views=4, names="a", features="none"), "--batch-size", size]
        run(*command, kill_at=18 + size % 10)
        run(*command, code=0)
    small, large = (ShardFile(tmp_path / f"{size}" / "a.00001-of-00001.h5") for size in (7, 256))
    for view in range(4):
        assert np.array_equal(small.view("params", view), large.view("params", view))
        assert np.allclose(small.view("logits", view), large.view("logits", view), atol=0.01)
