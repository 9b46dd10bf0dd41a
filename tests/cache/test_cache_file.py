"""The promises of a cache file: finished or partial, never torn, never stale, never zeros for logits."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
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
    CacheShape,
    CacheValueError,
    CacheWriter,
    ShardFile,
    TeacherCache,
    exclusive,
    open_cache,
    write_weights,
)
from demkd.cache.format import decode_logits, encode_logits, open_file
from demkd.cache.verify import UNFINISHED, verify_cache
from tests.cache.counting import (
    ALL,
    BLOCK_ROWS,
    CLASSES,
    LABELS,
    SAMPLES,
    file_of,
    fill,
    flip,
    place,
    provenance,
    shape,
    values,
)

A = file_of("a")
assert SAMPLES % BLOCK_ROWS, "the last block shall be a short one"


def check_everything(folder: Path, *, views: int, teacher: str = "a", number: int = 0) -> None:
    cached = TeacherCache.open(folder, teacher)
    assert cached.shape.num_views == views
    for view in range(views):
        truth = values(cached.shape.data_sets(), view, ALL, teacher=number, features=cached.shape)
        for name, expected in truth.items():
            assert np.array_equal(cached.read(name, view), expected), (name, view)


def writer_of(folder: Path, wanted: CacheShape | None = None, **changes: object) -> CacheWriter:
    return CacheWriter(folder, "a", shape=wanted or shape(), provenance=provenance(**changes), labels=LABELS)


def test_what_is_written_is_read_by_us_and_by_any_hdf5_tool(tmp_path: Path) -> None:
    fill(tmp_path, shape(stage3=(4,), pooled=(2, 3, 3)))
    check_everything(tmp_path, views=3)
    assert np.array_equal(open_cache(tmp_path).labels, LABELS)
    cached = TeacherCache.open(tmp_path, "a")
    with h5py.File(tmp_path / A) as plain:
        for name in cached.shape.data_sets():
            assert plain[name].chunks is None
            assert all(np.array_equal(plain[name][view], cached.read(name, view)) for view in range(3))
        assert b"resnet8" in plain["provenance"][()]
        assert np.array_equal(plain["label"][:], LABELS)


def test_an_unfinished_file_has_another_name_and_no_zeros_for_logits(tmp_path: Path) -> None:
    fill(tmp_path, shape(), blocks=5)
    assert not (tmp_path / A).exists()
    partial = ShardFile(tmp_path / f"{A}.partial")
    partial.check("logits", 2, [0])
    assert np.array_equal(partial.block("logits", 2, 0), values(["logits"], 2, slice(0, 16))["logits"])
    with pytest.raises(CacheIncompleteError, match="lacks logits of teacher a, view 2, rows 16 to 31"):
        partial.check("logits", 2)
    with pytest.raises(CacheIncompleteError, match=r"teacher a in .* is 42% done: run the same `cache_teachers` again"):
        open_cache(tmp_path)
    with (
        writer_of(tmp_path) as writer,
        pytest.raises(CacheIncompleteError, match="lacks logits of teacher a, view 0, rows 32"),
    ):
        writer.finish()


def test_a_reader_never_mixes_a_file_with_one_that_replaces_it_meanwhile(tmp_path: Path) -> None:
    for number, views in enumerate((3, 4)):
        fill(tmp_path, shape(views=views))
        shutil.copy(tmp_path / A, tmp_path / f"next{number}")
    swap = [sys.executable, "-c", _SWAP, str(tmp_path / A), str(tmp_path / "next")]
    swapping, seen, opened = subprocess.Popen(swap, stdin=subprocess.PIPE), set(), 0
    try:
        while len(seen) < 2 or opened < 300:
            seen.add(ShardFile(tmp_path / A).shape.num_views)
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


@pytest.mark.parametrize("encoding", ["float16", "uint8"])
def test_a_resumed_file_has_the_bytes_of_an_uninterrupted_one(tmp_path: Path, encoding: str) -> None:
    wanted = shape(stage3=(4,), encoding=encoding)
    fill(tmp_path / "whole", wanted)
    for blocks in (1, 3, 2, None):
        fill(tmp_path / "parts", wanted, blocks=blocks)
    assert (tmp_path / "parts" / A).read_bytes() == (tmp_path / "whole" / A).read_bytes()


def test_rows_of_a_block_that_is_begun_are_kept_if_they_are_sound(tmp_path: Path) -> None:
    """Five rows at a time, each by another writer; once with a damaged row, and once behind a lost entry."""
    wanted = shape(stage3=(4,))
    fill(tmp_path / "whole", wanted)
    partial, kept = tmp_path / f"{A}.partial", []
    while not kept or kept[-1] < BLOCK_ROWS:
        with writer_of(tmp_path, wanted) as writer:
            kept.append(writer.rows_done(1, 0))
            rows = slice(kept[-1] // 5 * 5, min(kept[-1] + 5, BLOCK_ROWS))
            writer.write(1, 0, values(writer.missing(1, 0), 1, rows, features=wanted), first=rows.start)
        if len(kept) == 2:  # ten rows are there, of which one is lost on the disk
            flip(partial, place(partial, "logits", 1, 7))
        if len(kept) == 5:  # a kill between the data sets: features have fewer rows than the others
            flip(partial, place(partial, "block_crc/features/stage3", 1))
        assert verify_cache(tmp_path).files[0].verdict == UNFINISHED
    assert kept == [0, 5, 0, 5, 10, 0, 5, 10, 15, 16]
    fill(tmp_path, wanted)
    assert (tmp_path / A).read_bytes() == (tmp_path / "whole" / A).read_bytes()


def test_growing_computes_only_what_is_new_beside_the_old_file(tmp_path: Path) -> None:
    """More views, then features, then both: 4 blocks a view."""
    fill(tmp_path, shape())
    before = (tmp_path / A).stat().st_mtime_ns
    assert fill(tmp_path, shape()) == 0
    assert fill(tmp_path, shape(views=2)) == 0, "fewer views are the first ones"
    assert (tmp_path / A).stat().st_mtime_ns == before
    assert fill(tmp_path, shape(views=5), blocks=3) == 2 * 4
    check_everything(tmp_path, views=3)
    assert fill(tmp_path, shape(views=5)) == 2 * 4 - 3
    check_everything(tmp_path, views=5)
    with writer_of(tmp_path, shape(stage3=(4,))) as writer:
        assert len(writer.pending()) == 5 * 4
        assert writer.missing(0, 0) == ["features/stage3"], "logits are not computed again"
    fill(tmp_path, shape(views=6, stage3=(4,)))
    check_everything(tmp_path, views=6)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher__state_sha256": "00" * 32}, r"teacher\.state_sha256 is (ab){6} in the cache and 0{12} now"),
        ({"data__pixels_sha256": "00" * 32}, r"data\.pixels_sha256 is cdcd.* in the cache and 0000.* now"),
        ({"data__class_names": list("abcdefh")}, r"data\.class_names is .*\"g\"\] in the cache and .*\"h\"\] now"),
        ({"views__padding": 3}, r"views\.padding is 4 in the cache and 3 now"),
        ({"views__seed": 1}, r"views\.seed is 0 in the cache and 1 now"),
        ({"teacher__mean": [0.5, 0.5, 0.4]}, r"teacher\.mean is \[0\.5, 0\.5, 0\.5\] in the cache and \[0\.5, 0\.5, 0"),
        ({"precision": "bfloat16"}, r"precision is float32 in the cache and bfloat16 now"),
        ({"teacher__input_size": [64, 64]}, r"teacher\.input_size is \(absent\) in the cache and \[64, 64\] now"),
        ({"logits": {"encoding": "uint8"}}, r"logits\.encoding is \(absent\) in the cache and uint8 now"),
        (
            {"views__seed": 1, "teacher__mean": [0.5, 0.5, 0.4], "data__pixels_sha256": "00" * 32},
            r"views\.seed is 0 .* and 1 now; teacher\.mean is .*; also different: data\.pixels_sha256\.",
        ),
    ],
)
@pytest.mark.parametrize("blocks", [2, None], ids=["partial", "finished"])
def test_a_stale_cache_is_refused(tmp_path: Path, change: dict[str, object], message: str, blocks: int | None) -> None:
    fill(tmp_path, shape(), blocks=blocks)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(CacheMismatchError, match=message), writer_of(tmp_path, **change):
        pass
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before, "the old file is untouched"


@pytest.mark.parametrize("encoding", ["float16", "uint8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 65520.0, -1e9])
def test_values_that_a_file_cannot_hold_stop_the_writer(tmp_path: Path, value: float, encoding: str) -> None:
    with writer_of(tmp_path, shape(encoding=encoding)) as writer:
        bad = values(writer.missing(1, 2), 1, writer.shape.rows(2))
        bad["logits"][5, 3] = value
        if encoding == "uint8" and np.isfinite(value):
            writer.write(1, 2, bad)
            return
        with pytest.raises(CacheValueError, match=r"teacher a has \S+ in logits for sample 37 in view 1, which float"):
            writer.write(1, 2, bad)
        assert (1, 2) in writer.pending(), "nothing of the block is written"
        bad = values(writer.missing(0, 0), 0, writer.shape.rows(0))
        bad["entropy"][0] = np.nan
        with pytest.raises(CacheValueError, match="in entropy for sample 0 in view 0"):
            writer.write(0, 0, bad)


@pytest.mark.parametrize(
    "name", ["logits", "entropy", "prediction", "params", "features/stage3", "block_crc/entropy", "label", "provenance"]
)
def test_a_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    fill(tmp_path, shape(stage3=(4,)))
    flip(tmp_path / A, place(tmp_path / A, name, 1) + 1)
    if name in ("label", "provenance"):  # in the digest
        with pytest.raises(CacheDamagedError, match="do not match their digest"):
            ShardFile(tmp_path / A)
        return
    cached, name = TeacherCache.open(tmp_path, "a"), name.removeprefix("block_crc/")
    cached.read(name, 0)
    with pytest.raises(CacheDamagedError, match=rf"{name} of teacher a, view 1, rows 0 to 15 do not match"):
        cached.read(name, 1)


def test_no_byte_of_the_header_can_change_unseen(tmp_path: Path) -> None:
    """Every byte in front of HDF5's, the zeros behind the contents too."""
    fill(tmp_path, shape())
    pristine = (tmp_path / A).read_bytes()
    end = pristine.index(b"\x89HDF")
    assert pristine[end - 1] == 0
    with (tmp_path / A).open("r+b", buffering=0) as file:
        for position, byte in enumerate(pristine[:end]):
            os.pwrite(file.fileno(), bytes([byte ^ 1 << position % 8]), position)
            with pytest.raises(CacheDamagedError):
                open_file(tmp_path / A)
            os.pwrite(file.fileno(), bytes([byte]), position)
    open_file(tmp_path / A)


