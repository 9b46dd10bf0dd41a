"""A teacher in shards is the same teacher: the same rows, digests, weights, and merged the same bytes; or refused."""

import multiprocessing
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demkd.cache import (
    CacheBusyError,
    CacheDamagedError,
    CacheError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheMissingError,
    CacheWriter,
    Shard,
    TeacherCache,
    TeacherFile,
    exclusive,
    open_cache,
    write_weights,
)
from demkd.cache.integrity import DAMAGED, OUTDATED, SOUND, UNFINISHED, verify_cache
from demkd.cache.lock import owner
from demkd.cache.merging import merge_teacher
from demkd.cache.shards import all_shards, cache_file, numbers_in_words, partial_file, shard_count, split_name
from demkd.cache.space import plan_teacher
from tests.cache.counting import LABELS, SAMPLES, answers, fill, fill_shards, flip, provenance, shape

ALL = slice(0, SAMPLES)
FULL = shape(stage3=(4,), pooled=(2, 3, 3))


@pytest.fixture(params=[2, 3, 4])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The folders of the same teacher in one file, and in shards."""
    fill(tmp_path / "one", FULL)
    fill_shards(tmp_path / "shards", FULL, count=request.param)
    return tmp_path / "one", tmp_path / "shards"


@pytest.mark.parametrize("blocks", [1, 2, 5, 16, 17, 1251])
def test_shards_cover_every_block_once(blocks: int) -> None:
    for count in {1, min(2, blocks), min(7, blocks), blocks}:
        covered = [block for shard in all_shards(count) for block in shard.blocks(blocks)]
        assert covered == list(range(blocks))
        sizes = {len(shard.blocks(blocks)) for shard in all_shards(count)}
        assert max(sizes) - min(sizes) <= 1
        rows = [sample for shard in all_shards(count) for sample in shard.samples(blocks * 4 - 1, 4)]
        assert rows == list(range(blocks * 4 - 1))


def test_names_of_files_say_which_shard() -> None:
    shard = Shard(count=16, number=3)
    path = cache_file(Path("cache"), "a.b-c", shard)
    assert path.name == "a.b-c.00003-of-00016.h5"
    assert split_name(path.name) == ("a.b-c", shard)
    assert split_name(partial_file(Path(), "a", shard).name) == ("a", shard)
    for name in ("a.h5", "a.00003-of-00003.h5", "a.00000-of-00001.h5", "a.0-of-2.h5"):
        assert split_name(name)[1] == Shard(), name
    assert numbers_in_words([7, 0, 1, 2]) == "shards 0-2, 7"
    assert numbers_in_words([5]) == "shard 5"


def test_shards_hold_the_answers_of_one_file(both: tuple[Path, Path]) -> None:
    one, other = (open_cache(folder).teachers[0] for folder in both)
    assert other.shape == one.shape
    assert other.provenance == one.provenance
    assert other.provenance.fingerprint() == one.provenance.fingerprint()
    assert np.array_equal(other.labels, LABELS)
    assert other.content_sha256(2) == one.content_sha256(2)
    for slot in range(3):
        for name, expected in answers(one.shape.answers(), slot, ALL, features=one.shape).items():
            assert np.array_equal(other.read(name, slot), expected), (name, slot)
    ledgers = [np.concatenate([file.ledger("logits") for file in teacher.files], axis=1) for teacher in (one, other)]
    assert np.array_equal(*ledgers)


def test_rows_are_gathered_across_files(both: tuple[Path, Path]) -> None:
    one, other = (open_cache(folder).teachers[0] for folder in both)
    shuffled = np.random.default_rng(0).permutation(SAMPLES)
    for rows in (shuffled, shuffled[:7], np.array([49, 0, 0, 16]), slice(10, 40), slice(None), np.array([3])):
        for name in ("logits", "features/pooled", "view"):
            assert np.array_equal(other.rows(name, 1)[rows], np.array(one.read(name, 1))[rows]), name
        assert np.array_equal(other.logits(2, rows, temperature=1.0), one.logits(2, rows, temperature=1.0))
    for index in (0, 15, 16, 31, 32, 49):
        assert np.array_equal(other.answer("view", 1, index), [index * 3 + 1, index + 7])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_shards_are_read_in_other_processes(tmp_path: Path, method: str) -> None:
    fill_shards(tmp_path, shape(), count=3)
    teacher = open_cache(tmp_path).teachers[0]
    assert len(pickle.dumps(teacher)) < 3000, "paths travel, not maps"
    with multiprocessing.get_context(method).Pool(2) as pool:
        by_slot = pool.starmap(TeacherCache.read, [(teacher, "logits", 1)] * 3)
    for found in by_slot:
        assert np.array_equal(found, teacher.read("logits", 1))


def test_merged_shards_are_the_bytes_of_one_process(both: tuple[Path, Path]) -> None:
    one, folder = both
    write_weights(folder, open_cache(folder).teachers, np.ones((1, 3, SAMPLES), np.float32), weighting="one")
    count = len(open_cache(folder).teachers[0].files)
    assert merge_teacher(folder, "a") == count
    assert (folder / "a.h5").read_bytes() == (one / "a.h5").read_bytes()
    left = {path.name for path in folder.iterdir() if path.suffix != ".lock"}
    assert left == {"a.h5", "weights.h5"}
    assert open_cache(folder).teacher_weights is not None, "the weights of shards are those of the whole"
    assert merge_teacher(folder, "a") == 0


def test_one_file_beside_shards_is_the_teacher(tmp_path: Path) -> None:
    """As after a merge that was killed before it removed them: the next one does."""
    fill_shards(tmp_path / "shards", shape(), count=2)
    fill(tmp_path, shape())
    for path in (tmp_path / "shards").glob("*.h5"):
        shutil.copy(path, tmp_path)
    flip(tmp_path / "a.00000-of-00002.h5", 5000)
    assert len(open_cache(tmp_path).teachers[0].files) == 1
    verdicts = {file.path.name: file.verdict for file in verify_cache(tmp_path).files}
    assert verdicts == {"a.h5": SOUND, "a.00000-of-00002.h5": OUTDATED, "a.00001-of-00002.h5": OUTDATED}
    assert fill(tmp_path, shape()) == 0
    assert merge_teacher(tmp_path, "a") == 2
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["a.h5"]


def test_a_merge_needs_shards_that_are_whole_sound_and_alike(tmp_path: Path) -> None:
    fill(tmp_path, shape(), shard=Shard(count=2))
    with pytest.raises(CacheIncompleteError, match="1 of 2 shards are whole; shard 1 is missing: run the same"):
        merge_teacher(tmp_path, "a")
    fill(tmp_path, shape(), shard=Shard(count=2, number=1))
    fill(tmp_path, shape(views=4), shard=Shard(count=2, number=1), blocks=1)
    with pytest.raises(CacheIncompleteError, match=r"a\.00001-of-00002\.h5\.partial is growing"):
        merge_teacher(tmp_path, "a")
    fill(tmp_path, shape(views=4), shard=Shard(count=2, number=1))
    with pytest.raises(CacheIncompleteError, match=r"a\.00001-of-00002\.h5 has more views or features than other"):
        merge_teacher(tmp_path, "a")
    fill(tmp_path, shape(views=4), shard=Shard(count=2))
    path = tmp_path / "a.00001-of-00002.h5"
    flip(path, TeacherFile(path).header.contents["logits"].offset + 3)
    with pytest.raises(CacheDamagedError, match="logits of teacher a, slot 0, rows 32 to 47 do not match"):
        merge_teacher(tmp_path, "a")
    assert not (tmp_path / "a.h5").exists()
    with exclusive(path), pytest.raises(CacheBusyError):
        merge_teacher(tmp_path, "a")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    fill_shards(tmp_path, shape(), count=4)
    fill(tmp_path, shape(), teacher="b", number=1)
    (tmp_path / "a.00002-of-00004.h5").unlink()
    with pytest.raises(CacheIncompleteError, match="3 of 4 shards are whole; shard 2 is missing: run the same"):
        open_cache(tmp_path)
    assert open_cache(tmp_path, ["b"]).names == ("b",)
    found = verify_cache(tmp_path)
    assert not found.sound
    assert [(file.verdict, file.shard) for file in found.files if file.faults] == [(UNFINISHED, "shard 2 of 4")]
    assert found.files[3].faults[0].text == "shard 2 of 4 of teacher a is missing"


def test_what_is_being_written_is_said_with_its_writer(tmp_path: Path) -> None:
    fill(tmp_path, shape(), shard=Shard(count=4))
    fill(tmp_path, shape(), shard=Shard(count=4, number=3), blocks=1)
    path = cache_file(tmp_path, "a", Shard(count=4, number=1))
    with exclusive(path):
        assert str(owner(path)).startswith("process ")
        message = (
            r"1 of 4 shards are whole; shard 1 is being written by process \d+ on \S+; shard 2 is missing; "
            r"shard 3 is 33% done: run the same `cache_teachers` again"
        )
        with pytest.raises(CacheIncompleteError, match=message):
            open_cache(tmp_path)
    assert owner(path) is None


def test_a_shard_of_another_cache_is_refused(tmp_path: Path) -> None:
    fill_shards(tmp_path / "mine", shape(), count=2)
    other = provenance(teacher__state_sha256="00" * 32)
    fill_shards(tmp_path / "other", shape(), count=2, origin=other)
    shutil.copy(tmp_path / "other" / "a.00001-of-00002.h5", tmp_path / "mine")
    with pytest.raises(CacheMismatchError, match=r"a\.00000-of-00002\.h5 does not fit .*a\.00001-of.*state_sha256"):
        open_cache(tmp_path / "mine")
    found = verify_cache(tmp_path / "mine")
    assert {file.verdict for file in found.files} == {DAMAGED}
    assert "state_sha256" in found.files[0].faults[0].text
    with pytest.raises(CacheMismatchError, match="state_sha256"):
        merge_teacher(tmp_path / "mine", "a")


def test_shards_of_two_counts_are_refused(tmp_path: Path) -> None:
    fill_shards(tmp_path, shape(), count=2)
    fill_shards(tmp_path / "three", shape(), count=3)
    shutil.copy(tmp_path / "three" / "a.00002-of-00003.h5", tmp_path)
    for call in (lambda: open_cache(tmp_path), lambda: merge_teacher(tmp_path, "a")):
        with pytest.raises(CacheMismatchError, match="has shards of 2 and of 3, which are no whole"):
            call()
    assert not verify_cache(tmp_path).sound


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("a.00001-of-00002.h5", "shard 1 of 2"),
        ("a.h5", "the whole"),
        ("a.00000-of-00004.h5", "shard 0 of 4"),
    ],
)
def test_a_shard_under_another_name_is_refused(tmp_path: Path, name: str, called: str) -> None:
    fill_shards(tmp_path, shape(), count=2)
    shutil.copy(tmp_path / "a.00000-of-00002.h5", tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / name)
    with pytest.raises(
        CacheDamagedError, match=f"is called as {called} of a teacher's answers, and holds shard 0 of 2"
    ):
        TeacherFile(tmp_path / name)


def test_a_whole_file_called_a_shard_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, shape())
    (tmp_path / "a.h5").rename(tmp_path / "a.00000-of-00002.h5")
    with pytest.raises(
        CacheDamagedError, match="is called as shard 0 of 2 of a teacher's answers, and holds the whole"
    ):
        TeacherFile(tmp_path / "a.00000-of-00002.h5")


def test_blocks_of_another_shard_fail_their_checksums(tmp_path: Path) -> None:
    """Equal layout, other rows: a ledger's entry is of the block's number in the whole."""
    fill_shards(tmp_path, shape(), count=4)
    files = [TeacherFile(tmp_path / f"a.0000{number}-of-00004.h5") for number in (0, 1)]
    extents = [file.header.contents for file in files]
    data = [file.path.read_bytes() for file in files]
    spoilt = bytearray(data[1])
    for name in ("logits", "ledger/logits"):
        source, target = extents[0][name], extents[1][name]
        spoilt[target.offset : target.end] = data[0][source.offset : source.end]
    files[1].path.write_bytes(spoilt)
    with pytest.raises(CacheDamagedError, match="logits of teacher a, slot 0, rows 16 to 31 do not match"):
        open_cache(tmp_path).teachers[0].check("logits", 0)


def test_labels_must_be_those_of_the_data_all_together(tmp_path: Path) -> None:
    """Each file seals its own labels; that they are the data's is known when all are there."""
    fill(tmp_path, shape(), shard=Shard(count=2))
    fill(tmp_path, shape(), shard=Shard(count=2, number=1), labels=LABELS[::-1].copy())
    with pytest.raises(CacheDamagedError, match=r"the labels in .* are not those of its provenance"):
        open_cache(tmp_path)


