"""`verify` names whatever is wrong, and nothing that is right; `--recompute` asks the teachers, `--repair` redoes."""

import hashlib
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from demkd.cache import CacheShape, CacheWriter, TeacherFile, open_cache, write_weights
from demkd.cache.file import read_header
from demkd.cache.integrity import DAMAGED, GROWING, SOUND, UNFINISHED, verify_cache
from demkd.cache.layout import ledger_entry
from tests.cache.counting import LABELS, SAMPLES, answers, fill, flip, provenance, shape
from tests.reliability.conftest import Command, Run, contents, says, teacher_options, write_teacher
from tests.reliability.reseal import reseal, user_block, with_contents
from tests.reliability.test_hostile_files import write_pristine


def place(path: Path, name: str, slot: int, row: int) -> int:
    """Where a row's first byte is."""
    extent = read_header(path).contents[name]
    return extent.offset + slot * extent.slot_bytes + row * (extent.slot_bytes // extent.shape[1])


def test_a_sound_cache_is_sound(tmp_path: Path) -> None:
    report = verify_cache(write_pristine(tmp_path))
    assert report.sound
    assert [(file.name, file.verdict, file.blocks) for file in report.files] == [
        ("a", SOUND, 5 * 3 * 4),
        ("b", SOUND, 5 * 3 * 4),
        ("weights", SOUND, 0),
    ]


@pytest.mark.parametrize("name", ["logits", "entropy", "prediction", "view", "features/stage3"])
def test_a_flipped_bit_is_named_by_data_set_slot_and_rows(tmp_path: Path, name: str) -> None:
    """One bit anywhere in the answers: exactly its block, in exactly its file."""
    folder = write_pristine(tmp_path)
    flip(folder / "b.h5", place(folder / "b.h5", name, 1, 20))
    report = verify_cache(folder)
    assert not report.sound
    sound, damaged, _ = report.files
    assert sound.verdict == SOUND
    assert (damaged.name, damaged.verdict, len(damaged.faults)) == ("b", DAMAGED, 1)
    fault = damaged.faults[0]
    assert (fault.dataset, fault.slot, fault.first_row, fault.last_row) == (name, 1, 16, 31)
    assert fault.text == f"{name}, slot 1, rows 16 to 31 do not match their checksum"
    assert "`repair`, which redo" in damaged.cure


def test_neighbouring_blocks_are_one_fault(tmp_path: Path) -> None:
    """Rows 0 to 31 of slot 2 are blocks 0 and 1."""
    folder = write_pristine(tmp_path)
    for row in (3, 16):
        flip(folder / "a.h5", place(folder / "a.h5", "logits", 2, row))
    assert [fault.text for fault in verify_cache(folder).files[0].faults] == [
        "logits, slot 2, rows 0 to 31 do not match their checksum"
    ]


def test_a_lost_ledger_entry_is_no_unwritten_block(tmp_path: Path) -> None:
    """A finished file lacks nothing, so what its ledger does not know was lost."""
    folder = write_pristine(tmp_path)
    offset = read_header(folder / "a.h5").contents["ledger/entropy"].offset
    with (folder / "a.h5").open("r+b") as file:
        file.seek(offset)
        file.write(bytes(8))
    assert verify_cache(folder).files[0].faults[0].text == "entropy, slot 0, rows 0 to 15 were lost"


@pytest.mark.parametrize("name", ["label", "provenance"])
def test_sealed_data_are_covered(tmp_path: Path, name: str) -> None:
    folder = write_pristine(tmp_path)
    flip(folder / "a.h5", read_header(folder / "a.h5").contents[name].offset + 5)
    verdict = verify_cache(folder).files[0]
    assert verdict.verdict == DAMAGED
    assert "do not match their digest" in verdict.faults[0].text
    assert verdict.cure == "remove it, and run the same `cache_teachers` again"


def test_what_the_checksums_vouch_for_must_still_be_answers(tmp_path: Path) -> None:
    """Values that no writer of ours would write, with correct checksums."""
    folder = write_pristine(tmp_path)
    for name, value in (("logits", np.float16(np.nan)), ("prediction", np.uint16(7))):
        forge(folder / "a.h5", name, value)
    texts = [fault.text for fault in verify_cache(folder).files[0].faults]
    assert texts == [
        "logits, slot 1, rows 16 to 31 hold values that are not finite",
        "prediction, slot 1, rows 16 to 31 name a class beyond the 7 there are",
    ]


def forge(path: Path, name: str, value: "np.generic") -> None:
    """Put a value at slot 1, row 17, with the right checksum for it."""
    header = read_header(path)
    block = np.array(TeacherFile(path).block(name, 1, 1))
    block[1] = value
    with path.open("r+b") as file:
        file.seek(place(path, name, 1, 16))
        file.write(block.tobytes())
        file.seek(header.contents[f"ledger/{name}"].offset + 8 * (1 * 4 + 1))
        file.write(np.array([ledger_entry(name, 1, 1, block)], "<u8").tobytes())


def test_hdf5_must_see_what_we_see(tmp_path: Path) -> None:
    """A file whose HDF5 part describes other data, though every checksum of ours is right, lies to other tools."""
    folder = write_pristine(tmp_path)
    path = folder / "a.h5"
    with h5py.File(path, "r+", locking=False) as file:
        file.move("entropy", "entropie")
    _, tables, _ = user_block(path.read_bytes())
    path.write_bytes(with_contents(path.read_bytes(), {**tables, "size": path.stat().st_size}))
    assert reseal(path)
    assert open_cache(folder).names == ("a", "b"), "our own reader does not ask HDF5"
    texts = [fault.text for fault in verify_cache(folder).files[0].faults]
    assert f"{path} shows HDF5 something else as entropy than its user block says" in texts


def test_a_file_that_hdf5_cannot_read_is_said_so(tmp_path: Path) -> None:
    folder = write_pristine(tmp_path)
    data = bytearray((folder / "a.h5").read_bytes())
    at = data.index(b"\x89HDF\r\n\x1a\n")
    data[at : at + 48] = bytes(48)
    (folder / "a.h5").write_bytes(data)
    assert reseal(folder / "a.h5")
    assert "cannot be read by HDF5" in verify_cache(folder).files[0].faults[0].text


def test_misaligned_teachers_are_found(tmp_path: Path) -> None:
    """Another view seed, which the provenance tells; and views that differ though the provenance does not."""
    fill(tmp_path, shape())
    fill(tmp_path, shape(), teacher="b", origin=provenance(views__seed=9))
    with CacheWriter(tmp_path, "c", shape=shape(), provenance=provenance(), labels=LABELS) as writer:
        for slot, block in writer.pending():
            made = answers(writer.blocks.missing(slot, block), slot, writer.shape.rows(block))
            writer.blocks.write(slot, block, {**made, "view": made["view"] + 1})
        writer.finish()
    _, seed, views = verify_cache(tmp_path).files
    assert "views.seed is 0 in the cache and 9 now" in seed.faults[0].text
    assert "saw different views in slot 0" in views.faults[0].text


def test_weights_are_compared_with_the_teachers(tmp_path: Path) -> None:
    folder = write_pristine(tmp_path)
    (folder / "b.h5").unlink()
    fill(folder, shape(stage3=(4,)), teacher="b", number=5)
    weights = verify_cache(folder).files[-1]
    assert (weights.name, weights.verdict) == ("weights", DAMAGED)
    assert "computed from other answers of teacher b" in weights.faults[0].text


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.6, "weights, slot 2, row 7 do not sum to 1"), (np.nan, "weights.h5 does not hold what it should")],
)
def test_weights_sum_to_one(tmp_path: Path, value: float, said: str) -> None:
    folder = write_pristine(tmp_path)
    wrong = np.full((2, 3, SAMPLES), 0.5, np.float32)
    wrong[0, 2, 7] = value
    write_weights(folder, open_cache(folder).teachers, wrong, weighting="wrong")
    assert said in verify_cache(folder).files[-1].faults[0].text


