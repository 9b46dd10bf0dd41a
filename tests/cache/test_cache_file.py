"""The promises of a cache file: whole or partial, never torn, never stale, never zeros for answers."""

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from demkd.cache import (
    CacheBusyError,
    CacheDamagedError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheMissingError,
    CacheValueError,
    CacheWriter,
    TeacherFile,
    exclusive,
    open_cache,
    write_weights,
)
from tests.cache.counting import BLOCK_ROWS, CLASSES, LABELS, SAMPLES, answers, fill, flip, provenance, shape

ALL = slice(0, SAMPLES)


def check_everything(folder: Path, *, views: int, teacher: str = "a", number: int = 0) -> None:
    file = TeacherFile(folder / f"{teacher}.h5")
    assert file.shape.num_views == views
    for slot in range(views):
        truth = answers(file.shape.answers(), slot, ALL, teacher=number, features=file.shape)
        for name, expected in truth.items():
            assert np.array_equal(file.read(name, slot), expected), (name, slot)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    fill(tmp_path, shape(stage3=(4,), pooled=(2, 3, 3)))
    check_everything(tmp_path, views=3)
    assert np.array_equal(open_cache(tmp_path).labels, LABELS)


def test_any_hdf5_tool_reads_the_same(tmp_path: Path) -> None:
    """The offsets of our header are those of HDF5."""
    fill(tmp_path, shape(stage3=(4,)))
    file = TeacherFile(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as plain:
        for name in file.shape.answers():
            assert plain[name].chunks is None
            for slot in range(3):
                assert np.array_equal(plain[name][slot], file.read(name, slot))
        assert b"resnet8" in plain["provenance"][()]
        assert np.array_equal(plain["label"][:], LABELS)


def test_a_file_with_the_final_name_is_whole(tmp_path: Path) -> None:
    fill(tmp_path, shape(), blocks=5)
    assert not (tmp_path / "a.h5").exists()
    assert (tmp_path / "a.h5.partial").exists()
    with pytest.raises(CacheIncompleteError, match=r"teacher a in .* is 42% done: run the same `cache_teachers` again"):
        open_cache(tmp_path)


def test_a_file_is_opened_whole_while_another_process_puts_a_grown_one_in_its_place(tmp_path: Path) -> None:
    """What opens it sees the one or the other, and never the header of one with the bytes of the other."""
    for number, views in enumerate((3, 4)):
        fill(tmp_path, shape(views=views))
        shutil.copy(tmp_path / "a.h5", tmp_path / f"next{number}")
    swap = [sys.executable, "-c", _SWAP, str(tmp_path / "a.h5"), str(tmp_path / "next")]
    swapping, seen, opened = subprocess.Popen(swap, stdin=subprocess.PIPE), set(), 0
    try:
        while len(seen) < 2 or opened < 300:
            seen.add(TeacherFile(tmp_path / "a.h5").shape.num_views)
            opened += 1
    finally:
        swapping.communicate()
    assert seen == {3, 4}


# Until its input ends, one file after the other takes the name; a link costs no copy.
_SWAP = """
import itertools, os, select, sys
name, versions = sys.argv[1:]
for number in itertools.count():
    if select.select([sys.stdin], [], [], 0)[0]:
        break
    os.link(f"{versions}{number % 2}", f"{name}.linked")
    os.replace(f"{name}.linked", name)
"""


def test_an_unfinished_file_cannot_be_finished(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, "a", shape=shape(), provenance=provenance(), labels=LABELS)
    with writer, pytest.raises(CacheIncompleteError, match="lacks logits of teacher a, slot 0, rows 0 to 15"):
        writer.finish()


def test_an_unwritten_block_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    fill(tmp_path, shape(), blocks=10)
    partial = TeacherFile(tmp_path / "a.h5.partial")
    assert np.array_equal(partial.read("logits", 0), answers(["logits"], 0, ALL)["logits"])
    with pytest.raises(CacheIncompleteError, match="slot 1, rows 48 to 49"):
        partial.read("logits", 1)


def test_a_resumed_file_has_the_bytes_of_an_uninterrupted_one(tmp_path: Path) -> None:
    fill(tmp_path / "whole", shape(stage3=(4,)))
    for blocks in (1, 3, 2, None):
        fill(tmp_path / "parts", shape(stage3=(4,)), blocks=blocks)
    assert (tmp_path / "parts" / "a.h5").read_bytes() == (tmp_path / "whole" / "a.h5").read_bytes()


def test_a_whole_file_has_nothing_pending(tmp_path: Path) -> None:
    fill(tmp_path, shape())
    before = (tmp_path / "a.h5").stat().st_mtime_ns
    assert fill(tmp_path, shape()) == 0
    assert fill(tmp_path, shape(views=2)) == 0, "fewer views are the first ones"
    assert (tmp_path / "a.h5").stat().st_mtime_ns == before


def test_growing_asks_only_for_what_is_new(tmp_path: Path) -> None:
    """More views, then features, then both: 4 blocks a slot."""
    fill(tmp_path, shape())
    assert fill(tmp_path, shape(views=5)) == 2 * 4
    check_everything(tmp_path, views=5)
    with CacheWriter(tmp_path, "a", shape=shape(stage3=(4,)), provenance=provenance(), labels=LABELS) as writer:
        assert len(writer.pending()) == 5 * 4
        assert writer.blocks.missing(0, 0) == ["features/stage3"], "logits are not asked for again"
    fill(tmp_path, shape(views=6, stage3=(4,)))
    check_everything(tmp_path, views=6)


def test_the_old_file_stays_whole_until_the_larger_one_is(tmp_path: Path) -> None:
    fill(tmp_path, shape())
    fill(tmp_path, shape(views=5), blocks=3)
    check_everything(tmp_path, views=3)
    fill(tmp_path, shape(views=5))
    check_everything(tmp_path, views=5)
    assert not (tmp_path / "a.h5.partial").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher__state_sha256": "00" * 32}, r"teacher\.state_sha256 is abab.* in the cache and 0000.* now"),
        ({"data__pixels_sha256": "00" * 32}, r"data\.pixels_sha256 is cdcd.* in the cache and 0000.* now"),
        ({"data__class_names": list("abcdefh")}, r"data\.class_names is .*\"g\"\] in the cache and .*\"h\"\] now"),
        ({"views__padding": 3}, r"views\.padding is 4 in the cache and 3 now"),
        ({"views__seed": 1}, r"views\.seed is 0 in the cache and 1 now"),
        (
            {"teacher__mean": [0.5, 0.5, 0.4]},
            r"teacher\.mean is \[0\.5, 0\.5, 0\.5\] in the cache and \[0\.5, 0\.5, 0\.4\]",
        ),
        ({"precision": "bfloat16"}, r"precision is float32 in the cache and bfloat16 now"),
        ({"teacher__input_size": [64, 64]}, r"teacher\.input_size is \(absent\) in the cache and \[64, 64\] now"),
    ],
)
@pytest.mark.parametrize("blocks", [2, None], ids=["partial", "whole"])
def test_a_stale_cache_is_refused_naming_the_field(
    tmp_path: Path, change: dict[str, object], message: str, blocks: int | None
) -> None:
    fill(tmp_path, shape(), blocks=blocks)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    writer = CacheWriter(tmp_path, "a", shape=shape(), provenance=provenance(**change), labels=LABELS)
    with pytest.raises(CacheMismatchError, match=message), writer:
        pass
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert after == before, "the old answers are untouched"