def test_a_shard_of_something_else_is_not_written_beside_others(tmp_path: Path) -> None:
    """At once where others are there; before it is finished where they came meanwhile."""
    other = provenance(data__pixels_sha256="00" * 32)
    second = Shard(count=2, number=1)
    writer = CacheWriter(tmp_path, "a", shape=shape(), provenance=other, labels=LABELS, shard=second)
    with writer:
        for slot, block in writer.pending():
            rows = slice(*(getattr(writer.shape.samples_of(block), end) for end in ("start", "stop")))
            writer.blocks.write(slot, block, answers(writer.blocks.missing(slot, block), slot, rows))
        (tmp_path / "hidden").mkdir()
        fill(tmp_path / "hidden", shape(), shard=Shard(count=2))
        shutil.copy(tmp_path / "hidden" / "a.00000-of-00002.h5", tmp_path)
        with pytest.raises(
            CacheMismatchError, match=r"a\.00000-of-00002\.h5 was made from something else: data\.pixels"
        ):
            writer.finish()
    assert not cache_file(tmp_path, "a", second).exists()
    with pytest.raises(CacheMismatchError, match="was made from something else"):
        fill(tmp_path, shape(), shard=second)


def test_a_teacher_that_was_merged_meanwhile_gets_no_new_shards(tmp_path: Path) -> None:
    fill(tmp_path, shape())
    with pytest.raises(CacheMismatchError, match="is in 1 files by now, and not in 2"):
        fill(tmp_path, shape(), shard=Shard(count=2))
    assert sorted(path.name for path in tmp_path.glob("*.h5*") if path.suffix != ".lock") == ["a.h5"]


