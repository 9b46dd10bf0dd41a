"""Of an answer only the largest logits: what must stay exact does, what is spread is spread as said, or is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import demkd
from demkd.cache import CacheMismatchError, CacheMissingError, CacheShape, open_cache
from demkd.config import METHODS, choose_method
from demkd.losses.dkd import log_parts
from demkd.pipeline.stage_one import kept_logits
from demkd.pipeline.teacher_targets import CachedTeachers
from tests.cache.counting import flip
from tests.pipeline.stages import Recorder

CLASSES, SAMPLES, KEEP = 12, 60, 4
SILENT: dict[str, Any] = {"progress": False, "precision": "float32", "device": "cpu"}


def network(seed: int, *, scale: float = 8.0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )
    made[4].weight.data *= scale  # sure of something
    return made


def data() -> tuple[Tensor, Tensor]:
    pixels = torch.randint(0, 256, (SAMPLES, 16, 16, 3), dtype=torch.uint8, generator=torch.manual_seed(7))
    return pixels, torch.arange(SAMPLES) % CLASSES


TEACHERS = {"a": network(1), "b": network(2)}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same answers, all of them and the four largest, these also with the others' sum at more temperatures."""
    folder = tmp_path_factory.mktemp("caches")
    for name, top_k in (("all", None), ("top", KEEP)):
        demkd.cache_teachers(TEACHERS, data(), out=folder / name, views=3, top_k=top_k, **SILENT)
    many = {"views": 1, "top_k": KEEP, "tail_temperatures": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 10.0)}
    demkd.cache_teachers(TEACHERS, data(), out=folder / "warm", **many, **SILENT)
    return {name: folder / name for name in ("all", "top", "warm")}


def full(cache: Path, slot: int, teacher: int = 0) -> Tensor:
    return torch.from_numpy(open_cache(cache).logits(slot, slice(None), temperature=1.0)[teacher].astype(np.float32))


def spread(cache: Path, slot: int, *, temperature: float, teacher: int = 0) -> Tensor:
    return torch.from_numpy(open_cache(cache).logits(slot, slice(None), temperature=temperature)[teacher])


def test_entropy_prediction_and_weights_are_those_of_all_logits(caches: dict[str, Path]) -> None:
    dense, top = open_cache(caches["all"]), open_cache(caches["top"])
    for slot in range(3):
        one, other = dense.read_view(slot), top.read_view(slot)
        assert np.array_equal(one.entropy, other.entropy)
        assert np.array_equal(one.prediction, other.prediction)
        assert np.array_equal(one.params, other.params)
        assert one.teacher_weights is not None
        assert np.array_equal(one.teacher_weights, other.teacher_weights)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_the_target_class_part_is_exact_and_the_tail_is_spread(caches: dict[str, Path], temperature: float) -> None:
    """b and the kept logits as of all; the others together as probable as they were, and all alike."""
    labels = data()[1]
    for slot in range(3):
        dense, found = full(caches["all"], slot), spread(caches["top"], slot, temperature=temperature)
        exact = log_parts(dense, labels, temperature=temperature).binary
        torch.testing.assert_close(log_parts(found, labels, temperature=temperature).binary, exact, rtol=0, atol=1e-3)
        p, q = (torch.softmax(z / temperature, 1) for z in (dense, found))
        kept = torch.zeros_like(p, dtype=torch.bool).scatter(1, dense.topk(KEEP).indices, value=True)
        kept |= torch.nn.functional.one_hot(labels, CLASSES).bool()
        torch.testing.assert_close(p[kept], q[kept], rtol=0, atol=1e-3)
        torch.testing.assert_close(p.masked_fill(kept, 0).sum(1), q.masked_fill(kept, 0).sum(1), rtol=0, atol=2e-3)
        tail = found.masked_fill(kept, torch.nan).numpy()
        assert np.nanmax(tail, 1) == pytest.approx(np.nanmin(tail, 1))


def test_kept_logits_are_the_definition() -> None:
    """Also where the label is among the largest, where nothing is left, and for logits of any size."""
    torch.manual_seed(0)
    logits = torch.randn(200, CLASSES) * torch.tensor([1.0, 30.0, 1e4, 1e-3]).repeat(50)[:, None]
    labels = torch.arange(200) % CLASSES
    for top_k in (1, 4, CLASSES - 1):
        shape = CacheShape(num_views=1, samples=200, classes=CLASSES, top_k=top_k, tail_temperatures=(1.0, 4.0))
        kept = kept_logits(logits, labels, shape)
        assert {name: tuple(value.shape) for name, value in kept.items()} == {
            "logits": (200, top_k), "classes": (200, top_k), "label_logit": (200,), "tail": (200, 2),
        }  # fmt: skip
        for row in range(200):
            order = sorted(range(CLASSES), key=lambda c: -logits[row, c].item())[:top_k]
            assert kept["classes"][row].tolist() == order
            others = [c for c in range(CLASSES) if c not in order and c != int(labels[row])]
            for column, temperature in enumerate((1.0, 4.0)):
                expected = torch.logsumexp(logits[row, others].double() / temperature, 0) if others else torch.zeros(())
                assert kept["tail"][row, column].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    assert all(torch.isfinite(value.float()).all() for value in kept.values())


