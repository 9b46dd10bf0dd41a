"""A copy of a cache, made without its teachers: what they would have given, within rounding; and what arrives whole."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import demkd
from demkd.cache import CacheMismatchError, CacheSpaceError, CacheValueError, open_cache
from demkd.dataset import ViewsError
from demkd.errors import UserError
from tests.cache import counting
from tests.pipeline.stages import Recorder
from tests.pipeline.test_top_k import CLASSES, KEEP, SILENT, TEACHERS, data, network

DATA_SETS = ("entropy", "prediction", "view")


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All logits of three views with features, and what stage one makes of the four largest of two of them."""
    folder = tmp_path_factory.mktemp("caches")
    demkd.cache_teachers(TEACHERS, data(), out=folder / "all", views=3, **SILENT)
    demkd.cache_teachers(TEACHERS, data(), out=folder / "asked", views=2, keep=KEEP, features=(), **SILENT)
    return {name: folder / name for name in ("all", "asked")}


@pytest.fixture(scope="module")
def small(caches: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as `asked`, from `all` instead of from the teachers."""
    folder = tmp_path_factory.mktemp("small") / "copy"
    demkd.pack(caches["all"], out=folder, views=2, keep=KEEP, features=(), progress=False)
    return folder


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if not file.name.endswith(".lock")}


def test_a_copy_of_everything_has_the_same_bytes(caches: dict[str, Path], tmp_path: Path) -> None:
    report = demkd.pack(caches["all"], out=tmp_path / "copy", progress=False)
    for name in ("a.h5", "b.h5", "weights.h5"):
        assert (tmp_path / "copy" / name).read_bytes() == (caches["all"] / name).read_bytes()
    assert names_in(tmp_path / "copy") == {"a.h5", "b.h5", "weights.h5", "README.md", "SHA256SUMS", ".gitignore"}
    assert report.file_bytes == sum(file.stat().st_size for file in (tmp_path / "copy").glob("*.h5"))
    assert demkd.verify(report, progress=False).sound


def test_a_smaller_copy_is_what_the_teachers_would_have_given(caches: dict[str, Path], small: Path) -> None:
    """What is not of rounded logits to the bit; those and their sums within a float16's last place."""
    asked, copied = open_cache(caches["asked"]), open_cache(small)
    assert copied.names == ("a", "b")
    for one, other in zip(asked.teachers, copied.teachers, strict=True):
        assert other.shape == one.shape
        assert other.provenance.identity == one.provenance.identity
        assert one.provenance.notes.get("packed") is None
        assert "rounded to float16" in other.provenance.notes["packed"]
        for slot in range(2):
            for name in (*DATA_SETS, "logits", "label_logit"):
                assert np.array_equal(one.read(name, slot), other.read(name, slot)), name
            same = one.read("classes", slot) == other.read("classes", slot)
            assert same.mean() > 0.99, "equal logits may come in another order"
            np.testing.assert_allclose(one.read("rest", slot), other.read("rest", slot), rtol=1e-3, atol=1e-3)
    assert asked.teacher_weights is not None
    assert copied.teacher_weights is not None
    assert np.array_equal(asked.teacher_weights.values, copied.teacher_weights.values)
    assert demkd.verify(small, progress=False).sound
    assert demkd.recompute(small, TEACHERS, data(), pairs=40, **SILENT).sound


@pytest.mark.parametrize("method", ["de-mkd-logits", "kd", "ca-mkd"])
def test_a_student_has_the_losses_of_one_from_asked_teachers(
    caches: dict[str, Path], small: Path, tmp_path: Path, method: str
) -> None:
    losses = []
    for cache in (caches["asked"], small):
        told = Recorder()
        options = {**SILENT, "progress": told, "epochs": 2, "batch_size": 20, "test": data(), "hint_weight": 0.0}
        out = tmp_path / cache.name
        demkd.distill(network(3, scale=1.0), train=data(), cache=cache, method=method, out=out, **options)
        losses.append([report.losses for report in told.reports])
    for one, other in zip(*losses, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
        assert one["loss"] > 0


def test_of_kept_logits_fewer_can_be_kept(caches: dict[str, Path], tmp_path: Path) -> None:
    """Also where the label is dropped, stays, or is all that there is beside the kept ones."""
    for most in (KEEP, CLASSES - 1):
        first = tmp_path / f"first-{most}"
        demkd.pack(caches["all"], out=first, views=1, keep=most, progress=False)
        for keep in (1, 2):
            direct, twice = tmp_path / f"direct-{most}-{keep}", tmp_path / f"twice-{most}-{keep}"
            demkd.pack(caches["all"], out=direct, views=1, keep=keep, rest_temperatures=(1, 4), progress=False)
            demkd.pack(first, out=twice, keep=keep, rest_temperatures=(1, 4), progress=False)
            for one, other in zip(open_cache(direct).teachers, open_cache(twice).teachers, strict=True):
                assert one.shape == other.shape
                assert one.provenance == other.provenance
                for name in (*DATA_SETS, "logits", "classes", "label_logit"):
                    assert np.array_equal(one.read(name, 0), other.read(name, 0)), name
                np.testing.assert_allclose(one.read("rest", 0), other.read("rest", 0), rtol=1e-5, atol=1e-5)


def test_a_copy_with_fewer_teachers_has_weights_of_its_own(caches: dict[str, Path], tmp_path: Path) -> None:
    demkd.pack(caches["all"], out=tmp_path / "one", teachers=["b"], progress=False)
    cache = open_cache(tmp_path / "one")
    assert cache.names == ("b",)
    assert cache.teacher_weights is not None
    assert (cache.teacher_weights.values == 1).all()


def test_the_teachers_can_go_on_with_a_copy(caches: dict[str, Path], small: Path, tmp_path: Path) -> None:
    """They add a view; what was there stays, the note on it too, and the old digests go."""
    folder = tmp_path / "grown"
    shutil.copytree(small, folder)
    before = {name: np.array(open_cache(folder).teachers[0].read(name, 1)) for name in ("logits", "rest")}
    demkd.cache_teachers(TEACHERS, data(), out=folder, views=3, keep=KEEP, features=(), **SILENT)
    grown, dense = open_cache(folder), open_cache(caches["all"])
    assert grown.num_views == 3
    assert np.array_equal(grown.read_slot(2).entropy, dense.read_slot(2).entropy)
    assert "rounded" in grown.teachers[0].provenance.notes["packed"]
    for name, values in before.items():
        assert np.array_equal(grown.teachers[0].read(name, 1), values)
    assert "SHA256SUMS" not in names_in(folder)
    assert demkd.verify(folder, progress=False).sound


def test_other_teachers_are_refused_by_a_copy(small: Path) -> None:
    others = {"a": network(5), "b": network(6)}
    with pytest.raises(CacheMismatchError, match=r"teacher\.state_sha256 is"):
        demkd.cache_teachers(others, data(), out=small, views=3, keep=KEEP, features=(), **SILENT)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shards_are_copied_as_shards(tmp_path: Path, count: int) -> None:
    layout = counting.shape(views=3, pool=(4,))
    for number, name in enumerate("ab"):
        counting.fill_shards(tmp_path / "cache", layout, count=count, teacher=name, number=number)
    demkd.pack(tmp_path / "cache", out=tmp_path / "copy", views=2, progress=False)
    copied = open_cache(tmp_path / "copy")
    assert [len(teacher.files) for teacher in copied.teachers] == [count, count]
    everyone = slice(0, counting.SAMPLES)
    for number, teacher in enumerate(copied.teachers):
        for slot in range(2):
            expected = counting.answers(["logits", *DATA_SETS, "features/pool"], slot, everyone, teacher=number)
            for name, values in expected.items():
                assert np.array_equal(teacher.read(name, slot), values.astype(teacher.read(name, slot).dtype)), name
    assert demkd.verify(tmp_path / "copy", progress=False).sound


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"views": 4}, ViewsError, "`views` is 4, but .* has 3: choose 1 to 3"),
        ({"keep": CLASSES}, CacheValueError, f"`keep` is {CLASSES}, and there are 11"),
        ({"keep": 2, "rest_temperatures": (0,)}, CacheValueError, "`rest_temperatures` are"),
        ({"features": ["other"]}, CacheValueError, "teacher a has no features 'other'; it has "),
        ({"teachers": ["c"]}, UserError, "there is no teacher 'c'"),
    ],
)
def test_what_there_is_not_cannot_be_packed(
    caches: dict[str, Path], tmp_path: Path, options: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        demkd.pack(caches["all"], out=tmp_path / "copy", progress=False, **options)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"teachers": ["a"]}, "has teacher b already, which is not to be packed"),
        ({"views": 1}, "has more of teacher a than is to be packed"),
        ({"keep": 2}, "was made from something else: answers.* is"),
    ],
)
def test_another_copy_in_the_same_folder_is_refused(
    caches: dict[str, Path], tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    demkd.pack(caches["all"], out=tmp_path, views=2, progress=False)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(CacheMismatchError, match=why):
        demkd.pack(caches["all"], out=tmp_path, progress=False, **{"views": 2, **options})
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_cache_is_no_copy_of_itself(caches: dict[str, Path]) -> None:
    with pytest.raises(CacheMismatchError, match="is the cache itself"):
        demkd.pack(caches["all"], out=caches["all"] / ".." / "all", progress=False)


def test_a_full_disk_is_said_before_anything_is_written(
    caches: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CacheSpaceError, match="more bytes, and 1,000 are free"):
        demkd.pack(caches["all"], out=tmp_path / "copy", progress=False)


def test_a_damaged_answer_is_not_copied(caches: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(caches["all"], tmp_path / "cache")
    extent = open_cache(tmp_path / "cache").teachers[1].files[0].header.contents["logits"]
    counting.flip(tmp_path / "cache" / "b.h5", extent.offset + 5)
    with pytest.raises(UserError, match="logits of teacher b, slot 0, rows 0 to 59 do not match their checksum"):
        demkd.pack(tmp_path / "cache", out=tmp_path / "copy", keep=2, progress=False)
    assert "SHA256SUMS" not in names_in(tmp_path / "copy")


def remove(folder: Path, others: Path) -> None:
    (folder / "b.h5").unlink()
    (folder / "weights.h5").unlink()


def another_version(folder: Path, others: Path) -> None:
    shutil.copy(others / "b.h5", folder / "b.h5")


def add(folder: Path, others: Path) -> None:
    shutil.copy(others / "b.h5", folder / "c.h5")


def pipe(folder: Path, others: Path) -> None:
    (folder / "b.h5").unlink()
    os.mkfifo(folder / "b.h5")  # whoever opens it to read waits for ever


def pipe_for_a_list(folder: Path, others: Path) -> None:
    (folder / "SHA256SUMS").unlink()
    os.mkfifo(folder / "SHA256SUMS")


def garble(folder: Path, others: Path) -> None:
    (folder / "SHA256SUMS").write_text("no list\n")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (remove, "b.h5 is not there"),
        (another_version, "b.h5 is not the file that was packed"),
        (add, "c.h5 was not packed with the others"),
        (garble, "is no list of digests"),
        (pipe, "b.h5 is not the file that was packed"),
        (pipe_for_a_list, "is no list of digests"),
    ],
)
def test_what_did_not_arrive_as_it_was_sent_is_found(
    caches: dict[str, Path], small: Path, tmp_path: Path, change: Callable[[Path, Path], None], why: str
) -> None:
    """Also where each file is sound in itself."""
    folder = tmp_path / "arrived"
    shutil.copytree(small, folder)
    change(folder, caches["all"])
    report = demkd.verify(folder, progress=False)
    assert not report.sound
    (sums,) = (file for file in report.files if file.name == "SHA256SUMS")
    assert any(why in fault.text for fault in sums.faults), sums


def test_the_digests_are_those_that_sha256sum_checks(small: Path) -> None:
    lines = [line.split("  ") for line in (small / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in lines} == {"a.h5", "b.h5", "weights.h5"}
    for digest, name in lines:
        assert hashlib.sha256((small / name).read_bytes()).hexdigest() == digest


def test_a_readme_is_never_overwritten(caches: dict[str, Path], small: Path, tmp_path: Path) -> None:
    assert (small / "README.md").read_text().startswith("---")
    (tmp_path / "README.md").write_text("mine")
    demkd.pack(caches["all"], out=tmp_path, progress=False)
    assert (tmp_path / "README.md").read_text() == "mine"
