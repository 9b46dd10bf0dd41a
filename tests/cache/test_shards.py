"""A teacher in shards has the same rows, digests and weights as in one file."""

import multiprocessing
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demkd.cache import (
    CacheDamagedError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheWriter,
    Shard,
    ShardFile,
    TeacherCache,
    exclusive,
    open_cache,
)
from demkd.cache.disk import lock_owner
from demkd.cache.shards import all_shards, list_shards, parse_name, partial_file, shard_file
from demkd.cache.verify import DAMAGED, UNFINISHED, verify_cache
from demkd.cache.writer import plan_teacher
from tests.cache.counting import (
    ALL,
    LABELS,
    SAMPLES,
    file_of,
    fill,
    fill_shards,
    flip,
    place,
    provenance,
    shape,
    values,
)

FULL = shape(stage3=(4,), pooled=(2, 3, 3))


@pytest.fixture(params=[2, 3, 4])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[TeacherCache, TeacherCache]:
    """The same teacher in one file, and in shards."""
    fill(tmp_path / "one", FULL)
    fill_shards(tmp_path / "shards", FULL, count=request.param)
    return open_cache(tmp_path / "one").teachers[0], open_cache(tmp_path / "shards").teachers[0]


@pytest.mark.parametrize("blocks", [1, 2, 5, 16, 17, 1251])
def test_shards_cover_every_sample_once(blocks: int) -> None:
    for count in {1, min(2, blocks), min(7, blocks), blocks}:
        samples = [shard.samples(blocks * 4 - 1, 4) for shard in all_shards(count)]
        assert [sample for some in samples for sample in some] == list(range(blocks * 4 - 1))
        sizes = {-(-len(some) // 4) for some in samples}
        assert max(sizes) - min(sizes) <= 1


def test_names_of_files_say_which_shard() -> None:
    path = shard_file(Path("cache"), "a.b-c", Shard(4, 16))
    assert path.name == "a.b-c.00004-of-00016.h5"
    assert parse_name(path.name) == parse_name(partial_file(path).name) == ("a.b-c", Shard(4, 16))
    for name in ("a.h5", "a.00000-of-00003.h5", "a.00004-of-00003.h5", "a.1-of-2.h5", "weights.h5"):
        assert parse_name(name) is None, name
    assert list_shards([1, 2, 7], 8) == "shards 1, 2, 7 of 8"
    assert list_shards([5], 8) == "shard 5 of 8"


def test_shards_hold_the_rows_of_one_file(both: tuple[TeacherCache, TeacherCache]) -> None:
    one, other = both
    assert (other.shape, other.provenance.fingerprint()) == (one.shape, one.provenance.fingerprint())
    assert np.array_equal(other.labels, LABELS)
    assert other.content_sha256(2) == one.content_sha256(2)
    for view in range(3):
        for name, expected in values(one.shape.data_sets(), view, ALL, features=one.shape).items():
            assert np.array_equal(other.read(name, view), expected), (name, view)
    crcs = [np.concatenate([file.block_crc("logits") for file in teacher.files], axis=1) for teacher in both]
    assert np.array_equal(*crcs)


def test_rows_are_gathered_across_files(both: tuple[TeacherCache, TeacherCache]) -> None:
    one, other = both
    shuffled = np.random.default_rng(0).permutation(SAMPLES)
    for rows in (shuffled, shuffled[:7], np.array([49, 0, 0, 16]), slice(10, 40), slice(None), np.array([3])):
        for name in ("logits", "features/pooled", "params"):
            assert np.array_equal(other.rows(name, 1)[rows], np.array(one.read(name, 1))[rows]), name
        assert np.array_equal(other.logits(2, rows, temperature=1.0), one.logits(2, rows, temperature=1.0))
    for index in (0, 15, 16, 31, 32, 49):
        assert np.array_equal(other.read_one("params", 1, index), [index * 3 + 1, index + 7])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize(("method", "count"), [("fork", 3), ("spawn", 1)])
def test_teachers_are_read_in_other_processes(tmp_path: Path, method: str, count: int) -> None:
    fill_shards(tmp_path, shape(), count=count)
    teacher = open_cache(tmp_path).teachers[0]
    assert len(pickle.dumps(teacher)) < 3000, "paths travel, not maps"
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(TeacherCache.read, [(teacher, "logits", 1)] * 3)
    assert all(np.array_equal(logits, teacher.read("logits", 1)) for logits in found)


def test_a_missing_shard_and_a_damaged_one_are_named(tmp_path: Path) -> None:
    fill_shards(tmp_path, shape(), count=4)
    fill(tmp_path, shape(), teacher="b", number=1)
    path = tmp_path / file_of(number=4, count=4)
    flip(path, place(path, "entropy"))
    texts = [(file.verdict, fault.text) for file in verify_cache(tmp_path).files for fault in file.faults]
    assert texts == [(DAMAGED, "entropy, view 0, rows 48 to 49 do not match their checksum")]
    flip(path, place(path, "entropy"))
    (tmp_path / file_of(number=3, count=4)).unlink()
    with pytest.raises(CacheIncompleteError, match="has 3 of 4 shards; shard 3 of 4 is missing: run the same"):
        open_cache(tmp_path)
    assert open_cache(tmp_path, ["b"]).names == ("b",)
    found = verify_cache(tmp_path)
    assert not found.sound
    assert [(file.verdict, file.shard) for file in found.files if file.faults] == [(UNFINISHED, "shard 3 of 4")]
    assert found.files[3].faults[0].text == "teacher a lacks shard 3 of 4"


def test_unfinished_shards_are_named_with_their_writer(tmp_path: Path) -> None:
    fill(tmp_path, shape(), shard=Shard(1, 4))
    fill(tmp_path, shape(), shard=Shard(4, 4), blocks=1)
    path = shard_file(tmp_path, "a", Shard(2, 4))
    with exclusive(path):
        assert str(lock_owner(path)).startswith("process ")
        message = (
            r"has 1 of 4 shards; shard 2 of 4 is being written by process \d+ on \S+; shard 3 of 4 is missing; "
            r"shard 4 of 4 is 33% done: run the same `cache_teachers` again"
        )
        with pytest.raises(CacheIncompleteError, match=message):
            open_cache(tmp_path)
    assert lock_owner(path) is None


def test_a_shard_of_another_cache_is_refused(tmp_path: Path) -> None:
    fill_shards(tmp_path / "mine", shape(), count=2)
    fill_shards(tmp_path / "other", shape(), count=2, origin=provenance(teacher__state_sha256="00" * 32))
    shutil.copy(tmp_path / "other" / file_of(number=2, count=2), tmp_path / "mine")
    with pytest.raises(CacheMismatchError, match=r"a\.00001-of-00002\.h5 does not fit .*a\.00002-of.*state_sha256"):
        open_cache(tmp_path / "mine")
    found = verify_cache(tmp_path / "mine")
    assert {file.verdict for file in found.files} == {DAMAGED}
    assert "state_sha256" in found.files[0].faults[0].text


def test_shards_of_two_counts_are_refused(tmp_path: Path) -> None:
    fill_shards(tmp_path, shape(), count=2)
    with pytest.raises(CacheMismatchError, match="is in 2 files by now, and not in 1"):
        fill(tmp_path, shape())
    fill_shards(tmp_path / "three", shape(), count=3)
    shutil.copy(tmp_path / "three" / file_of(number=3, count=3), tmp_path)
    with pytest.raises(CacheMismatchError, match="has shards of 2 and of 3, which do not fit together"):
        open_cache(tmp_path)
    assert not verify_cache(tmp_path).sound


@pytest.mark.parametrize("named", [(2, 2), (1, 1), (1, 4)])
def test_a_shard_under_another_name_is_refused(tmp_path: Path, named: tuple[int, int]) -> None:
    fill(tmp_path, shape(), shard=Shard(1, 2))
    other = tmp_path / file_of(number=named[0], count=named[1])
    (tmp_path / file_of(number=1, count=2)).rename(other)
    with pytest.raises(CacheDamagedError, match=f"has the name of {Shard(*named)}, and holds shard 1 of 2: give it"):
        ShardFile(other)


def test_blocks_of_another_shard_fail_their_checksums(tmp_path: Path) -> None:
    """Equal layout, other rows: a checksum is of the block's number in the whole."""
    fill_shards(tmp_path, shape(), count=4)
    files = [ShardFile(shard_file(tmp_path, "a", shard)) for shard in all_shards(2 * 2)[:2]]
    extents = [file.header.contents for file in files]
    data = [file.path.read_bytes() for file in files]
    spoilt = bytearray(data[1])
    for name in ("logits", "block_crc/logits"):
        source, target = extents[0][name], extents[1][name]
        spoilt[target.offset : target.end] = data[0][source.offset : source.end]
    files[1].path.write_bytes(spoilt)
    with pytest.raises(CacheDamagedError, match="logits of teacher a, view 0, rows 16 to 31 do not match"):
        open_cache(tmp_path).teachers[0].check("logits", 0)


def test_labels_must_be_those_of_the_data(tmp_path: Path) -> None:
    """The header covers a file's own labels; the provenance has the digest of all."""
    fill(tmp_path, shape(), shard=Shard(1, 2))
    fill(tmp_path, shape(), shard=Shard(2, 2), labels=LABELS[::-1].copy())
    with pytest.raises(CacheDamagedError, match=r"the labels in .* are not those of its provenance"):
        open_cache(tmp_path)


def test_a_shard_of_something_else_is_not_written_beside_others(tmp_path: Path) -> None:
    """At once where others are there; before it is finished where they came meanwhile."""
    other = provenance(data__pixels_sha256="00" * 32)
    writer = CacheWriter(tmp_path, "a", shape=shape(), provenance=other, labels=LABELS, shard=Shard(2, 2))
    with writer:
        for view, block in writer.pending():
            samples = writer.shape.samples_of(block)
            rows = slice(samples.start, samples.stop)
            writer.write(view, block, values(writer.missing(view, block), view, rows))
        fill(tmp_path / "hidden", shape(), shard=Shard(1, 2))
        shutil.copy(tmp_path / "hidden" / file_of(number=1, count=2), tmp_path)
        with pytest.raises(
            CacheMismatchError, match=r"a\.00001-of-00002\.h5 was made from something else: data\.pixels"
        ):
            writer.finish()
    assert not (tmp_path / file_of(number=2, count=2)).exists()
    with pytest.raises(CacheMismatchError, match="was made from something else"):
        fill(tmp_path, shape(), shard=Shard(2, 2))


def test_shards_grow_one_by_one(tmp_path: Path) -> None:
    """Until all have grown, the teacher is what all have."""
    grown = replace(FULL, num_views=5)
    fill_shards(tmp_path, shape(), count=2)
    fill(tmp_path, grown, shard=Shard(2, 2), blocks=2)
    assert open_cache(tmp_path).num_views == 3
    fill(tmp_path, grown, shard=Shard(2, 2))
    teacher = open_cache(tmp_path).teachers[0]
    assert (teacher.shape.num_views, dict(teacher.shape.features)) == (3, {})
    fill(tmp_path, grown, shard=Shard(1, 2))
    assert open_cache(tmp_path).teachers[0].shape == grown
    fill_shards(tmp_path / "new", grown, count=2)
    for path in (tmp_path / "new").glob("*.h5"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_plan_counts_missing_and_damaged_blocks(tmp_path: Path) -> None:
    shards = all_shards(3)

    def plan(teacher: str = "a", count: int = 3) -> tuple[int, int, int]:
        found = plan_teacher(tmp_path, teacher, shape=FULL, provenance=provenance(), shards=shards[:count])
        return found.pending, found.new_bytes, found.file_bytes

    pending, _, most = plan()
    assert pending == 3 * SAMPLES
    fill(tmp_path, FULL, shard=shards[1])
    fill(tmp_path, FULL, shard=shards[2], blocks=1)
    _, size_of_first, _ = plan("x", 1)
    assert plan()[:2] == (3 * 16 + 3 * 18 - 16, size_of_first)
    fill_shards(tmp_path, FULL, count=3)
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.h5"))
    assert plan() == (0, 0, on_disk)
    assert on_disk <= most
    path = tmp_path / file_of(number=1, count=3)
    flip(path, place(path, "logits", 2))
    assert plan()[:2] == (16, size_of_first), "a damaged block, and room for a copy of its file"
    assert plan_teacher(tmp_path, "a", shape=FULL, provenance=provenance(), shards=shards, checked=False).pending == 0


@pytest.mark.parametrize("samples", [0, -1, 49, 10**400])
@pytest.mark.parametrize("shard", [Shard(), Shard(2, 2)], ids=str)
def test_absurd_numbers_of_samples_are_refused(tmp_path: Path, samples: int, shard: Shard) -> None:
    fill(tmp_path, shape(), origin=provenance(data__samples=samples), shard=shard, blocks=0)
    with pytest.raises(CacheDamagedError):
        ShardFile(partial_file(shard_file(tmp_path, "a", shard)))
