"""A full disk is one sentence; nothing that exists is harmed, and with more room the same command resumes."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demkd.cache import CacheSpaceError, CacheWriter, open_cache, write_weights
from demkd.cache.verify import verify_cache
from demkd.pipeline.results import EpochReport
from demkd.pipeline.runs import RunFolder
from tests.cache.counting import LABELS, SAMPLES, fill, provenance, shape
from tests.reliability.conftest import Command, Run, SmallDisk, says
from tests.reliability.scenarios import contents, outcome_of_run

ENOUGH = 64 * 1024 * 1024


def occupy(disk: Path, *, leave: int) -> Path:
    """Fill a disk until so many bytes are free."""
    statistics = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(bytes(max(statistics.f_bavail * statistics.f_frsize - leave, 0)))
    return filler


def test_a_cache_that_cannot_fit_is_refused_at_once(run: Run, caching: Command, small_disk: SmallDisk) -> None:
    """Growth too: the old file and the new one exist at the same time, and need space for both."""
    folder = small_disk.path / "cache"
    for more in ([], ["--dry-run"]):
        says(run(*caching(folder, views=20), *more), "the cache needs ")
    assert not folder.exists(), "nothing was written"
    small_disk.resize(ENOUGH)
    run(*caching(folder, views=4, features="none"), code=0)
    before = contents(folder)
    filler = occupy(small_disk.path, leave=100_000)
    says(run(*caching(folder, views=20)), "more bytes, and ")
    assert contents(folder) == before
    filler.unlink()
    run(*caching(folder, views=20), code=0)
    assert open_cache(folder).num_views == 20
    assert verify_cache(folder).sound


def test_a_disk_that_another_program_filled_is_found_before_anything_is_computed(small_disk: SmallDisk) -> None:
    """The file's whole space is reserved when it is created, which leaves nothing behind if it fails."""
    large = shape(views=200, stage3=(64,))
    message = r"the disk cannot hold a\.00001-of-00001\.h5\.creating \(No space left on device"
    writer = CacheWriter(small_disk.path, "a", shape=large, provenance=provenance(), labels=LABELS)
    with pytest.raises(CacheSpaceError, match=message), writer:
        pass
    assert [file.name for file in small_disk.path.iterdir()] == ["a.00001-of-00001.h5.lock"]
    fill(small_disk.path, shape())
    assert verify_cache(small_disk.path).sound, "and the lock is free"


def test_a_file_once_created_can_be_filled_on_a_full_disk(small_disk: SmallDisk) -> None:
    fill(small_disk.path, shape(), blocks=0)
    occupy(small_disk.path, leave=0)
    fill(small_disk.path, shape())
    assert verify_cache(small_disk.path).sound


def test_weights_that_cannot_be_written_leave_the_last_ones(small_disk: SmallDisk) -> None:
    fill(small_disk.path, shape())
    cache = open_cache(small_disk.path)
    ones = np.ones((1, 3, SAMPLES), np.float32)
    write_weights(small_disk.path, cache.teachers, ones, weighting="first")
    occupy(small_disk.path, leave=8192)
    with pytest.raises(CacheSpaceError, match=r"the disk cannot hold weights\.h5\.creating"):
        write_weights(small_disk.path, cache.teachers, ones, weighting="second")
    weights = open_cache(small_disk.path).teacher_weights
    assert weights.weighting == "first"
    assert not (small_disk.path / "weights.h5.creating").exists()


def test_a_failing_checkpoint_keeps_the_last_good_one_and_the_run_resumes(
    run: Run, distilling: Command, tmp_path: Path, small_disk: SmallDisk
) -> None:
    """Not a byte is free for the recipe; then there is room for one checkpoint, and not for the next one beside it."""
    run(*distilling(tmp_path / "whole", epochs=3), code=0)
    size = (tmp_path / "whole" / "checkpoint.pt").stat().st_size
    folder = small_disk.path / "run"
    command = distilling(folder, epochs=3)
    filler = occupy(small_disk.path, leave=0)
    says(run(*command), "the disk cannot hold ")
    filler.unlink()
    small_disk.resize(int(size * 1.5))
    for _ in range(2):
        says(run(*command), "the disk cannot hold checkpoint.pt.creating (No space left on device")
        kept = RunFolder(folder).load_checkpoint()
        assert kept["epoch"] == 1
    small_disk.resize(ENOUGH)
    run(*command, code=0)
    assert outcome_of_run(folder) == outcome_of_run(tmp_path / "whole")


