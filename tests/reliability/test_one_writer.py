"""One writer per file, one process per run: a second one is refused by naming the first, a reader sees the progress.

`test_sharing.py` has writers that die.
"""

import os
import socket
from pathlib import Path

import pytest

from demkd.cache import CacheIncompleteError, ShardFile, exclusive, open_cache
from demkd.cache.verify import verify_cache
from tests.reliability.conftest import Command, Run, says
from tests.reliability.scenarios import contents


def test_a_second_writer_is_refused(run: Run, caching: Command, distilling: Command, tmp_path: Path) -> None:
    """Refused with the owner's process and host; a reader sees the progress; without the owner it is resumed."""
    cache = tmp_path / "cache"
    command = caching(cache, views=6)
    assert run(*command, kill_at=40).code == -9
    with exclusive(cache / "a.00001-of-00001.h5"):
        before = contents(cache)
        says(run(*command), f"a.00001-of-00001.h5 is being written by process {os.getpid()} on {socket.gethostname()}")
        assert contents(cache) == before
        done = ShardFile(cache / "a.00001-of-00001.h5.partial").progress()
        assert 0 < done < 1
        message = rf"teacher a in \S* is {done:.0%} done, being written by process {os.getpid()} on \S+; teacher b in "
        with pytest.raises(CacheIncompleteError, match=message):
            open_cache(cache)
        says(run(*distilling(tmp_path / "run", cache=cache, epochs=1)), f"is {done:.0%} done")
    run(*command, code=0)
    assert verify_cache(cache).sound


def test_a_run_has_one_process(run: Run, distilling: Command, tmp_path: Path) -> None:
    command = distilling(tmp_path / "run", epochs=1)
    (tmp_path / "run").mkdir()
    with exclusive(tmp_path / "run" / "run"):
        says(run(*command), f"{tmp_path / 'run'} is being written by process {os.getpid()} on ")
        assert [file.name for file in (tmp_path / "run").iterdir()] == ["run.lock"]
    run(*command, code=0)


def test_two_teachers_are_written_side_by_side(run: Run, caching: Command, tmp_path: Path) -> None:
    """The lock is a file's, not the cache's: another process may add another teacher meanwhile."""
    with exclusive(tmp_path / "c.00001-of-00001.h5"):
        run(*caching(tmp_path, views=2, features="none"), code=0)
    assert open_cache(tmp_path).names == ("a", "b")
