"""Logits in 8 bits: half the bytes, all classes, and what is computed before they are rounded stays exact."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import demkd
from demkd.cache import CacheMismatchError, CacheValueError, open_cache
from tests.pipeline.test_top_k import SILENT, TEACHERS, data


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same teachers and views with both encodings."""
    folder = tmp_path_factory.mktemp("eight-bits")
    for encoding in ("float16", "uint8"):
        demkd.cache_teachers(TEACHERS, data(), out=folder / encoding, views=3, logits=encoding, **SILENT)
    return {encoding: folder / encoding for encoding in ("float16", "uint8")}


def logits(cache: Path, view: int) -> list[torch.Tensor]:
    opened = open_cache(cache)
    opened.check_logits(view, temperatures=[])
    return [torch.from_numpy(one.astype(np.float32)) for one in opened.logits(view, slice(None), temperature=1.0)]


def test_everything_but_the_logits_is_the_same_and_they_are_near(caches: dict[str, Path]) -> None:
    """The error of a softmax is what was measured: at most some 1e-4 in KL, beside 7e-7 for float16."""
    one, other = open_cache(caches["float16"]), open_cache(caches["uint8"])
    for view in range(3):
        exact, encoded = one.read_view(view), other.read_view(view)
        for name in ("entropy", "prediction", "params", "teacher_weights"):
            assert np.array_equal(getattr(exact, name), getattr(encoded, name)), name
        for z, w in zip(logits(caches["float16"], view), logits(caches["uint8"], view), strict=True):
            assert torch.equal(z.argmax(1), w.argmax(1))
            for temperature in (1.0, 4.0):
                p, q = torch.log_softmax(z / temperature, 1), torch.log_softmax(w / temperature, 1)
                assert torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(1).max() < 5e-4
    rows = [cache.teachers[0].shape.logit_sets()["logits"] for cache in (one, other)]
    assert [dtype for _, dtype in rows] == ["<f2", "|u1"]


def test_students_learn_nearly_the_same(caches: dict[str, Path], tmp_path: Path) -> None:
    losses = []
    for encoding, cache in caches.items():
        options = {"train": data(), "test": data(), "cache": cache, "method": "de-mkd", "epochs": 1, **SILENT}
        demkd.distill("resnet8", out=tmp_path / encoding, batch_size=20, **options)
        losses.append(json.loads((tmp_path / encoding / "metrics.jsonl").read_text())["losses"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_a_cache_grows_is_computed_again_and_inspected(caches: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"logits": "uint8", **SILENT}
    demkd.cache_teachers(TEACHERS, data(), out=tmp_path, views=2, **options)
    demkd.cache_teachers(TEACHERS, data(), out=tmp_path, views=3, **options)
    for path in sorted(caches["uint8"].glob("*.h5")):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    report = demkd.recompute(tmp_path, TEACHERS, data(), pairs=40, **SILENT)
    assert report.sound
    assert all(found.agrees and found.top1_agreement == 1 for found in report.recomputed)
    assert demkd.inspect(tmp_path, sample=5)
    with pytest.raises(CacheMismatchError, match=r"logits\.encoding is uint8 in the cache and \(absent\) now"):
        demkd.cache_teachers(TEACHERS, data(), out=tmp_path, views=3, **SILENT)
    with pytest.raises(CacheValueError, match="`top_k` and `logits=uint8` exclude each other"):
        demkd.cache_teachers(TEACHERS, data(), out=tmp_path / "both", views=3, top_k=2, **options)


def test_a_packed_copy_is_what_stage_one_would_have_written(caches: dict[str, Path], tmp_path: Path) -> None:
    """But for the rounding to float16 before; the teachers can extend it, and it can be packed to fewer logits."""
    demkd.pack(caches["float16"], out=tmp_path / "copy", logits="uint8", progress=False)
    copied, direct = open_cache(tmp_path / "copy"), open_cache(caches["uint8"])
    for one, other in zip(copied.teachers, direct.teachers, strict=True):
        assert one.provenance.identity == other.provenance.identity
        assert "rounded" in one.provenance.notes["packed"]
        steps = one.read("logits", 1).astype(int) - other.read("logits", 1).astype(int)
        assert np.abs(steps).max() <= 1
    demkd.cache_teachers(TEACHERS, data(), out=tmp_path / "copy", views=4, logits="uint8", **SILENT)
    assert open_cache(tmp_path / "copy").num_views == 4
    demkd.pack(caches["uint8"], out=tmp_path / "few", top_k=3, progress=False)
    readmes = [(tmp_path / name / "README.md").read_text() for name in ("copy", "few")]
    assert "logits are uint8: all" in readmes[0]
    assert "logits are float16: the 3 largest" in readmes[1]
    few = open_cache(tmp_path / "few").teachers[0]
    assert np.array_equal(few.read("classes", 0)[:, 0], few.read("prediction", 0))
    with pytest.raises(CacheValueError, match="exclude each other"):
        demkd.pack(caches["float16"], out=tmp_path / "x", top_k=2, logits="uint8", progress=False)