def test_started_files_are_unfinished_or_growing(tmp_path: Path) -> None:
    fill(tmp_path, shape(), teacher="a", blocks=3)
    fill(tmp_path, shape(), teacher="b")
    fill(tmp_path, shape(views=5), teacher="b", blocks=4)
    report = verify_cache(tmp_path)
    assert [(file.name, file.verdict) for file in report.files] == [("a", UNFINISHED), ("b", SOUND), ("b", GROWING)]
    assert report.files[0].done == 3 / 12
    assert not report.sound
    assert verify_cache(tmp_path, ["b"]).sound, "growing is no fault"


def test_the_command_names_everything_and_exits_with_1(tmp_path: Path, run: Run) -> None:
    folder = write_pristine(tmp_path)
    assert run("verify", folder, "--quiet", code=0).stdout.count("sound") == 4
    flip(folder / "a.h5", place(folder / "a.h5", "logits", 2, 49))
    outcome = run("verify", folder, "--quiet", code=1)
    for part in ("damaged  a:", "logits, slot 2, rows 48 to 49 do not match their checksum", "is not sound"):
        assert part in outcome.stdout
    report = json.loads(run("verify", folder, "--json", "--quiet", code=1).stdout)
    assert report["sound"] is False
    assert report["files"][0]["faults"][0] == {
        "text": "logits, slot 2, rows 48 to 49 do not match their checksum",
        "dataset": "logits",
        "slot": 2,
        "first_row": 48,
        "last_row": 49,
    }
    assert run("verify", folder, "--teachers", "b", "--quiet").code == 0
    says(run("verify", folder, "--teachers", "c", "--quiet"), "there is no teacher 'c'")
    says(run("verify", tmp_path / "nowhere", "--quiet"), "there is no cache in")
    assert run("verify", folder, "--repair").code == 2, "repairing needs teachers"


