"""What a process says, and does not say, of what another process is at."""

from contextlib import ExitStack
from pathlib import Path

import pytest

import demkd
from demkd.cache import exclusive
from demkd.pipeline import stage_one
from tests.pipeline.parallel_program import QUIET, TEACHERS, TRAIN
from tests.pipeline.stages import Recorder


class Releasing(Recorder):
    """Ends whoever holds a file when it is told that somebody waits."""

    def __init__(self, holder: ExitStack) -> None:
        super().__init__()
        self._holder = holder

    def note(self, text: str) -> None:
        super().note(text)
        if text.startswith("waiting"):
            self._holder.close()


@pytest.mark.timeout(60)
def test_rank_0_says_what_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with ExitStack() as holder:
        holder.enter_context(exclusive(tmp_path / "a.00001-of-00001.h5"))
        told = Releasing(holder)
        report = demkd.cache_teachers(TEACHERS, TRAIN, out=tmp_path, views=2, shards=1, **{**QUIET, "progress": told})
    assert [note.partition(" by process")[0] for note in told.notes if note.startswith("waiting")] == [
        "waiting for other processes: teacher a: shard 1 of 1 is being written"
    ]
    assert report.held == ()


def test_weights_that_another_process_writes_are_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_one, "_SECONDS_FOR_WEIGHTS", 0.0)
    told = Recorder()
    with exclusive(tmp_path / "weights.h5"):
        report = demkd.cache_teachers(TEACHERS, TRAIN, out=tmp_path, views=2, **{**QUIET, "progress": told})
    assert report.weighted == ()
    assert [text for text in told.warnings if "weights.h5 is being written by process" in text]
    assert demkd.cache_teachers(TEACHERS, TRAIN, out=tmp_path, views=2, **QUIET).weighted == ("a", "b")
