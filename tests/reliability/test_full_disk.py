"""A full disk is one sentence; nothing that exists is harmed, and after making room the same command goes on."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from demkd.cache import CacheSpaceError, CacheWriter, open_cache, write_weights
from demkd.cache.integrity import verify_cache
from demkd.pipeline.results import EpochReport
from demkd.pipeline.runs import RunFolder
from tests.cache.counting import LABELS, SAMPLES, fill, provenance, shape
from tests.reliability.conftest import Command, Run, SmallDisk, contents, outcome_of_run, says, teacher_options

_ENOUGH = 64 * 1024 * 1024


def occupy(disk: Path, *, leave: int) -> Path:
    """Fill a disk until so many bytes are free."""
    statistics = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(bytes(max(statistics.f_bavail * statistics.f_frsize - leave, 0)))
    return filler


def epoch(number: int) -> EpochReport:
    return EpochReport(
        epoch=number,
        epochs=1000,
        learning_rate=0.1,
        losses={"loss": 1 / 3},
        train_top1=0.5,
        test_top1=0.5,
        test_top5=0.5,
        seconds=0.1,
        data_seconds=0.01,
        test_seconds=0.1,
    )


def test_a_cache_that_cannot_fit_is_refused_at_once(run: Run, caching: Command, small_disk: SmallDisk) -> None:
    command = caching(small_disk.path / "cache", views=20)
    says(run(*command), "the cache needs ")
    assert not (small_disk.path / "cache").exists(), "nothing was written"
    small_disk.resize(_ENOUGH)
    run(*command, code=0)
    assert verify_cache(small_disk.path / "cache").sound


def test_a_dry_run_refuses_it_too(run: Run, caching: Command, small_disk: SmallDisk) -> None:
    command = caching(small_disk.path / "cache", views=20)
    says(run(*command, "--dry-run"), "the cache needs ")


def test_growth_that_cannot_fit_leaves_the_cache_as_it_is(run: Run, caching: Command, small_disk: SmallDisk) -> None:
    """The old file and the new one are there at once: the space for both is needed."""
    folder = small_disk.path / "cache"
    small_disk.resize(_ENOUGH)
    run(*caching(folder, views=4, features="none"), code=0)
    before = contents(folder)
    filler = occupy(small_disk.path, leave=100_000)
    grow = caching(folder, views=20)
    says(run(*grow), "more bytes, and ")
    assert contents(folder) == before
    filler.unlink()
    run(*grow, code=0)
    assert open_cache(folder).num_views == 20


def test_a_disk_that_another_program_filled_is_found_before_anything_is_computed(small_disk: SmallDisk) -> None:
    """The file's whole space is reserved when it is created, which leaves nothing behind if it fails."""
    large = shape(views=200, stage3=(64,))
    writer = CacheWriter(small_disk.path, "a", shape=large, provenance=provenance(), labels=LABELS)
    with (
        pytest.raises(CacheSpaceError, match=r"the disk cannot hold a\.h5\.creating \(No space left on device"),
        writer,
    ):
        pass
    assert [file.name for file in small_disk.path.iterdir()] == ["a.h5.lock"]
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
    assert weights is not None
    assert weights.weighting == "first"
    assert not (small_disk.path / "weights.h5.creating").exists()


def test_a_failing_checkpoint_keeps_the_last_good_one_and_the_run_goes_on(
    run: Run, distilling: Command, tmp_path: Path, small_disk: SmallDisk
) -> None:
    """There is room for one checkpoint, and not for the next one beside it."""
    run(*distilling(tmp_path / "whole", epochs=3), code=0)
    one = (tmp_path / "whole" / "checkpoint.pt").stat().st_size
    small_disk.resize(int(one * 1.5))
    folder = small_disk.path / "run"
    command = distilling(folder, epochs=3)
    says(run(*command), "the disk cannot hold checkpoint.pt.creating (No space left on device")
    kept = RunFolder(folder).load_checkpoint()
    assert kept is not None
    assert kept["epoch"] == 1
    says(run(*command), "the disk cannot hold checkpoint.pt.creating")
    small_disk.resize(_ENOUGH)
    run(*command, code=0)
    assert outcome_of_run(folder) == outcome_of_run(tmp_path / "whole")


def fits(run_folder: RunFolder, number: int) -> bool:
    """Add a line of metrics, if the disk has room for it."""
    try:
        run_folder.add_metrics(epoch(number))
    except CacheSpaceError as error:
        return "the disk cannot hold metrics.jsonl" not in str(error)
    return True