@pytest.mark.parametrize(
    "method",
    [
        name
        for name, one in METHODS.items()
        if one.needs_teachers and one.loss not in ("rank", "crld") and not one.standardize
    ],
)
def test_every_method_learns_from_kept_logits(caches: dict[str, Path], tmp_path: Path, method: str) -> None:
    """The target-class loss as from all logits; the others near."""
    losses = {}
    for name in ("all", "warm"):
        told = Recorder()
        cache = caches[name]
        options = {**SILENT, "progress": told, "epochs": 1, "views": 1, "batch_size": SAMPLES, "test": data()}
        demkd.distill(network(3, scale=1.0), train=data(), cache=cache, method=method, out=tmp_path / name, **options)
        losses[name] = told.reports[0].losses
        assert told.reports[0].teachers is not None
    dense, top = losses["all"], losses["warm"]
    for name in {"label_loss", "target_class_kd", "hint_loss"} & dense.keys():
        assert top[name] == pytest.approx(dense[name], rel=2e-3)
    for name in dense.keys() - {"label_loss", "target_class_kd", "hint_loss", "loss"}:
        assert 0 < abs(top[name] - dense[name]) < 0.5 * dense[name]


LACKS = "at the temperatures 1, 2, 4, but {} is needed: choose one"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"method": "de-mkd-logits", "temperature": 3.0}, LACKS.format(3)),
        ({"method": "de-mkd-logits", "entropy_temperature": 3.0}, LACKS.format(3)),
        ({"method": "ca-mkd", "entropy_temperature": 5.0}, LACKS.format(5)),
        ({"method": "ttm"}, LACKS.format(10)),
        ({"method": "mlkd"}, LACKS.format(3)),
        ({"method": "kd-ls"}, "`standardize` needs the mean and deviation of all logits, and teacher a was cached"),
        ({"method": "rank"}, "`loss=rank` needs the mean and deviation of all logits, and teacher a was cached"),
        ({"method": "ebkd", "entropy_logits": "standardized"}, "`entropy_logits=standardized` needs the mean"),
    ],
)
def test_what_the_largest_logits_cannot_give_is_refused(
    caches: dict[str, Path], tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(CacheMissingError, match=why):
        demkd.distill(
            network(3), train=data(), test=data(), cache=caches["top"], out=tmp_path / "run", **options, **SILENT
        )
    assert not (tmp_path / "run").exists()


def test_another_number_of_logits_is_another_file(caches: dict[str, Path]) -> None:
    for top_k in (None, KEEP + 1):
        with pytest.raises(CacheMismatchError, match=r"logits\.top_k is"):
            demkd.cache_teachers(TEACHERS, data(), out=caches["top"], views=3, top_k=top_k, **SILENT)


def test_a_cache_of_kept_logits_is_inspected_verified_and_repaired(caches: dict[str, Path], tmp_path: Path) -> None:
    demkd.cache_teachers(TEACHERS, data(), out=tmp_path, views=3, top_k=KEEP, **SILENT)
    found = demkd.inspect(tmp_path, sample=5, view_index=1)
    expected = torch.softmax(full(caches["all"], 1)[5], 0).sort(descending=True)
    assert found["predictions"][0]["probabilities"][:KEEP] == pytest.approx(expected.values[:KEEP].tolist(), abs=1e-3)
    top, everything = (demkd.inspect(folder)["teachers"][0]["entropy"] for folder in (tmp_path, caches["all"]))
    assert top == pytest.approx(everything)
    assert demkd.verify(tmp_path, progress=False).sound
    report = demkd.recompute(tmp_path, TEACHERS, data(), pairs=40, **SILENT)
    assert report.sound
    assert [one.top1_agreement for one in report.recomputed] == [1.0, 1.0]
    before = {name: open_cache(tmp_path).teachers[0].read(name, 2).copy() for name in ("classes", "tail", "logits")}
    file = open_cache(tmp_path).teachers[0]
    for name in ("classes", "tail"):
        flip(
            file.path,
            file.files[0].header.contents[name].offset + file.files[0].header.contents[name].view_bytes * 2 + 3,
        )
    assert not demkd.verify(tmp_path, progress=False).sound
    demkd.cache_teachers(TEACHERS, data(), out=tmp_path, views=3, top_k=KEEP, **SILENT)
    for name, values in before.items():
        assert np.array_equal(open_cache(tmp_path).teachers[0].read(name, 2), values)


def test_the_same_logits_of_other_classes_are_another_answer(tmp_path: Path) -> None:
    """Code that changed below the same weights: the largest logits are the same numbers, each of the next class."""
    demkd.cache_teachers({"a": network(1)}, data(), out=tmp_path, views=2, top_k=KEEP, **SILENT)
    changed = network(1)
    changed[4].register_forward_hook(lambda _module, _inputs, logits: logits.roll(1, 1))
    (found,) = demkd.recompute(tmp_path, {"a": changed}, data(), pairs=20, **SILENT).recomputed
    assert not found.agrees
    with pytest.raises(CacheMismatchError, match=r"now gives other logits .* than when the cache was started"):
        demkd.cache_teachers({"a": changed}, data(), out=tmp_path, views=3, top_k=KEEP, **SILENT)


def test_more_classes_than_16_bits_count_are_answered(tmp_path: Path) -> None:
    """The last of 70,000 classes is predicted, kept and learnt from as any other."""
    classes = 70_000
    pixels, labels = torch.zeros(8, 4, 4, 3, dtype=torch.uint8), torch.full((8,), classes - 1)
    made = nn.Sequential(nn.Flatten(), nn.Linear(48, classes))
    made[1].bias.data[classes - 1] = 9.0
    data = demkd.ArrayDataset(
        name="many", split="train", pixels=pixels, labels=labels, class_names=tuple(map(str, range(classes)))
    )
    demkd.cache_teachers({"a": made}, data, out=tmp_path, views=1, top_k=3, features=(), augment="crop-flip",
                         normalize="none", **SILENT)  # fmt: skip
    file = open_cache(tmp_path).teachers[0]
    assert (file.read("prediction", 0) == classes - 1).all()
    logits = torch.from_numpy(file.logits(0, slice(None), temperature=4.0))
    with torch.no_grad():
        expected = made(torch.zeros(8, 3, 4, 4))
    torch.testing.assert_close(
        torch.softmax(logits / 4, 1)[:, -1], torch.softmax(expected / 4, 1)[:, -1], rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, method) for name in ("all", "top") for method in ("kd", "crld", "ebkd", "de-mkd-logits", "ca-mkd")]
    + [("all", method) for method in ("kd-ls", "dist", "mlkd-ls", "wttm", "ofa")]
    + [("warm", method) for method in ("dist", "mlkd", "wttm", "ofa")],
)
def test_targets_fused_by_batch_are_those_of_the_whole_view(caches: dict[str, Path], method: str, name: str) -> None:
    """For targets beyond what is kept in memory; every field of every row, to the bit."""
    cache, labels = open_cache(caches[name]), data()[1]
    chosen = choose_method(method, hint_weight=0.0)
    whole = CachedTeachers(cache, labels, chosen, seed=0)
    batched = CachedTeachers(cache, labels, chosen, seed=0, target_bytes=0)
    for view_index in range(min(2, cache.num_views)):
        one, other = whole.read_view(view_index), batched.read_view(view_index)
        assert one.soft is not None
        assert other.soft is None
        assert torch.equal(one.params, other.params)
        for indices in torch.split(torch.randperm(SAMPLES, generator=torch.manual_seed(0)), 16):
            stored, fused = one.targets(indices).soft, other.targets(indices).soft
            assert type(stored) is type(fused)
            for field in stored.__dataclass_fields__:  # type: ignore[union-attr]
                assert torch.equal(getattr(stored, field), getattr(fused, field))


def test_probabilities_are_of_temperature_1_or_refused(caches: dict[str, Path], tmp_path: Path) -> None:
    """The others' share at temperature 4 is not their share at 1."""
    for name, temperatures in (("both", (0.5, 1.0, 4.0)), ("four", (4.0,))):
        out = tmp_path / name
        demkd.cache_teachers(TEACHERS, data(), out=out, views=1, top_k=KEEP, tail_temperatures=temperatures, **SILENT)
    found = demkd.inspect(tmp_path / "both", sample=5)
    expected = torch.softmax(full(caches["all"], 0)[5].double(), 0).sort(descending=True).values[:KEEP]
    assert found["predictions"][0]["probabilities"][:KEEP] == pytest.approx(expected.tolist(), abs=1e-3)
    for arguments in ({"sample": 5}, {"label_issues": 3}):
        with pytest.raises(demkd.UserError, match=r"but 1 is needed: .*cache it again with it"):
            demkd.inspect(tmp_path / "four", **arguments)  # type: ignore[arg-type]