@pytest.mark.parametrize(
    ("value", "said"),
    [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (65520.0, "65520.0"), (-1e9, "-1e\\+09|-1000000000.0")],
)
def test_values_that_float16_cannot_hold_stop_the_writer(tmp_path: Path, value: float, said: str) -> None:
    with CacheWriter(tmp_path, "a", shape=shape(), provenance=provenance(), labels=LABELS) as writer:
        bad = answers(writer.blocks.missing(1, 2), 1, writer.shape.rows(2))
        bad["logits"][5, 3] = value
        with pytest.raises(CacheValueError, match=f"teacher a answers ({said}) in logits for sample 37 in slot 1"):
            writer.blocks.write(1, 2, bad)
        assert (1, 2) in writer.pending(), "nothing of the block is written"


def test_an_entropy_that_is_not_finite_stops_the_writer(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, "a", shape=shape(), provenance=provenance(), labels=LABELS) as writer:
        bad = answers(writer.blocks.missing(0, 0), 0, writer.shape.rows(0))
        bad["entropy"][0] = np.nan
        with pytest.raises(CacheValueError, match="in entropy for sample 0 in slot 0"):
            writer.blocks.write(0, 0, bad)


@pytest.mark.parametrize("name", ["logits", "entropy", "prediction", "view", "features/stage3"])
def test_a_flipped_bit_in_the_answers_is_found(tmp_path: Path, name: str) -> None:
    fill(tmp_path, shape(stage3=(4,)))
    with h5py.File(tmp_path / "a.h5") as plain:
        offset = plain[name].id.get_offset() + plain[name][0].nbytes + 8  # slot 1, in the first block
    flip(tmp_path / "a.h5", offset)
    file = TeacherFile(tmp_path / "a.h5")
    file.read(name, 0)
    with pytest.raises(CacheDamagedError, match=rf"{name} of teacher a, slot 1, rows 0 to 15 do not match"):
        file.read(name, 1)


