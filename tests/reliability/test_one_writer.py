"""One writer a file, one process a run; whoever comes second is told who is at it, and whoever reads, how far it is."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demkd.cache import CacheIncompleteError, TeacherFile, exclusive, open_cache
from demkd.cache.integrity import verify_cache
from tests.conftest import CHECKOUT
from tests.reliability.conftest import Command, Run, contents, says


@pytest.fixture
def stopped_owner(caching: Command, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real `cache-teachers`, stopped while it holds its file."""
    command = caching(tmp_path / "cache", views=50)
    owner = subprocess.Popen(
        [sys.executable, str(CHECKOUT / "cli.py"), *map(str, command)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        wait_for_answers(tmp_path / "cache" / "a.h5.partial")
        owner.send_signal(signal.SIGSTOP)
        yield owner
    finally:
        owner.kill()
        owner.wait()


def wait_for_answers(path: Path) -> None:
    """Until some blocks of a file are written."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if path.exists() and TeacherFile(path).blocks_written() > 2:
            return
        time.sleep(0.001)
    pytest.fail(f"{path} was not begun")


def test_a_second_writer_is_refused_until_the_first_one_dies(
    run: Run, caching: Command, distilling: Command, tmp_path: Path, stopped_owner: subprocess.Popen[bytes]
) -> None:
    """The order of things: refused with the owner's process and host; a reader told how far; killed; gone on."""
    cache = tmp_path / "cache"
    command = caching(cache, views=50)
    before = contents(cache)
    says(run(*command), f"a.h5 is being written by process {stopped_owner.pid} on {socket.gethostname()}")
    assert contents(cache) == before
    done = TeacherFile(cache / "a.h5.partial").progress()
    assert 0 < done < 1
    with pytest.raises(
        CacheIncompleteError,
        match=rf"teacher a in \S* is {done:.0%} done; teacher b in .*: run the same `cache_teachers`",
    ):
        open_cache(cache)
    says(run(*distilling(tmp_path / "run", cache=cache, epochs=1)), f"is {done:.0%} done")
    stopped_owner.kill()
    stopped_owner.wait()
    run(*command, code=0)
    assert verify_cache(cache).sound


def test_a_run_has_one_process(run: Run, distilling: Command, tmp_path: Path) -> None:
    command = distilling(tmp_path / "run", epochs=1)
    (tmp_path / "run").mkdir()
    with exclusive(tmp_path / "run" / "run"):
        says(run(*command), f"is being written by process {os.getpid()} on ")
        assert [file.name for file in (tmp_path / "run").iterdir()] == ["run.lock"]
    run(*command, code=0)


def test_two_teachers_are_written_side_by_side(run: Run, caching: Command, tmp_path: Path) -> None:
    """The lock is a file's, not the cache's: another process may add another teacher meanwhile."""
    cache = tmp_path / "cache"
    cache.mkdir()
    with exclusive(cache / "c.h5"):
        run(*caching(cache, views=2, features="none"), code=0)
    assert open_cache(cache).names == ("a", "b")
