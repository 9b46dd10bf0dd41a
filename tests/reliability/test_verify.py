"""`verify` names what is wrong, and nothing else; `--recompute` runs the teachers again."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from demkd.cache import CacheWriter, ShardFile, open_cache, write_weights
from demkd.cache.format import block_crc, read_header
from demkd.cache.verify import DAMAGED, GROWING, OTHER_FORMAT, SOUND, UNFINISHED, verify_cache
from tests.cache.counting import LABELS, SAMPLES, fill, flip, place, provenance, shape, values
from tests.reliability.conftest import Command, Run, says, write_teacher
from tests.reliability.mutations import reseal, user_block, with_contents
from tests.reliability.scenarios import contents, teacher_options, write_pristine

A, B = "a.00001-of-00001.h5", "b.00001-of-00001.h5"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two counting teachers of 3 views, with weights."""
    return write_pristine(tmp_path / "pristine")


def faults_of(folder: Path, number: int = 0) -> list[str]:
    return [fault.text for fault in verify_cache(folder).files[number].faults]


def test_a_sound_cache_is_sound(folder: Path) -> None:
    report = verify_cache(folder)
    assert report.sound
    assert [(file.name, file.verdict, file.blocks) for file in report.files] == [
        ("a", SOUND, 5 * 3 * 4),
        ("b", SOUND, 5 * 3 * 4),
        ("weights", SOUND, 0),
    ]


@pytest.mark.parametrize("name", ["logits", "entropy", "prediction", "params", "features/stage3"])
def test_a_flipped_bit_is_named_by_data_set_view_and_rows(folder: Path, name: str) -> None:
    """One bit in any data set: exactly its block, in exactly its file."""
    flip(folder / B, place(folder / B, name, 1, 20))
    report = verify_cache(folder)
    assert not report.sound
    sound, damaged, _ = report.files
    assert sound.verdict == SOUND
    assert (damaged.name, damaged.verdict, len(damaged.faults)) == ("b", DAMAGED, 1)
    fault = damaged.faults[0]
    assert (fault.dataset, fault.view_index, fault.first_row, fault.last_row) == (name, 1, 16, 31)
    assert fault.text == f"{name}, view 1, rows 16 to 31 do not match their checksum"
    assert damaged.cure.startswith("run the same `cache_teachers` again: it recomputes these blocks")


def test_neighboring_blocks_are_one_fault(folder: Path) -> None:
    """Rows 0 to 31 of view 2 are blocks 0 and 1."""
    for row in (3, 16):
        flip(folder / A, place(folder / A, "logits", 2, row))
    assert faults_of(folder) == ["logits, view 2, rows 0 to 31 do not match their checksum"]


def test_a_lost_checksum_is_no_unwritten_block(folder: Path) -> None:
    """A finished file lacks nothing, so a block without a checksum was lost."""
    offset = read_header(folder / A).contents["block_crc/entropy"].offset
    with (folder / A).open("r+b") as file:
        file.seek(offset)
        file.write(bytes(8))
    assert faults_of(folder) == ["entropy, view 0, rows 0 to 15 were lost"]


def test_a_file_of_another_format_has_one_cure(folder: Path, run: Run) -> None:
    for name in (A, "weights.h5"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data.replace(b"format 4\n", b"format 3\n", 1))
    report = verify_cache(folder)
    assert not report.sound
    assert [(file.verdict, file.cure) for file in report.files] == [(OTHER_FORMAT, ""), (SOUND, ""), (OTHER_FORMAT, "")]
    shown = run("verify", folder, "--quiet", code=1).stdout
    assert shown.count("has format 3, ") == shown.count("in another folder (--out), or use the version") == 2
    assert "%" not in shown


@pytest.mark.parametrize("name", ["label", "provenance"])
def test_labels_and_provenance_are_covered(folder: Path, name: str) -> None:
    flip(folder / A, read_header(folder / A).contents[name].offset + 5)
    verdict = verify_cache(folder).files[0]
    assert verdict.verdict == DAMAGED
    assert "do not match their digest" in verdict.faults[0].text
    assert verdict.cure == "remove it, and run the same `cache_teachers` again"


def test_impossible_values_with_correct_checksums_are_found(folder: Path) -> None:
    for name, value in (("logits", np.float16(np.nan)), ("prediction", np.uint16(7))):
        block = np.array(ShardFile(folder / A).block(name, 1, 1))
        block[1] = value
        forge(folder / A, name, 1, 1, block)
    assert faults_of(folder) == [
        "logits, view 1, rows 16 to 31 hold values that are not finite",
        "prediction, view 1, rows 16 to 31 name a class beyond the 7 there are",
    ]


