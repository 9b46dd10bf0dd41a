"""What must not creep in over a long run: memory, and other views for the same sample."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from demkd.cache import TeacherFile, open_cache
from demkd.pipeline import stage_one
from demkd.pipeline.cached_teachers import CachedTeachers
from demkd.pipeline.methods import METHODS
from demkd.pipeline.progress import SilentProgress
from tests.pipeline.stages import cache_one
from tests.reliability.conftest import Run, teacher_options

_FLAT = 4 << 20  # bytes; less than what a leak of one block or answers a step leaves in these tests


def anonymous_memory() -> int:
    """What this process holds, without the pages of files that it mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


class MemoryProgress(SilentProgress):
    """Notes the memory after every block."""

    def __init__(self) -> None:
        self.memory: list[int] = []

    @contextmanager
    def task(self, description: str, *, total: int, unit: str, done: int = 0) -> Iterator["MemoryProgress"]:  # noqa: ARG002
        yield self

    def advance(self, count: int) -> None:  # noqa: ARG002
        self.memory.append(anonymous_memory())


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@needs_proc
def test_stage_one_stays_as_small_as_it_is(
    picture_folder: Path, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 slots of 60 x 1,024 features, 240 kB each: kept in memory they would be 12 MB."""
    monkeypatch.setattr(stage_one, "_ANSWER_BYTES", 1)  # what may wait to be written: one slot; else all of these fit
    progress = MemoryProgress()
    checkpoint = teachers / "a.safetensors"
    cache_one(picture_folder, checkpoint, tmp_path, progress=progress, views=50, features=("stage1",), feature_grid=8)
    assert len(progress.memory) == 50
    # What a slot takes while it is answered comes and goes, by more than the bound; what is kept raises the least ones.
    assert min(progress.memory[-10:]) - min(progress.memory[:10]) < _FLAT


@needs_proc
def test_stage_two_stays_as_small_as_it_is(pristine_cache: Path) -> None:
    """Two hundred epochs' worth of by_slot, fused and dropped."""
    with open_cache(pristine_cache) as cache:
        labels = torch.from_numpy(np.array(cache.labels))
        source = CachedTeachers(cache, labels, METHODS["de-mkd"], views=4, run_seed=0, device=torch.device("cpu"))
        memory = []
        for epoch in range(1, 201):
            source.start_epoch(epoch)
            source.batch_targets(torch.arange(60), torch.zeros(60, 3, 16, 16, dtype=torch.uint8))
            memory.append(anonymous_memory())
    assert memory[-1] - memory[20] < _FLAT


def test_batch_size_and_resuming_never_change_a_view(
    run: Run, picture_folder: Path, teachers: Path, tmp_path: Path
) -> None:
    """Views and predictions are the same for any batch size; logits are, up to rounding."""
    command = ["cache-teachers", "--quiet", "--precision", "float32", "--data", picture_folder, "--views", 6]
    for size in (7, 256):
        out = tmp_path / f"batch{size}"
        full = [*command, "--out", out, "--batch-size", size, *teacher_options(teachers, "a")]
        run(*full, kill_at=25 + size % 10)
        run(*full, code=0)
    small, large = (TeacherFile(tmp_path / f"batch{size}" / "a.h5") for size in (7, 256))
    for slot in range(6):
        assert np.array_equal(small.read("view", slot), large.read("view", slot))
        assert np.allclose(small.read("logits", slot), large.read("logits", slot), atol=0.01)