def test_a_block_in_anothers_place_is_found(tmp_path: Path) -> None:
    """Equal bytes, equal checksum of the bytes, wrong place."""
    fill(tmp_path, shape())
    with h5py.File(tmp_path / A, "r+", locking=False) as plain:
        plain["logits"][2] = plain["logits"][1]
        plain["block_crc/logits"][2] = plain["block_crc/logits"][1]
    with pytest.raises(CacheDamagedError, match="logits of teacher a, view 2"):
        TeacherCache.open(tmp_path, "a").read("logits", 2)


@pytest.mark.parametrize("blocks", [5, None], ids=["partial", "finished"])
def test_damaged_blocks_are_computed_again(tmp_path: Path, blocks: int | None) -> None:
    """In a partial file: checksums that reached the disk before the rows, after a power cut."""
    fill(tmp_path, shape(), blocks=blocks)
    path = tmp_path / (f"{A}.partial" if blocks else A)
    before = path.read_bytes()
    flip(path, place(path, "logits") + 3)
    assert fill(tmp_path, shape()) == 3 * 4 - (blocks or 12) + 1
    check_everything(tmp_path, views=3)
    assert blocks or (tmp_path / A).read_bytes() == before


@pytest.mark.parametrize("size", [0, 10, 4000, 5000, 20000, -1, -100])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    """Also where the cut is in the last checksums, which no digest covers; below 0, counted from the end."""
    fill(tmp_path, shape())
    os.truncate(tmp_path / A, size if size >= 0 else (tmp_path / A).stat().st_size + size)
    with pytest.raises(CacheDamagedError):
        open_cache(tmp_path)