def forge(path: Path, name: str, view: int, number: int, block: "np.ndarray") -> None:
    """Replace a block, with the right checksum for it."""
    header = read_header(path)
    blocks = header.contents[f"block_crc/{name}"].shape[1]
    with path.open("r+b") as file:
        file.seek(place(path, name, view, number * ShardFile(path).shape.block_rows))
        file.write(block.tobytes())
        file.seek(header.contents[f"block_crc/{name}"].offset + 8 * (view * blocks + number))
        file.write(np.array([block_crc(name, view, number, block)], "<u8").tobytes())


def test_hdf5_must_see_what_we_see(folder: Path) -> None:
    """HDF5 tables that describe other data mislead other tools, though every checksum of ours is right."""
    path = folder / A
    with h5py.File(path, "r+", locking=False) as file:
        file.move("entropy", "entropie")
    _, tables, _ = user_block(path.read_bytes())
    path.write_bytes(with_contents(path.read_bytes(), {**tables, "size": path.stat().st_size}))
    assert reseal(path)
    assert open_cache(folder).names == ("a", "b"), "our own reader does not use HDF5"
    assert f"HDF5 and the header of {path} disagree about entropy" in faults_of(folder)


def test_a_file_that_hdf5_cannot_read_is_found(folder: Path) -> None:
    data = bytearray((folder / A).read_bytes())
    at = data.index(b"\x89HDF\r\n\x1a\n")
    data[at : at + 48] = bytes(48)
    (folder / A).write_bytes(data)
    assert reseal(folder / A)
    assert "cannot be read by HDF5" in faults_of(folder)[0]


def test_misaligned_teachers_are_found(tmp_path: Path) -> None:
    """Another view seed, which is in the provenance; and views that differ though the provenance does not."""
    fill(tmp_path, shape())
    fill(tmp_path, shape(), teacher="b", origin=provenance(views__seed=9))
    with CacheWriter(tmp_path, "c", shape=shape(), provenance=provenance(), labels=LABELS) as writer:
        for view, block in writer.pending():
            made = values(writer.missing(view, block), view, writer.shape.rows(block))
            writer.write(view, block, {**made, "params": made["params"] + 1})
        writer.finish()
    _, seed, views = verify_cache(tmp_path).files
    assert "views.seed is 0 in the cache and 9 now" in seed.faults[0].text
    assert "saw different images in view 0" in views.faults[0].text


def test_weights_are_compared_with_the_teachers(folder: Path) -> None:
    (folder / B).unlink()
    fill(folder, shape(stage3=(4,)), teacher="b", number=5)
    weights = verify_cache(folder).files[-1]
    assert (weights.name, weights.verdict) == ("weights", DAMAGED)
    assert "computed from other entropies of teacher b" in weights.faults[0].text


@pytest.mark.parametrize(
    ("value", "said"), [(0.6, "weights, view 2, row 7 do not sum to 1"), (np.nan, "weights.h5 does not hold weights")]
)
def test_weights_sum_to_one(folder: Path, value: float, said: str) -> None:
    wrong = np.full((2, 3, SAMPLES), 0.5, np.float32)
    wrong[0, 2, 7] = value
    write_weights(folder, open_cache(folder).teachers, wrong, weighting="wrong")
    assert said in faults_of(folder, -1)[0]


def test_started_files_are_unfinished_or_growing(tmp_path: Path) -> None:
    fill(tmp_path, shape(), teacher="a", blocks=3)
    fill(tmp_path, shape(), teacher="b")
    fill(tmp_path, shape(views=5), teacher="b", blocks=4)
    report = verify_cache(tmp_path)
    assert [(file.name, file.verdict) for file in report.files] == [("a", UNFINISHED), ("b", SOUND), ("b", GROWING)]
    assert report.files[0].done == 3 / 12
    assert not report.sound
    assert verify_cache(tmp_path, ["b"]).sound, "growing is no fault"


def test_the_command_names_everything_and_exits_with_1(folder: Path, tmp_path: Path, run: Run) -> None:
    assert run("verify", folder, "--quiet", code=0).stdout.count("sound") == 4
    flip(folder / A, place(folder / A, "logits", 2, 49))
    outcome = run("verify", folder, "--quiet", code=1)
    for part in ("damaged  a:", "logits, view 2, rows 48 to 49 do not match their checksum", "is not sound"):
        assert part in outcome.stdout
    report = json.loads(run("verify", folder, "--json", "--quiet", code=1).stdout)
    assert report["sound"] is False
    assert report["files"][0]["faults"][0] == {
        "text": "logits, view 2, rows 48 to 49 do not match their checksum",
        "dataset": "logits",
        "view_index": 2,
        "first_row": 48,
        "last_row": 49,
    }
    assert run("verify", folder, "--teachers", "b", "--quiet").code == 0
    says(run("verify", folder, "--teachers", "c", "--quiet"), "there is no teacher 'c'")
    says(run("verify", tmp_path / "nowhere", "--quiet"), "there is no cache in")
    assert run("verify", folder, "--recompute", 3).code == 2, "recomputing needs teachers"