def test_shards_grow_one_by_one(tmp_path: Path) -> None:
    """Until all have grown, the teacher is what all have."""
    fill_shards(tmp_path, shape(), count=2)
    second = Shard(count=2, number=1)
    fill(tmp_path, replace(FULL, num_views=5), shard=second, blocks=2)
    assert open_cache(tmp_path).num_views == 3
    fill(tmp_path, replace(FULL, num_views=5), shard=second)
    grown = open_cache(tmp_path).teachers[0]
    assert (grown.shape.num_views, dict(grown.shape.features)) == (3, {})
    fill(tmp_path, replace(FULL, num_views=5), shard=Shard(count=2))
    grown = open_cache(tmp_path).teachers[0]
    assert (grown.shape.num_views, set(grown.shape.features)) == (5, {"stage3", "pooled"})
    for name, expected in answers(grown.shape.answers(), 4, ALL, features=grown.shape).items():
        assert np.array_equal(grown.read(name, 4), expected), name
    merge_teacher(tmp_path, "a")
    fill(tmp_path / "one", shape())
    fill(tmp_path / "one", replace(FULL, num_views=5))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "one" / "a.h5").read_bytes()


def test_the_plan_counts_every_file_that_is_not_there_yet(tmp_path: Path) -> None:
    shards = all_shards(3)
    planned = plan_teacher(tmp_path, "a", shape=FULL, provenance=provenance(), shards=shards)
    assert planned.pending == 3 * SAMPLES
    fill(tmp_path, FULL, shard=shards[1])
    fill(tmp_path, FULL, shard=shards[2], blocks=1)
    rest = plan_teacher(tmp_path, "a", shape=FULL, provenance=provenance(), shards=shards)
    assert (
        rest.new_bytes == plan_teacher(tmp_path, "x", shape=FULL, provenance=provenance(), shards=shards[:1]).new_bytes
    )
    assert rest.pending == 3 * 16 + 3 * 18 - 16
    fill_shards(tmp_path, FULL, count=3)
    whole = plan_teacher(tmp_path, "a", shape=FULL, provenance=provenance(), shards=shards)
    assert (whole.new_bytes, whole.pending) == (0, 0)
    assert whole.file_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.h5")) <= planned.file_bytes