def test_a_file_that_is_truncated_while_it_is_open_is_an_error_and_no_sigbus(tmp_path: Path) -> None:
    fill(tmp_path, shape())
    cache = open_cache(tmp_path)
    os.truncate(tmp_path / A, (tmp_path / A).stat().st_size - 4096)
    with pytest.raises(CacheDamagedError, match=r"a\.00001-of-00001\.h5 was truncated: remove it"):
        cache.read_view(0)


def test_another_format_or_program_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, shape())
    data = (tmp_path / A).read_bytes()
    (tmp_path / A).write_bytes(data.replace(b"format 4\n", b"format 5\n", 1))
    with pytest.raises(CacheDamagedError, match=r"has format 5, .* reads format 4: run `cache_teachers` again"):
        open_cache(tmp_path)
    with h5py.File(tmp_path / A, "w") as foreign:
        foreign["logits"] = np.zeros((3, 50, 7), np.float16)
    with pytest.raises(CacheDamagedError, match="is not a cache file of demkd"):
        open_cache(tmp_path)


def test_format_4_stays_byte_for_byte(tmp_path: Path) -> None:
    """Caches of earlier releases must open."""
    fill(tmp_path, shape(stage3=(4,)))
    header, arrays = open_file(tmp_path / A)
    front = b"demkd cache, format 4\n%s\n%d\n%s\n" % (header.sha256.encode(), len(header.text), header.text)
    assert (tmp_path / A).read_bytes().startswith(front)
    golden = hashlib.sha256(header.text)
    for array in arrays.values():
        golden.update(array.tobytes())
    assert golden.hexdigest() == "88ff4bb673ab02ee34edcbefe6257def325b2156ab2400bde810dcf5156ae839"