def test_recomputed_logits_agree(run: Run, recomputing: Command, cache: Path) -> None:
    command = ["verify", cache, "--recompute", 30, *recomputing()]
    report = json.loads(run(*command, "--json", code=0).stdout)
    for found in report["recomputed"]:
        assert found["pairs"] == 30
        assert found["top1_agreement"] == 1.0
        assert 0 <= found["largest_difference"] < found["tolerance"] / 5
        assert found["agrees"]
    assert "30 views computed again in float32; logits differ by up to" in run(*command, code=0).stdout

    command += ["--precision", "bfloat16"]
    report = json.loads(run(*command, "--json", code=0).stdout)
    assert all(found["precision"] == "bfloat16" for found in report["recomputed"])
    assert any(found["largest_difference"] > 0 for found in report["recomputed"])


def test_recomputing_finds_wrong_logits_with_correct_checksums(run: Run, recomputing: Command, cache: Path) -> None:
    for view in range(4):
        forge(cache / B, "logits", view, 0, np.array(ShardFile(cache / B).block("logits", view, 0)) + np.float16(1))
    assert verify_cache(cache).sound
    command = ["verify", cache, "--recompute", 10, *recomputing(), "--json"]
    report = json.loads(run(*command, code=1).stdout)
    first, second = report["recomputed"]
    assert first["agrees"]
    assert not second["agrees"]
    assert second["largest_difference"] == pytest.approx(1, abs=0.01)
    assert not report["sound"]


def test_recomputing_needs_the_same_teacher(run: Run, recomputing: Command, cache: Path, tmp_path: Path) -> None:
    write_teacher(tmp_path / "a.safetensors", seed=5)
    outcome = run("verify", cache, "--recompute", 5, *recomputing("a", tmp_path))
    says(outcome, "teacher.state_sha256 is ")
    says(outcome, "Give the teacher and the data that it was cached with (--teacher, --data)")


@pytest.mark.slow
def test_teachers_are_recomputed_with_their_own_settings(
    run: Run, recomputing: Command, picture_folder: Path, teachers: Path, tmp_path: Path
) -> None:
    """Input size, normalization and precision of each teacher are in the cache."""
    cache = tmp_path / "cache"
    common = ["cache-teachers", "--quiet", "--data", picture_folder, "--out", cache, "--views", 2]
    of_a = ["--precision", "float32", "--input-size", 24, "--normalize", "imagenet", *teacher_options(teachers, "a")]
    run(*common, *of_a, code=0)
    run(*common, "--precision", "bfloat16", *teacher_options(teachers, "b"), code=0)
    assert run("verify", cache, "--recompute", 20, *recomputing()).code == 0
    other = [*recomputing("a"), "--input-size", 32]
    says(run("verify", cache, "--recompute", 5, *other), "teacher.input_size is 24 in the cache and 32 now")


@pytest.mark.parametrize("kill_at", [None, 12, pytest.param(24, marks=pytest.mark.slow)])
def test_exactly_what_is_damaged_is_recomputed(run: Run, caching: Command, cache: Path, kill_at: int | None) -> None:
    """In a copy; afterwards every byte is what it was, and no other view was computed."""
    before, command = contents(cache), caching(cache, views=4)
    times = {file.name: file.stat().st_mtime_ns for file in cache.glob("*.h5")}
    flip(cache / B, place(cache / B, "logits", 1, 5))
    flip(cache / B, place(cache / B, "features/stage3", 3, 59))
    damaged = (cache / B).read_bytes()
    plan = json.loads(run(*command, "--dry-run", "--json", code=0).stdout)
    assert [teacher["pending"] for teacher in plan["teachers"]] == [0, 2 * 60], "damaged blocks are pending"
    assert plan["teachers"][1]["new_bytes"] > 0, "they are recomputed in a copy"
    if kill_at:
        assert run(*command, kill_at=kill_at).code == -9
        assert (cache / B).read_bytes() in (damaged, before[B])
    report = json.loads(run(*command, "--json", code=0).stdout)
    assert report["teachers"][0]["computed"] == 0
    assert report["teachers"][1]["computed"] == 2 * 60 or kill_at
    assert contents(cache) == before
    assert (cache / A).stat().st_mtime_ns == times[A]


def test_damaged_weights_are_computed_again(run: Run, caching: Command, cache: Path) -> None:
    before = contents(cache)
    flip(cache / "weights.h5", read_header(cache / "weights.h5").contents["weights"].offset + 3)
    assert run("verify", cache, "--quiet").code == 1
    run(*caching(cache, views=4), code=0)
    assert contents(cache) == before