def test_recomputed_answers_agree(run: Run, asking: Command, cache: Path) -> None:
    command = ["verify", cache, "--recompute", 30, *asking()]
    report = json.loads(run(*command, "--json", code=0).stdout)
    for found in report["recomputed"]:
        assert found["pairs"] == 30
        assert found["top1_agreement"] == 1.0
        assert 0 <= found["largest_difference"] < found["tolerance"] / 5
        assert found["agrees"]
    assert "30 answers given again in float32; logits differ by up to" in run(*command, code=0).stdout


@pytest.mark.slow
def test_recomputing_in_another_precision_is_within_its_tolerance(run: Run, asking: Command, cache: Path) -> None:
    command = ["verify", cache, "--recompute", 30, *asking(), "--precision", "bfloat16"]
    report = json.loads(run(*command, "--json", code=0).stdout)
    assert all(found["precision"] == "bfloat16" for found in report["recomputed"])
    assert any(found["largest_difference"] > 0 for found in report["recomputed"])


def test_recomputing_finds_answers_that_checksums_vouch_for(run: Run, asking: Command, cache: Path) -> None:
    """Every stored logit of a block changed, with correct checksums: only the teacher itself can tell."""
    path = cache / "b.h5"
    file = TeacherFile(path)
    for slot in range(4):
        block = np.array(file.block("logits", slot, 0)) + np.float16(1)
        with path.open("r+b") as raw:
            raw.seek(place(path, "logits", slot, 0))
            raw.write(block.tobytes())
            raw.seek(read_header(path).contents["ledger/logits"].offset + 8 * slot)
            raw.write(np.array([ledger_entry("logits", slot, 0, block)], "<u8").tobytes())
    assert verify_cache(cache).sound
    command = ["verify", cache, "--recompute", 10, *asking(), "--json"]
    report = json.loads(run(*command, code=1).stdout)
    first, second = report["recomputed"]
    assert first["agrees"]
    assert not second["agrees"]
    assert second["largest_difference"] == pytest.approx(1, abs=0.01)
    assert not report["sound"]


def test_recomputing_with_another_teacher_is_refused(run: Run, asking: Command, cache: Path, tmp_path: Path) -> None:
    write_teacher(tmp_path / "a.safetensors", seed=5)
    outcome = run("verify", cache, "--recompute", 5, *asking("a", tmp_path))
    says(outcome, "teacher.state_sha256 is ")
    says(outcome, "Give the teacher and the data that it was cached with (--teacher, --data)")


def test_repair_redoes_exactly_the_blocks_that_fail(run: Run, asking: Command, cache: Path) -> None:
    """Afterwards every byte is what it was; the other teacher was not asked, nor about any other view."""
    before = contents(cache)
    times = {file.name: file.stat().st_mtime_ns for file in cache.glob("*.h5")}
    flip(cache / "b.h5", place(cache / "b.h5", "logits", 1, 5))
    flip(cache / "b.h5", place(cache / "b.h5", "features/stage3", 3, 59))
    report = json.loads(run("verify", cache, "--repair", *asking(), "--json", code=0).stdout)
    assert report["repaired"] == [
        {
            "name": "b",
            "answered": 2 * 60,
            "redone": [
                "logits, slot 1, rows 0 to 59 do not match their checksum",
                "features/stage3, slot 3, rows 0 to 59 do not match their checksum",
            ],
        }
    ]
    assert report["sound"]
    assert contents(cache) == before
    assert (cache / "a.h5").stat().st_mtime_ns == times["a.h5"]