@pytest.mark.parametrize("name", ["a.h5", "a.00000-of-00002.h5", "a.h5.partial"])
def test_names_of_format_3_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"demkd cache, format 3\n")
    for use in (lambda: open_cache(tmp_path), lambda: fill(tmp_path, shape())):
        with pytest.raises(CacheDamagedError, match=r"is no file of a cache of format 4: .*run `cache_teachers` again"):
            use()


_HOLD = """
import os, sys, time
from pathlib import Path
from demkd.cache import exclusive
with exclusive(Path(sys.argv[1])):
    child = os.fork()  # as those that decode images, which have the lock's descriptor too
    if child == 0:
        time.sleep(60)
    print(child, flush=True)
    sys.stdin.readline()
print("released", flush=True)
time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock of teacher a, and has forked; a line of input releases the lock."""
    command = [sys.executable, "-c", _HOLD, str(tmp_path / A)]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    try:
        yield process
    finally:
        os.kill(child, 9)
        process.kill()
        process.communicate()


def test_a_second_writer_is_refused_and_touches_nothing(tmp_path: Path, owner: "subprocess.Popen[str]") -> None:
    with pytest.raises(CacheBusyError, match=rf"is being written by process {owner.pid} on \S+: wait for it"):
        fill(tmp_path, shape())
    assert [path.name for path in tmp_path.iterdir()] == [f"{A}.lock"]
    owner.stdin.write("\n")
    owner.stdin.flush()
    assert owner.stdout.readline() == "released\n"
    assert fill(tmp_path, shape()) == 12, "though the forked process lives on"
    with pytest.raises(RuntimeError), exclusive(tmp_path / A):
        raise RuntimeError
    assert fill(tmp_path, shape()) == 0, "a lock is free again after an error"