def test_a_metrics_line_is_written_completely_or_not_at_all(small_disk: SmallDisk) -> None:
    def add(number: int) -> None:
        times = {"seconds": 0.1, "data_seconds": 0.01, "test_seconds": 0.1}
        accuracy = {"train_top1": 0.5, "test_top1": 0.5, "test_top5": 0.5}
        report = EpochReport(
            epoch=number, epochs=1000, learning_rate=0.1, losses={"loss": 1 / 3}, **accuracy, **times
        )  # fmt: skip
        run_folder.add_metrics(report)

    run_folder = RunFolder(small_disk.path)
    filler = occupy(small_disk.path, leave=16384)
    with pytest.raises(CacheSpaceError, match=r"the disk cannot hold metrics\.jsonl"):
        any(map(add, range(1, 1000)))
    text = run_folder.metrics.read_text()
    assert text.endswith("}\n")
    written = [json.loads(line)["epoch"] for line in text.splitlines()]
    assert written == list(range(1, len(written) + 1))
    assert written
    filler.unlink()
    add(len(written) + 1)
    assert len(run_folder.read_metrics()) == len(written) + 1


def test_a_student_that_cannot_be_written_leaves_the_last_one(small_disk: SmallDisk) -> None:
    run_folder = RunFolder(small_disk.path)
    run_folder.save_student({"weight": torch.ones(1000)}, {"network": "first"})
    before = run_folder.student.read_bytes()
    with pytest.raises(CacheSpaceError, match=r"the disk cannot hold student\.safetensors\.creating"):
        run_folder.save_student({"weight": torch.ones(100_000)}, {"network": "second"})
    assert run_folder.student.read_bytes() == before
    assert [file.name for file in small_disk.path.iterdir()] == ["student.safetensors"]


def test_a_file_size_limit_is_a_full_disk(run: Run, caching: Command, cache: Path) -> None:
    """Growth of a cache of 4 views; needs no rights to mount anything."""
    before, command = contents(cache), caching(cache, views=12)
    says(run(*command, file_limit=65536), "the disk cannot hold a.00001-of-00001.h5.creating (File too large")
    assert contents(cache) == before
    run(*command, code=0)
    assert verify_cache(cache).sound


def test_a_file_size_limit_stops_a_student_that_then_resumes(run: Run, distilling: Command, tmp_path: Path) -> None:
    run(*distilling(tmp_path / "whole", epochs=1), code=0)
    command = distilling(tmp_path / "run", epochs=1)
    says(run(*command, file_limit=100_000), "the disk cannot hold checkpoint.pt.creating (File too large")
    assert RunFolder(tmp_path / "run").load_checkpoint() is None
    run(*command, code=0)
    assert outcome_of_run(tmp_path / "run") == outcome_of_run(tmp_path / "whole")


def test_the_dry_run_counts_what_is_missing_and_writes_nothing(run: Run, caching: Command, tmp_path: Path) -> None:
    """The bytes are those of the files afterwards, or slightly more; views that exist are not counted again."""
    folder = tmp_path / "cache"
    command = caching(folder, views=4, features="none")

    def plan(*command: object) -> Any:
        found = json.loads(run(*command, "--dry-run", "--json", code=0).stdout)
        return {**found, "pending": [teacher["pending"] for teacher in found["teachers"]]}

    first = plan(*command)
    text = run(*command, "--dry-run", code=0).stdout
    for part in ("a ", "resnet8", "free on the disk", "as much as 4 epochs with live teachers", "Nothing was written"):
        assert part in text
    assert not folder.exists()
    assert first["pending"] == [240, 240]
    assert first["break_even_epochs"] == 4
    assert first["break_even_runs"] == 4 / first["student_epochs"]
    assert first["seconds"] > 0
    run(*command, code=0)
    for teacher in first["teachers"]:
        actual = (folder / f"{teacher['name']}.00001-of-00001.h5").stat().st_size
        assert actual <= teacher["file_bytes"] == teacher["new_bytes"] < actual + 131_072
    before = contents(folder)
    assert plan(*command)["pending"] == [0, 0]
    assert plan(*caching(folder, views=10))["pending"] == [600, 600], "features of all views are new"
    assert plan(*caching(folder, views=10, features="none"))["pending"] == [360, 360]
    assert contents(folder) == before