def test_a_metrics_line_is_written_wholly_or_not_at_all(small_disk: SmallDisk) -> None:
    run_folder = RunFolder(small_disk.path)
    filler = occupy(small_disk.path, leave=16384)
    written = 0
    while fits(run_folder, written + 1):
        written += 1
    assert written > 0
    text = run_folder.metrics.read_text()
    assert text.endswith("}\n")
    assert [json.loads(line)["epoch"] for line in text.splitlines()] == list(range(1, written + 1))
    filler.unlink()
    run_folder.add_metrics(epoch(written + 1))
    assert len(run_folder.read_metrics()) == written + 1


def test_a_student_that_cannot_be_written_leaves_the_last_one(small_disk: SmallDisk) -> None:
    run_folder = RunFolder(small_disk.path)
    run_folder.save_student({"weight": torch.ones(1000)}, {"network": "first"})
    before = run_folder.student.read_bytes()
    with pytest.raises(CacheSpaceError, match=r"the disk cannot hold student\.safetensors\.creating"):
        run_folder.save_student({"weight": torch.ones(100_000)}, {"network": "second"})
    assert run_folder.student.read_bytes() == before
    assert [file.name for file in small_disk.path.iterdir()] == ["student.safetensors"]


def test_a_run_folder_cannot_even_be_begun(run: Run, distilling: Command, small_disk: SmallDisk) -> None:
    """Not a byte is free; afterwards no half recipe stands in the way."""
    filler = occupy(small_disk.path, leave=0)
    command = distilling(small_disk.path / "run", epochs=1)
    says(run(*command), "the disk cannot hold ")
    filler.unlink()
    small_disk.resize(_ENOUGH)
    run(*command, code=0)


@pytest.mark.parametrize("views", [4, 20])
def test_a_file_size_limit_is_a_full_disk(run: Run, caching: Command, tmp_path: Path, views: int) -> None:
    """Creation, and growth of a cache of 4 views; needs no rights to mount anything."""
    folder = tmp_path / "cache"
    if views > 4:
        run(*caching(folder, views=4, features="none"), code=0)
    before = contents(folder) if folder.exists() else {}
    command = caching(folder, views=views)
    says(run(*command, file_limit=65536), "the disk cannot hold a.h5.creating (File too large")
    assert contents(folder) == before
    run(*command, code=0)
    assert verify_cache(folder).sound


def test_a_file_size_limit_stops_a_student_who_then_goes_on(run: Run, distilling: Command, tmp_path: Path) -> None:
    run(*distilling(tmp_path / "whole", epochs=2), code=0)
    command = distilling(tmp_path / "run", epochs=2)
    says(run(*command, file_limit=100_000), "the disk cannot hold checkpoint.pt.creating (File too large")
    assert RunFolder(tmp_path / "run").load_checkpoint() is None
    run(*command, code=0)
    assert outcome_of_run(tmp_path / "run") == outcome_of_run(tmp_path / "whole")


def test_the_dry_run_names_what_it_needs_and_writes_nothing(run: Run, caching: Command, tmp_path: Path) -> None:
    """Bytes are those of the files afterwards, or slightly more; views that are there are not counted again."""
    folder = tmp_path / "cache"
    first = caching(folder, views=4, features="none")
    second = caching(folder, views=10)
    plan = json.loads(run(*first, "--dry-run", "--json", code=0).stdout)
    assert not folder.exists()
    assert [teacher["pending"] for teacher in plan["teachers"]] == [240, 240]
    assert plan["break_even_epochs"] == 4
    assert plan["break_even_runs"] == 4 / plan["student_epochs"]
    assert plan["seconds"] > 0
    run(*first, code=0)
    for teacher in plan["teachers"]:
        actual = (folder / f"{teacher['name']}.h5").stat().st_size
        assert actual <= teacher["file_bytes"] == teacher["new_bytes"] < actual + 131_072
    before = contents(folder)
    assert [t["pending"] for t in json.loads(run(*first, "--dry-run", "--json").stdout)["teachers"]] == [0, 0]
    plan = json.loads(run(*second, "--dry-run", "--json", code=0).stdout)
    assert [teacher["pending"] for teacher in plan["teachers"]] == [600, 600], "features of all views are new"
    grown = caching(folder, views=10, features="none")
    plan = json.loads(run(*grown, "--dry-run", "--json", code=0).stdout)
    assert [teacher["pending"] for teacher in plan["teachers"]] == [360, 360]
    assert contents(folder) == before


def test_the_dry_run_shows_its_reckoning(run: Run, picture_folder: Path, teachers: Path, tmp_path: Path) -> None:
    command = ["cache-teachers", "--quiet", "--data", picture_folder, "--out", tmp_path / "cache", "--views", 4]
    text = run(*command, *teacher_options(teachers, "a"), "--dry-run", code=0).stdout
    for part in ("a ", "resnet8", "240", "free on the disk", "4 epochs of one online student", "Nothing was written"):
        assert part in text