@pytest.mark.parametrize("kind", ["symlink", "pipe", "folder"])
def test_a_lock_that_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    lock, other = tmp_path / f"{A}.lock", tmp_path / "other"
    other.write_text("mine")
    {"symlink": lambda: lock.symlink_to(other), "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}[kind]()
    with pytest.raises(CacheDamagedError, match=r"\.lock is no regular file: remove it"):
        fill(tmp_path, shape())
    assert other.read_text() == "mine"


def test_a_file_is_written_where_the_system_lacks_linux_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    for name in ("fdatasync", "posix_fallocate"):
        monkeypatch.delattr(os, name, raising=False)
    fill(tmp_path, shape())
    check_everything(tmp_path, views=3)


def test_teachers_are_combined_in_the_given_order(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        fill(tmp_path, shape(views=3 + number), teacher=name, number=number)
    cache = open_cache(tmp_path)
    assert (cache.names, cache.num_views, cache.samples, cache.classes) == (("a", "b", "c"), 3, SAMPLES, CLASSES)
    chosen = open_cache(tmp_path, ["c", "a"])
    found, logits = chosen.read_view(2), chosen.logits(2, slice(None), temperature=1.0)
    assert np.array_equal(logits[0], values(["logits"], 2, ALL, teacher=2)["logits"])
    assert np.array_equal(found.entropy[1], values(["entropy"], 2, ALL)["entropy"])
    assert np.array_equal(found.params, values(["params"], 2, ALL)["params"])
    fill(tmp_path, shape(), teacher="d", origin=provenance(views__seed=4))
    with pytest.raises(CacheMismatchError, match=r"views\.seed is 0 in the cache and 4 now"):
        open_cache(tmp_path)
    assert open_cache(tmp_path, ["d"]).names == ("d",)


def test_weights_are_those_of_exactly_these_entropies(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        fill(tmp_path, shape(), teacher=name, number=number)
    cache = open_cache(tmp_path)
    assert cache.teacher_weights is None
    drawn = np.random.default_rng(0).random((2, 3, SAMPLES), np.float32)
    write_weights(tmp_path, cache.teachers, drawn, weighting="drawn")
    for names, expected in ((None, drawn), (["b", "a"], drawn[::-1])):
        weights = open_cache(tmp_path, names).read_view(1).teacher_weights
        assert np.array_equal(weights, expected[:, 1])
    assert open_cache(tmp_path, ["a"]).teacher_weights is None, "weights of two teachers are not those of one"
    (tmp_path / file_of("b")).unlink()
    fill(tmp_path, shape(), teacher="b", number=5)
    with pytest.raises(CacheMismatchError, match="computed from other entropies of teacher b: run `cache_teachers`"):
        open_cache(tmp_path)
    flip(tmp_path / "weights.h5", 9000)
    with pytest.raises(CacheDamagedError, match=r"weights\.h5 do not match their digest"):
        open_cache(tmp_path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CacheMissingError, match="there is no cache in"):
        open_cache(tmp_path)
    fill(tmp_path, shape())
    with pytest.raises(CacheMissingError, match=r"there is no teacher 'b' in .*; it has a"):
        open_cache(tmp_path, ["b"])
    with pytest.raises(CacheMissingError, match="has no features/stage3; it has logits, entropy, prediction, params"):
        TeacherCache.open(tmp_path, "a").read("features/stage3", 0)
    with pytest.raises(CacheIncompleteError, match=r"there is no view 3 in .*; it has 0 to 2"):
        open_cache(tmp_path).read_view(3)


@pytest.mark.parametrize("classes", [1, 2, 10, 100_000])
@pytest.mark.parametrize("scale", [1e-3, 10.0, 65504.0])
def test_eight_bit_logits_keep_the_largest_and_are_near(classes: int, scale: float) -> None:
    """Half a step of u = sqrt(max - z) at most; the maximum, and equal logits, exactly."""
    logits = (np.random.default_rng(0).uniform(-1, 1, (5, classes)) * scale).astype(np.float32)
    logits[4] = scale
    encoded = encode_logits(logits)
    assert encoded["logits"].dtype == np.uint8
    decoded = decode_logits(*encoded.values())
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded.max(1), logits.max(1))
    assert np.array_equal(decoded[4], logits[4])
    span = logits.max(1) - logits.min(1)
    half_step = np.sqrt(span)[:, None] / 510 * 1.001
    wrong = np.abs(np.sqrt(logits.max(1)[:, None] - logits) - np.sqrt(decoded.max(1)[:, None] - decoded))
    assert (wrong <= half_step + np.sqrt(scale) * 1e-3).all()
    kept = np.take_along_axis(decoded, logits.argmax(1)[:, None], 1)[:, 0]
    assert np.array_equal(kept, decoded.max(1)), "the prediction is among the largest"


def test_eight_bit_logits_in_a_cache_are_decoded(tmp_path: Path) -> None:
    fill(tmp_path, shape(encoding="uint8"), origin=provenance(logits={"encoding": "uint8"}))
    cache = open_cache(tmp_path)
    assert cache.teachers[0].shape.encoding == "uint8"
    cache.check_logits(1, temperatures=[4.0])
    (logits,) = cache.logits(1, slice(None), temperature=4.0)
    expected = values(["logits"], 1, ALL)["logits"]
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() <= (np.ptp(expected, axis=1) / 127).max()
    flip(tmp_path / A, place(tmp_path / A, "logit_scale", 1))
    with pytest.raises(CacheDamagedError, match="logit_scale of teacher a, view 1"):
        cache.check_logits(1, temperatures=[])