def test_a_flipped_bit_in_a_ledger_is_found(tmp_path: Path) -> None:
    fill(tmp_path, shape())
    with h5py.File(tmp_path / "a.h5") as plain:
        offset = plain["ledger/entropy"].id.get_offset()
    flip(tmp_path / "a.h5", offset)
    with pytest.raises(CacheDamagedError, match="entropy of teacher a, slot 0, rows 0 to 15"):
        TeacherFile(tmp_path / "a.h5").read("entropy", 0)


def test_a_block_in_anothers_place_is_found(tmp_path: Path) -> None:
    """Equal bytes, equal checksum of the bytes, wrong place."""
    fill(tmp_path, shape())
    with h5py.File(tmp_path / "a.h5", "r+", locking=False) as plain:
        plain["logits"][2] = plain["logits"][1]
        plain["ledger/logits"][2] = plain["ledger/logits"][1]
    with pytest.raises(CacheDamagedError, match="logits of teacher a, slot 2"):
        TeacherFile(tmp_path / "a.h5").read("logits", 2)


def test_torn_blocks_are_redone_on_resume(tmp_path: Path) -> None:
    """A ledger entry that reached the disk before its data: after a power cut, not a kill."""
    fill(tmp_path, shape(), blocks=5)
    with h5py.File(tmp_path / "a.h5.partial", locking=False) as plain:
        offset = plain["logits"].id.get_offset()
    flip(tmp_path / "a.h5.partial", offset + 3)
    assert fill(tmp_path, shape()) == 3 * 4 - 5 + 1
    check_everything(tmp_path, views=3)


def test_a_changed_label_or_provenance_is_found(tmp_path: Path) -> None:
    for name in ("label", "provenance"):
        fill(tmp_path / name, shape())
        with h5py.File(tmp_path / name / "a.h5") as plain:
            offset = plain[name].id.get_offset()
        flip(tmp_path / name / "a.h5", offset + 8)
        with pytest.raises(CacheDamagedError, match="do not match their digest"):
            TeacherFile(tmp_path / name / "a.h5")


@pytest.mark.parametrize("keep", [0, 10, 4000, 5000, 20000, -1, -100])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    """Also where the cut is in the last ledger, which no digest covers; below 0, counted from the end."""
    fill(tmp_path, shape())
    os.truncate(tmp_path / "a.h5", keep if keep >= 0 else (tmp_path / "a.h5").stat().st_size + keep)
    with pytest.raises(CacheDamagedError):
        open_cache(tmp_path)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as foreign:
        foreign["logits"] = np.zeros((3, 50, 7), np.float16)
    with pytest.raises(CacheDamagedError, match="is not a cache file of demkd"):
        open_cache(tmp_path)


def test_another_format_version_is_refused_with_both(tmp_path: Path) -> None:
    fill(tmp_path, shape())
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(data.replace(b"format 3\n", b"format 9\n", 1))
    with pytest.raises(CacheDamagedError, match="has format 9, and this version of demkd reads format 3"):
        open_cache(tmp_path)


def test_a_second_writer_is_refused_with_the_owner_and_touches_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from demkd.cache import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    fill(tmp_path, shape(), blocks=3)
    before = (tmp_path / "a.h5.partial").read_bytes()
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a.h5")],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(CacheBusyError, match=rf"is being written by process {owner.pid} on \S+: wait for it"):
            fill(tmp_path, shape())
        assert (tmp_path / "a.h5.partial").read_bytes() == before
    finally:
        owner.kill()
        owner.communicate()
    assert fill(tmp_path, shape()) == 9, "after the owner's death the next one simply goes on"


def test_a_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), exclusive(tmp_path / "x"):
        raise RuntimeError
    with exclusive(tmp_path / "x"):
        assert (tmp_path / "x.lock").exists()


