"""Photos, workers, kept logits, mixed views: killed at any moment, both stages go on to the same bytes."""

import random
from pathlib import Path

import pytest

from tests.dataset.photos import write_photos
from tests.reliability.conftest import Run, contents, outcome_of_run, says, teacher_options

VIEWS = ("--view", "resized-crop+randaugment", "--size", 24, "--mix", "cutmix")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), per_class=8)


def caching(data: Path, teachers: Path, out: Path, *, workers: int = 0) -> list[object]:
    return [
        *("cache-teachers", "--quiet", "--precision", "float32", "--data", data, "--out", out, "--views", 4),
        *("--keep", 2, "--batch-size", 8, "--workers", workers, *VIEWS, *teacher_options(teachers)),
    ]


def distilling(data: Path, cache: Path, out: Path, *, workers: int = 0) -> list[object]:
    return [
        *("distill", "--quiet", "--precision", "float32", "--data", data, "--cache", cache, "--out", out),
        *("--student", "resnet8", "--method", "ebkd", "--epochs", 3, "--batch-size", 8, "--size", 16),
        *("--workers", workers),
    ]


@pytest.fixture(scope="module")
def cache(run: Run, photos: Path, teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    run(*caching(photos, teachers, folder), code=0)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_stage_one_of_photos_goes_on_to_the_same_bytes(
    run: Run, photos: Path, teachers: Path, cache: Path, tmp_path: Path, workers: int
) -> None:
    """At random moments, with and without workers; those end with the process that started them."""
    draw = random.Random(workers)
    command = caching(photos, teachers, tmp_path / "cache", workers=workers)
    whole = run(*caching(photos, teachers, tmp_path / "timed", workers=workers), code=0).seconds
    killed = sum(run(*command, kill_after=draw.uniform(0.1, 1.0) * whole).code == -9 for _ in range(5))
    run(*command, code=0)
    assert killed
    assert contents(tmp_path / "cache") == contents(cache)


def test_no_write_of_stage_one_is_a_bad_moment(
    run: Run, photos: Path, teachers: Path, cache: Path, tmp_path: Path
) -> None:
    """Killed at the n-th call that changes a file, the write torn; then once more, and to the end."""
    calls = run(*caching(photos, teachers, tmp_path / "counted"), code=0).calls
    for place in range(3, calls, calls // 8):
        command = caching(photos, teachers, tmp_path / f"at-{place}")
        assert run(*command, kill_at=place).code == -9
        run(*command, code=0)
        assert contents(tmp_path / f"at-{place}") == contents(cache)


def test_a_killed_student_of_photos_goes_on_to_the_same_bytes(
    run: Run, photos: Path, cache: Path, tmp_path: Path
) -> None:
    """With workers as without."""
    calls = run(*distilling(photos, cache, tmp_path / "whole"), code=0).calls
    whole = outcome_of_run(tmp_path / "whole")
    for place in range(2, calls, calls // 5):
        command = distilling(photos, cache, tmp_path / f"at-{place}", workers=place % 2)
        assert run(*command, kill_at=place).code == -9
        run(*command, code=0)
        assert outcome_of_run(tmp_path / f"at-{place}") == whole


def test_what_photos_need_is_said_in_one_sentence(
    run: Run, photos: Path, teachers: Path, cache: Path, tmp_path: Path
) -> None:
    """On the command line, in its own words, before anything is computed."""
    here = [*("--quiet", "--data", photos, "--out", tmp_path / "x", "--workers", 0)]
    cached = ["cache-teachers", *teacher_options(teachers), *here]
    says(run(*cached, "--view", "crop-flip"), "choose --view resized-crop")
    says(run(*cached, "--keep", 9), "--keep is 9, and photos")
    says(run(*cached, "--view", "sideways"), "--view cannot be 'sideways'")
    distill = ["distill", "--cache", cache, "--student", "resnet8", *here]
    says(run(*distill, "--method", "de-mkd"), "needs one label a picture, and mixed pictures have two")
    says(run(*distill, "--method", "kd", "--temperature", 3), "3 is asked for: choose one of these (--temperature)")
    says(run(*distill, "--method", "kd", "--mix", "mixup"), "leave it out, or cache the teachers with it")
    says(run(*distill, "--method", "kd", "--size", 16, "--no-exif"), "data.exif is true in the cache and false now")
    assert not (tmp_path / "x").exists()
