"""A stranger's files on the command line: pipes in the place of files, code in the place of names, odd names."""

import os
from pathlib import Path

import pytest

from demkd.untrusted import read_regular
from tests.reliability.conftest import Run, caching, distilling, outcome_of_run, says


@pytest.fixture
def finished(run: Run, picture_folder: Path, pristine_cache: Path, tmp_path: Path) -> Path:
    """A run of one epoch."""
    run(*distilling(picture_folder, pristine_cache, tmp_path / "run", epochs=1), code=0)
    return tmp_path / "run"


def as_pipe(path: Path) -> None:
    """Put a pipe in a file's place; opening it the usual way waits for ever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.timeout(60)
def test_a_pipe_in_a_runs_folder_keeps_nobody_waiting(
    run: Run, picture_folder: Path, pristine_cache: Path, tmp_path: Path, finished: Path
) -> None:
    command = distilling(picture_folder, pristine_cache, finished, epochs=1)
    expected = outcome_of_run(finished)
    for name, reason in (("checkpoint.pt", "is damaged"), ("metrics.jsonl", "it is no file")):
        kept = (finished / name).read_bytes()
        as_pipe(finished / name)
        says(run(*command), reason)
        (finished / name).unlink()
        (finished / name).write_bytes(kept)
    for name in ("checkpoint.pt.creating", "metrics.jsonl.creating", "student.safetensors.creating", "run.lock"):
        as_pipe(finished / name)
    run(*command, code=0)
    assert outcome_of_run(finished) == expected
    as_pipe(finished / "metrics.jsonl")
    says(run("compare", finished), "metrics.jsonl: [Errno 22] it is no file")
    as_pipe(finished / "recipe.toml")
    says(run(*command), "recipe.toml cannot be read ([Errno 22] it is no file")
    says(run("compare", finished), "recipe.toml: [Errno 22] it is no file")
    says(run("distill", "--recipe", finished / "recipe.toml", "--out", tmp_path / "new"), "it is no file")
    out = tmp_path / "out.safetensors"
    says(
        run("export", finished, "--format", "safetensors", "--out", out, "--quiet"), "has no recipe that names its data"
    )


@pytest.mark.timeout(60)
def test_a_pipe_where_a_cache_is_made_is_replaced(
    run: Run, picture_folder: Path, teachers: Path, tmp_path: Path
) -> None:
    for name in ("a.h5.creating", "weights.h5.creating"):
        as_pipe(tmp_path / name)
    run(*caching(picture_folder, teachers, tmp_path, views=1, features="none"), code=0)
    run("inspect", tmp_path, code=0)
    as_pipe(tmp_path / ".page.html.writing")
    run("inspect", tmp_path, "--html", tmp_path / "page.html", code=0)


def test_only_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert read_regular(tmp_path / "file") == b"x"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="it is no file"):
            read_regular(path)