def test_a_lock_is_free_again_though_a_process_that_was_forked_meanwhile_lives_on(tmp_path: Path) -> None:
    """As those that decode pictures, which have the lock's descriptor too."""
    code = (
        "import os, sys, time; from pathlib import Path; from demkd.cache import exclusive\n"
        "path = Path(sys.argv[1])\n"
        "with exclusive(path):\n"
        "    child = os.fork()\n"
        "    if not child: time.sleep(60)\n"
        "try:\n"
        "    with exclusive(path): print('again')\n"
        "finally: os.kill(child, 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.stdout == "again\n", done.stderr


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_readers_work_in_other_processes(tmp_path: Path, method: str) -> None:
    fill(tmp_path, shape())
    file = TeacherFile(tmp_path / "a.h5")
    assert len(pickle.dumps(file)) < 1000, "the path travels, not the map"
    with multiprocessing.get_context(method).Pool(2) as pool:
        by_slot = pool.starmap(TeacherFile.read, [(file, "logits", 1)] * 4)
    for found in by_slot:
        assert np.array_equal(found, file.read("logits", 1))


def test_teachers_are_combined_in_the_order_asked_for(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        fill(tmp_path, shape(views=3 + number), teacher=name, number=number)
    cache = open_cache(tmp_path)
    assert (cache.names, cache.num_views, cache.samples, cache.classes) == (("a", "b", "c"), 3, SAMPLES, CLASSES)
    chosen = open_cache(tmp_path, ["c", "a"])
    found, logits = chosen.read_slot(2), chosen.logits(2, slice(None), temperature=1.0)
    assert np.array_equal(logits[0], answers(["logits"], 2, ALL, teacher=2)["logits"])
    assert np.array_equal(found.entropy[1], answers(["entropy"], 2, ALL)["entropy"])
    assert np.array_equal(found.view, answers(["view"], 2, ALL)["view"])


def test_teachers_who_saw_something_else_are_not_combined(tmp_path: Path) -> None:
    fill(tmp_path, shape())
    fill(tmp_path, shape(), teacher="b", origin=provenance(views__seed=4))
    with pytest.raises(CacheMismatchError, match=r"views\.seed is 0 in the cache and 4 now"):
        open_cache(tmp_path)
    assert open_cache(tmp_path, ["b"]).names == ("b",)


def test_weights_are_those_of_exactly_these_answers(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        fill(tmp_path, shape(), teacher=name, number=number)
    cache = open_cache(tmp_path)
    assert cache.teacher_weights is None
    values = np.random.default_rng(0).random((2, 3, SAMPLES), np.float32)
    write_weights(tmp_path, cache.teachers, values, weighting="drawn")
    weights = open_cache(tmp_path).read_slot(1).teacher_weights
    assert weights is not None
    assert np.array_equal(weights, values[:, 1])
    turned = open_cache(tmp_path, ["b", "a"]).read_slot(1).teacher_weights
    assert turned is not None
    assert np.array_equal(turned, values[::-1, 1])
    assert open_cache(tmp_path, ["a"]).teacher_weights is None, "weights of two teachers are not those of one"
    (tmp_path / "b.h5").unlink()
    fill(tmp_path, shape(), teacher="b", number=5)
    with pytest.raises(
        CacheMismatchError, match="computed from other answers of teacher b: run `cache_teachers` again"
    ):
        open_cache(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, shape())
    write_weights(tmp_path, open_cache(tmp_path).teachers, np.ones((1, 3, SAMPLES), np.float32), weighting="one")
    flip(tmp_path / "weights.h5", 9000)
    with pytest.raises(CacheDamagedError, match=r"weights\.h5 do not match their digest"):
        open_cache(tmp_path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CacheMissingError, match="there is no cache in"):
        open_cache(tmp_path)
    fill(tmp_path, shape())
    with pytest.raises(CacheMissingError, match=r"there is no teacher 'b' in .*; it has a"):
        open_cache(tmp_path, ["b"])
    with pytest.raises(CacheMissingError, match="has no features/stage3; it has logits, entropy, prediction, view"):
        TeacherFile(tmp_path / "a.h5").read("features/stage3", 0)
    with pytest.raises(CacheIncompleteError, match=r"slot 3 is asked for, and .* has slots 0 to 2"):
        open_cache(tmp_path).read_slot(3)


assert SAMPLES % BLOCK_ROWS, "the last block shall be a short one"


def test_a_file_is_written_where_the_system_lacks_linux_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    for name in ("fdatasync", "posix_fallocate"):
        monkeypatch.delattr(os, name, raising=False)
    fill(tmp_path, shape())
    assert open_cache(tmp_path).samples == SAMPLES
