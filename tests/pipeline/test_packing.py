"""A copy of a cache, made without its teachers: what they would have given, within rounding; and what arrives whole."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import demkd
from demkd.cache import CacheMismatchError, CacheSpaceError, CacheValueError, open_cache
from demkd.dataset import DataError
from demkd.errors import UserError
from tests.cache import counting
from tests.pipeline.test_top_k import CLASSES, KEEP, SILENT, TEACHERS, data, network

DATA_SETS = ("entropy", "prediction", "params")


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All logits of three views with features, and what stage one makes of the four largest of two of them."""
    folder = tmp_path_factory.mktemp("caches")
    demkd.cache_teachers(TEACHERS, data(), out=folder / "all", views=3, **SILENT)
    demkd.cache_teachers(TEACHERS, data(), out=folder / "asked", views=2, top_k=KEEP, features=(), **SILENT)
    return {name: folder / name for name in ("all", "asked")}


@pytest.fixture(scope="module")
def small(caches: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as `asked`, from `all` instead of from the teachers."""
    folder = tmp_path_factory.mktemp("small") / "copy"
    demkd.pack(caches["all"], out=folder, views=np.int64(2), top_k=np.int64(KEEP), features=(), progress=False)
    return folder


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if not file.name.endswith(".lock")}


def test_a_copy_of_everything_has_the_same_bytes(caches: dict[str, Path], tmp_path: Path) -> None:
    report = demkd.pack(caches["all"], out=tmp_path / "copy", progress=False)
    for name in ("a.00001-of-00001.h5", "b.00001-of-00001.h5", "weights.h5"):
        assert (tmp_path / "copy" / name).read_bytes() == (caches["all"] / name).read_bytes()
    assert names_in(tmp_path / "copy") == {
        "a.00001-of-00001.h5",
        "b.00001-of-00001.h5",
        "weights.h5",
        "README.md",
        "SHA256SUMS",
        ".gitignore",
    }
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
        assert "rounded" in other.provenance.notes["packed"]
        for slot in range(2):
            for name in (*DATA_SETS, "logits", "label_logit"):
                assert np.array_equal(one.read(name, slot), other.read(name, slot)), name
            same = one.read("classes", slot) == other.read("classes", slot)
            assert same.mean() > 0.99, "equal logits may come in another order"
            np.testing.assert_allclose(one.read("tail", slot), other.read("tail", slot), rtol=1e-3, atol=1e-3)
    assert np.array_equal(asked.teacher_weights.values, copied.teacher_weights.values)
    assert demkd.verify(small, progress=False).sound
    assert demkd.recompute(small, TEACHERS, data(), pairs=40, **SILENT).sound


def test_a_student_learns_the_same_from_a_url(small: Path, tmp_path: Path) -> None:
    fsspec.filesystem("memory").put(f"{small}/", "/small", recursive=True)
    options = {**SILENT, "train": data(), "test": data(), "teachers": ["b"], "epochs": 1, "batch_size": 20}
    students = []
    for cache, name in ((small, "folder"), ("memory://small", "url")):
        demkd.distill(network(3), cache=cache, method="kd", out=tmp_path / name, **options)
        students.append((tmp_path / name / "student.safetensors").read_bytes())
    assert students[0] == students[1]
    loader = demkd.SoftTargetLoader("memory://small", data(), method="kd", teachers="b", batch_size=20)
    assert len(list(loader)) == 3
    assert {path.name for path in loader.cache.folder.glob("*.h5")} == {"b.00001-of-00001.h5", "weights.h5"}
    demkd.pack("memory://small", out=tmp_path / "copy", progress=False)
    assert (tmp_path / "copy" / "SHA256SUMS").read_bytes() == (small / "SHA256SUMS").read_bytes()


def test_of_kept_logits_fewer_can_be_kept(caches: dict[str, Path], tmp_path: Path) -> None:
    """Also where the label is dropped, stays, or is all that there is beside the kept ones."""
    for most in (KEEP, CLASSES - 1):
        first = tmp_path / f"first-{most}"
        demkd.pack(caches["all"], out=first, views=1, top_k=most, progress=False)
        for top_k in (1, 2):
            direct, twice = tmp_path / f"direct-{most}-{top_k}", tmp_path / f"twice-{most}-{top_k}"
            demkd.pack(caches["all"], out=direct, views=1, top_k=top_k, tail_temperatures=(1, 4), progress=False)
            demkd.pack(first, out=twice, top_k=top_k, tail_temperatures=(1, 4), progress=False)
            for one, other in zip(open_cache(direct).teachers, open_cache(twice).teachers, strict=True):
                assert one.shape == other.shape
                assert one.provenance == other.provenance
                for name in (*DATA_SETS, "logits", "classes", "label_logit"):
                    assert np.array_equal(one.read(name, 0), other.read(name, 0)), name
                np.testing.assert_allclose(one.read("tail", 0), other.read("tail", 0), rtol=1e-5, atol=1e-5)


def test_a_copy_with_fewer_teachers_has_weights_of_its_own(caches: dict[str, Path], tmp_path: Path) -> None:
    demkd.pack(caches["all"], out=tmp_path / "one", teachers=["b"], progress=False)
    cache = open_cache(tmp_path / "one")
    assert cache.names == ("b",)
    assert (cache.teacher_weights.values == 1).all()


def test_the_teachers_can_go_on_with_a_copy(caches: dict[str, Path], small: Path, tmp_path: Path) -> None:
    """They add a view; what was there stays, the note on it too, and the old digests go."""
    folder = tmp_path / "grown"
    shutil.copytree(small, folder)
    before = {name: np.array(open_cache(folder).teachers[0].read(name, 1)) for name in ("logits", "tail")}
    demkd.cache_teachers(TEACHERS, data(), out=folder, views=3, top_k=KEEP, features=(), **SILENT)
    grown, dense = open_cache(folder), open_cache(caches["all"])
    assert grown.num_views == 3
    assert np.array_equal(grown.read_view(2).entropy, dense.read_view(2).entropy)
    assert "rounded" in grown.teachers[0].provenance.notes["packed"]
    for name, values in before.items():
        assert np.array_equal(grown.teachers[0].read(name, 1), values)
    assert "SHA256SUMS" not in names_in(folder)
    assert demkd.verify(folder, progress=False).sound


@pytest.mark.parametrize("count", [1, 4])
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
            expected = counting.values(["logits", *DATA_SETS, "features/pool"], slot, everyone, teacher=number)
            for name, values in expected.items():
                assert np.array_equal(teacher.read(name, slot), values.astype(teacher.read(name, slot).dtype)), name
    assert demkd.verify(tmp_path / "copy", progress=False).sound


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"views": 4}, DataError, "`views` is 4, but .* has 3: choose 1 to 3"),
        ({"top_k": CLASSES}, CacheValueError, f"`top_k` is {CLASSES}, and there are 11"),
        ({"top_k": 2, "tail_temperatures": (0,)}, CacheValueError, "`tail_temperatures` are"),
        ({"tail_temperatures": (1,)}, CacheValueError, "`tail_temperatures` needs `top_k`"),
        ({"features": "other"}, CacheValueError, "teacher a has no features 'other'; it has "),
        ({"teachers": ["c"]}, UserError, "there is no teacher 'c'"),
    ],
)
def test_what_there_is_not_cannot_be_packed(
    caches: dict[str, Path], tmp_path: Path, options: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        demkd.pack(caches["all"], out=tmp_path / "copy", progress=False, **options)
    assert not (tmp_path / "copy").exists()
    with pytest.raises(CacheMismatchError, match="is the cache itself"):
        demkd.pack(caches["all"], out=caches["all"] / ".." / "all", progress=False)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"teachers": ["a"]}, "has teacher b already, which is not to be packed"),
        ({"views": 1}, "has more of teacher a than is to be packed"),
        ({"top_k": 2}, "was made from something else: logits.* is"),
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


def test_a_full_disk_is_found_first(caches: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CacheSpaceError, match="more bytes, and 1,000 are free"):
        demkd.pack(caches["all"], out=tmp_path / "copy", progress=False)


def test_a_damaged_answer_is_not_copied(caches: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(caches["all"], tmp_path / "cache")
    extent = open_cache(tmp_path / "cache").teachers[1].files[0].header.contents["logits"]
    counting.flip(tmp_path / "cache" / "b.00001-of-00001.h5", extent.offset + 5)
    with pytest.raises(UserError, match="logits of teacher b, view 0, rows 0 to 59 do not match their checksum"):
        demkd.pack(tmp_path / "cache", out=tmp_path / "copy", top_k=2, progress=False)
    assert "SHA256SUMS" not in names_in(tmp_path / "copy")


def replaced_by_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)  # opening it to read would block


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda at, _: [(at / name).unlink() for name in ("b.00001-of-00001.h5", "weights.h5")],
            "b.00001-of-00001.h5 is not there",
        ),
        (
            lambda at, others: shutil.copy(others / "b.00001-of-00001.h5", at / "b.00001-of-00001.h5"),
            "b.00001-of-00001.h5 is not the file that was packed",
        ),
        (
            lambda at, others: shutil.copy(others / "b.00001-of-00001.h5", at / "c.00001-of-00001.h5"),
            "c.00001-of-00001.h5 was not packed with the others",
        ),
        (lambda at, _: (at / "SHA256SUMS").write_text("no list\n"), "is no list of digests"),
        (
            lambda at, _: replaced_by_a_pipe(at / "b.00001-of-00001.h5"),
            "b.00001-of-00001.h5 is not the file that was packed",
        ),
        (lambda at, _: replaced_by_a_pipe(at / "SHA256SUMS"), "is no list of digests"),
    ],
)
def test_what_did_not_arrive_as_it_was_sent_is_found(
    caches: dict[str, Path], small: Path, tmp_path: Path, change: Callable[[Path, Path], object], why: str
) -> None:
    """Also where each file is sound in itself."""
    folder = tmp_path / "arrived"
    shutil.copytree(small, folder)
    change(folder, caches["all"])
    report = demkd.verify(folder, progress=False)
    assert not report.sound
    (sums,) = (file for file in report.files if file.name == "SHA256SUMS")
    assert any(why in fault.text for fault in sums.faults), sums


def test_a_link_or_a_pipe_in_place_of_a_draft_is_removed(caches: dict[str, Path], tmp_path: Path) -> None:
    precious, out = tmp_path / "precious", tmp_path / "copy"
    precious.write_text("mine")
    out.mkdir()
    (out / ".gitignore.creating").symlink_to(precious)
    os.mkfifo(out / "SHA256SUMS.creating")
    demkd.pack(caches["all"], out=out, views=1, progress=False)
    assert precious.read_text() == "mine"
    assert demkd.verify(out, progress=False).sound


def test_the_digests_are_those_that_sha256sum_checks(small: Path) -> None:
    lines = [line.split("  ") for line in (small / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in lines} == {"a.00001-of-00001.h5", "b.00001-of-00001.h5", "weights.h5"}
    for digest, name in lines:
        assert hashlib.sha256((small / name).read_bytes()).hexdigest() == digest


def test_a_readme_is_never_overwritten(caches: dict[str, Path], small: Path, tmp_path: Path) -> None:
    assert (small / "README.md").read_text().startswith("---")
    (tmp_path / "README.md").write_text("mine")
    demkd.pack(caches["all"], out=tmp_path, progress=False)
    assert (tmp_path / "README.md").read_text() == "mine"