def test_teachers_are_asked_again_as_they_were_asked(
    run: Run, asking: Command, picture_folder: Path, teachers: Path, tmp_path: Path
) -> None:
    """At the input size, with the normalisation and in the precision of each teacher, which the cache knows."""
    cache = tmp_path / "cache"
    common = ["cache-teachers", "--quiet", "--data", picture_folder, "--out", cache, "--views", 2]
    of_a = ["--precision", "float32", "--input-size", 24, "--normalise", "imagenet", *teacher_options(teachers, "a")]
    run(*common, *of_a, code=0)
    run(*common, "--precision", "bfloat16", *teacher_options(teachers, "b"), code=0)
    before = contents(cache)
    assert run("verify", cache, "--recompute", 20, *asking()).code == 0
    for name in "ab":
        flip(cache / f"{name}.h5", place(cache / f"{name}.h5", "logits", 1, 5))
    command = ["verify", cache, "--repair", *asking(), "--json"]
    report = json.loads(run(*command, code=0).stdout)
    assert [file["answered"] for file in report["repaired"]] == [60, 60]
    assert contents(cache) == before
    other = [*asking("a"), "--input-size", 32]
    says(run("verify", cache, "--recompute", 5, *other), "teacher.input_size is 24 in the cache and 32 now")


def test_the_same_cache_teachers_repairs_as_well(run: Run, caching: Command, cache: Path) -> None:
    """A finished file is checked before it is believed."""
    before = contents(cache)
    flip(cache / "a.h5", place(cache / "a.h5", "entropy", 2, 5))
    run(*caching(cache, views=4), code=0)
    assert contents(cache) == before


def test_a_killed_repair_leaves_the_damaged_file_or_the_sound_one(
    run: Run, asking: Command, cache: Path, tmp_path: Path
) -> None:
    """Never a mixture: the new file is made beside the old one."""
    before = contents(cache)
    flip(cache / "b.h5", place(cache / "b.h5", "logits", 1, 5))
    damaged = (cache / "b.h5").read_bytes()
    command = ["verify", cache, "--repair", *asking()]
    for kill_at in (12, 24):
        run(*command, kill_at=kill_at)
        assert (cache / "b.h5").read_bytes() in (damaged, before["b.h5"])
    run(*command, code=0)
    assert contents(cache) == before


def test_damaged_weights_are_repaired_without_asking_a_teacher(run: Run, asking: Command, cache: Path) -> None:
    before = contents(cache)
    flip(cache / "weights.h5", read_header(cache / "weights.h5").contents["weights"].offset + 3)
    assert run("verify", cache, "--quiet").code == 1
    outcome = run("verify", cache, "--repair", *asking(), code=0)
    assert "redone  weights:" in outcome.stdout
    assert contents(cache) == before


def test_what_cannot_be_repaired_is_said(run: Run, asking: Command, cache: Path, tmp_path: Path) -> None:
    """The damaged teacher is not given; or the file's own description is damaged."""
    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    flip(copy / "b.h5", place(copy / "b.h5", "logits", 1, 5))
    outcome = run("verify", copy, "--repair", *asking("a"))
    says(outcome, "teacher b in ")
    says(outcome, "give it too (--teacher b=NETWORK@CHECKPOINT)")
    flip(cache / "b.h5", read_header(cache / "b.h5").contents["label"].offset)
    says(run("verify", cache, "--repair", *asking()), "remove it and make it again")


def test_block_rows_are_those_of_the_file(tmp_path: Path) -> None:
    """A file whose blocks have another size than today's default goes on in its own."""
    fill(tmp_path, shape())
    wanted = CacheShape(num_views=4, samples=SAMPLES, classes=7, record_length=2, block_rows=8)
    assert fill(tmp_path, wanted) == 4, "four blocks of 16 rows in the new slot"
    assert verify_cache(tmp_path).sound


def test_the_labels_digest_is_that_of_the_data(tmp_path: Path) -> None:
    """The provenance of the counting cache is what `ImageSource.labels_sha256` gives for its labels."""
    fill(tmp_path, shape())
    identity = TeacherFile(tmp_path / "a.h5").provenance.identity
    assert identity["data"]["labels_sha256"] == hashlib.sha256(LABELS.astype("<i8").tobytes()).hexdigest()