def test_verify_names_the_damaged_shard_and_the_samples(tmp_path: Path) -> None:
    fill_shards(tmp_path, shape(), count=3)
    path = tmp_path / "a.00002-of-00003.h5"
    flip(path, TeacherFile(path).header.contents["entropy"].offset + 8)
    (fault,) = [fault for file in verify_cache(tmp_path).files for fault in file.faults]
    assert fault.text == "entropy, slot 0, rows 32 to 47 do not match their checksum"
    assert [file.verdict for file in verify_cache(tmp_path).files] == [SOUND, SOUND, DAMAGED]


def test_an_absent_teacher_has_no_count(tmp_path: Path) -> None:
    assert shard_count(tmp_path / "nothing", "a") is None
    with pytest.raises(CacheMissingError):
        TeacherCache.open(tmp_path, "a")
    with pytest.raises(CacheError):
        merge_teacher(tmp_path, "a")


@pytest.mark.parametrize("samples", [0, -1, 49, 10**400])
@pytest.mark.parametrize("shard", [Shard(), Shard(count=2, number=1)], ids=str)
def test_absurd_numbers_of_samples_are_refused(tmp_path: Path, samples: int, shard: Shard) -> None:
    fill(tmp_path, shape(), origin=provenance(data__samples=samples), shard=shard, blocks=0)
    with pytest.raises(CacheDamagedError):
        TeacherFile(partial_file(tmp_path, "a", shard))
