"""A cached teacher is exactly as good as a live one, and nothing but the seeds decides what a student meets."""

import json
import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import demkd
from demkd.cache import CacheDamagedError, CacheMissingError, open_cache, write_weights
from demkd.config import METHOD, ConfigError
from demkd.dataset import BatchApply, CropFlip, DataError, augmentation_from, load_images
from demkd.losses import entropy
from demkd.losses.weights import DEFAULT_WEIGHTING, entropy_weights
from demkd.pipeline.targets import SoftTargetLoader
from demkd.teachers.load import InputChoice, TeacherSpec, load_teacher
from tests.pipeline.stages import FLOAT32, TEACHERS, Recorder, Workshop, cache_run

HALF = 2.0**-11  # the relative rounding of float16


@pytest.mark.parametrize("network", TEACHERS)
def test_every_view_is_what_the_live_teacher_predicts(workshop: Workshop, network: str) -> None:
    """Logits within float16's rounding, entropies and predictions from before it, features, for all views."""
    images = load_images(str(workshop.data), split="train")
    spec = TeacherSpec(name=network, checkpoint=workshop.folder / network)
    teacher, _ = load_teacher(spec, dataset=images, compute=FLOAT32, choice=InputChoice())
    file = next(file for file in open_cache(workshop.cache).teachers if file.name == network)
    apply = images.batch_apply(augmentation_from(file.provenance.identity["views"]), FLOAT32.device)
    rounding = {"rtol": HALF * 1.01, "atol": 1e-4}
    for view in range(5):
        params = torch.from_numpy(file.read("params", view).astype(np.int64))
        live = teacher.predict(apply(torch.arange(len(images)), params), features=[teacher.hint_layer])
        torch.testing.assert_close(_floats(file.read("logits", view)), live.logits, **rounding)
        torch.testing.assert_close(_floats(file.read("entropy", view)), entropy(live.logits), rtol=0, atol=1e-5)
        assert np.array_equal(file.read("prediction", view), live.logits.argmax(1))
        cached = file.read(f"features/{teacher.hint_layer}", view)
        torch.testing.assert_close(_floats(cached), live.features[teacher.hint_layer], **rounding)


def test_precomputed_weights_are_those_of_the_entropies(workshop: Workshop) -> None:
    cache = open_cache(workshop.cache)
    for view in range(5):
        cached = cache.read_view(view)
        expected = entropy_weights(torch.from_numpy(cached.entropy))
        torch.testing.assert_close(torch.from_numpy(np.array(cached.teacher_weights)), expected, rtol=0, atol=1e-7)


@pytest.fixture
def cache_copy(workshop: Workshop, tmp_path: Path) -> Path:
    return Path(shutil.copytree(workshop.cache, tmp_path / "cache"))


def student_bytes(folder: Path) -> bytes:
    return (folder / "student.safetensors").read_bytes()


def test_the_cache_of_a_folder_has_the_paths_of_its_images(workshop: Workshop) -> None:
    images = load_images(str(workshop.data), split="train")
    with open_cache(workshop.cache) as cache:
        assert [cache.file_of(index) for index in range(60)] == [images.file_of(index) for index in range(60)]
        assert cache.file_of(0) == "ant/000.png"


def test_a_default_student_learns_from_stored_weights(workshop: Workshop, cache_copy: Path, tmp_path: Path) -> None:
    """Other weights there give another student; without the file, the cached entropies give the same one."""
    assert METHOD == "de-mkd"
    told: dict[str, list[str]] = {}

    def student(name: str) -> bytes:
        recorder = Recorder()
        workshop.distill(tmp_path / name, cache=cache_copy, method=METHOD, progress=recorder)
        told[name] = [note for note in recorder.notes if "weights" in note]
        return student_bytes(tmp_path / name)

    plain = student("plain")
    cache = open_cache(cache_copy)
    values = np.roll(np.array(cache.teacher_weights.values), 1, axis=0)  # type: ignore[union-attr]
    write_weights(cache_copy, cache.teachers, values, weighting=DEFAULT_WEIGHTING)
    assert student("altered") != plain
    (cache_copy / "weights.h5").unlink()
    assert student("without") == plain
    names = ", ".join(sorted(TEACHERS))
    note = f"weights.h5 has no weights of {names}: they are computed from the cached entropies"
    assert told == {"plain": [], "altered": [], "without": [note]}


def test_a_student_that_predicts_one_class_and_a_longer_run_are_explained(workshop: Workshop, tmp_path: Path) -> None:
    class Constant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def forward(self, images: Tensor) -> Tensor:
            return 1e-6 * self.layer(images.mean((2, 3))) + torch.tensor([0.0, 9.0, 0.0])

    recorder, options = Recorder(), {"train": str(workshop.data), "out": tmp_path / "run", "precision": "float32"}
    demkd.train(Constant(), **options, epochs=1, progress=recorder)
    # Its label loss of 6 nats is also far above that of guessing.
    assert [text.partition(":")[0].partition(" in ")[0] for text in recorder.warnings] == [
        "training is unstable",
        "the student predicts one class for all test images",
    ]
    with pytest.raises(ConfigError, match=r"has 1 epochs.* train longer, start a run in another folder \(`out`\)"):
        demkd.train(Constant(), **options, epochs=2, progress=False)


@pytest.mark.parametrize(("border", "better"), [(75 / 255, False), (150 / 255, True)])
def test_a_student_better_than_its_teachers_gets_a_warning(tmp_path: Path, border: float, better: bool) -> None:
    """Gray images whose labels are their shades; a teacher without submodules that errs at one shade, or at none."""
    shades = torch.tensor([0, 100, 50, 200]).repeat(32)
    labels = torch.tensor([0, 1, 0, 1]).repeat(32)
    images = shades[:, None, None, None].expand(128, 8, 8, 3).to(torch.uint8)

    class Teacher(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([torch.full((len(images),), border), images.amax((1, 2, 3))], 1)

    recorder = Recorder()
    data, cache, plain = (images, labels), tmp_path / "cache", "0,0,0/1,1,1"
    demkd.cache_teachers({"a": Teacher()}, data, out=cache, views=1, features=(), normalize=plain, progress=False)
    demkd.distill(
        "resnet8", cache=cache, train=data, test=data, out=tmp_path / "run", method="kd", kd_weight=0.01, epochs=4,
        batch_size=16, schedule="one-cycle", normalize=plain, progress=recorder,
    )  # fmt: skip
    told = [text for text in recorder.warnings if text.startswith("the student has top-1 100.0% on the training")]
    assert len(told) == better


@pytest.mark.parametrize(("changes", "unstable"), [({}, False), ({"kd_weight": 1e3, "learning_rate": 0.5}, True)])
def test_a_run_whose_first_steps_explode_gets_a_warning(
    workshop: Workshop, tmp_path: Path, changes: dict[str, Any], unstable: bool
) -> None:
    recorder = Recorder()
    workshop.distill(tmp_path / "run", method="dist-entropy", epochs=2, progress=recorder, **changes)
    found = [text for text in recorder.warnings if text.startswith("training is unstable in epoch 1: label loss")]
    assert len(found) == unstable
    assert all("lower `kd_weight` or `learning_rate`, or raise `warmup`" in text for text in found)


def test_a_method_with_another_weighting_reads_no_weights(workshop: Workshop, cache_copy: Path, tmp_path: Path) -> None:
    (cache_copy / "weights.h5").write_bytes(b"damaged")
    with pytest.raises(CacheDamagedError, match=r"weights\.h5"):
        workshop.distill(tmp_path / "default", cache=cache_copy)
    for name, ends in (("kd", []), ("ebkd", ["(weight_form=one_minus_share); weights.h5 is not read"])):
        recorder = Recorder()
        workshop.distill(tmp_path / name, cache=cache_copy, method=name, progress=recorder)
        found = [note for note in recorder.notes if "weights" in note]
        assert all(note.endswith(end) for note, end in zip(found, ends, strict=True))


@pytest.mark.parametrize(
    ("method", "method_options"),
    [
        *((name, {}) for name in ("ebkd", "ca-mkd", "de-mkd")),  # test_several_views.py has others
        ("de-mkd", {"shuffle": "teachers", "weight_tau": 0.05}),
    ],
)
def test_cached_equals_online(workshop: Workshop, tmp_path: Path, method: str, method_options: dict[str, Any]) -> None:
    """The same views, the same seed: every term of every epoch's loss agrees within what float16 rounds away.

    At a small learning rate: training amplifies any difference, rounding too, from step to step.
    """
    cached, online = Recorder(), Recorder()
    options: dict[str, Any] = {"method": method, "epochs": 2, "learning_rate": 1e-4, "seed": 1, **method_options}
    workshop.distill(tmp_path / "cached", progress=cached, **options)
    workshop.distill(tmp_path / "online", progress=online, online=True, **options)
    for one, other in zip(cached.reports, online.reports, strict=True):
        assert one.view_index == other.view_index
        assert one.losses.keys() == other.losses.keys()
        for name, value in one.losses.items():
            assert math.isclose(value, other.losses[name], rel_tol=1e-3, abs_tol=1e-4), name
        assert one.teachers.mean_weight == pytest.approx(other.teachers.mean_weight, abs=1e-3)
        assert one.teachers.top1 == pytest.approx(other.teachers.top1)


def test_wrong_labels_change_what_looks_at_labels_and_no_cached_logit(workshop: Workshop, tmp_path: Path) -> None:
    """Half of the labels wrong: teachers look worse, the entropies are as before, and cached equals online."""
    clean, cached, online = Recorder(), Recorder(), Recorder()
    options: dict[str, Any] = {"method": "dkd", "batch_size": 60}
    workshop.distill(tmp_path / "clean", progress=clean, **options)
    workshop.distill(tmp_path / "cached", progress=cached, label_noise=0.5, **options)
    workshop.distill(tmp_path / "online", progress=online, label_noise=0.5, online=True, **options)
    assert cached.reports[0].losses == pytest.approx(online.reports[0].losses, rel=5e-4)
    assert cached.reports[0].losses["label_loss"] != pytest.approx(clean.reports[0].losses["label_loss"], rel=5e-4)
    before, after = clean.reports[0].teachers, cached.reports[0].teachers
    assert sum(after.top1) < sum(before.top1)
    assert after.mean_entropy == before.mean_entropy
    with pytest.raises(ConfigError, match=r"label_noise was 0\.5 and is 0\.25"):
        workshop.distill(tmp_path / "cached", label_noise=0.25, **options)


def test_batch_size_resume_and_source_do_not_change_which_view_a_sample_gets(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_apply = CropFlip.batch_apply

    def views_of(name: str, **options: Any) -> dict[int, list[int]]:
        """The parameters that every sample was shown with, in every batch of training."""
        shown: dict[int, list[int]] = defaultdict(list)

        def noted(policy: CropFlip, pixels: Tensor) -> BatchApply:
            apply = batch_apply(policy, pixels)

            def note(indices: Tensor, params: Tensor) -> Tensor:
                if len(pixels) == 60 and torch.is_grad_enabled():
                    for index, (number,) in zip(indices.tolist(), params.tolist(), strict=True):
                        shown[index].append(number)
                return apply(indices, params)

            return note

        with monkeypatch.context() as patch:
            patch.setattr(CropFlip, "batch_apply", noted)
            if options.pop("interrupted", False):
                with pytest.raises(KeyboardInterrupt):
                    workshop.distill(tmp_path / name, epochs=2, progress=Recorder(interrupt_after=1), **options)
            workshop.distill(tmp_path / name, epochs=2, **options)
        return shown

    plain = views_of("plain", method="kd")
    table = np.stack([open_cache(workshop.cache).params(view) for view in range(5)])
    views = [line["view_index"] for line in _numbers(tmp_path / "plain" / "metrics.jsonl")]
    for index, shown in plain.items():
        assert shown == [int(table[view, index, 0]) for view in views]
    assert views_of("other-batches", method="kd", batch_size=7) == plain
    assert views_of("resumed", method="kd", interrupted=True) == plain
    assert views_of("labels-only", method="ce") == plain
    assert views_of("online", method="kd", online=True) == plain
    assert views_of("another-seed", method="kd", seed=1) != plain


def test_a_resumed_student_is_bit_identical_and_not_trained_again(workshop: Workshop, tmp_path: Path) -> None:
    """Also after a kill between an epoch's line and its checkpoint, and one in the middle of a line."""
    first = workshop.distill(tmp_path / "whole", epochs=4)
    parts = tmp_path / "parts"
    for stop in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            workshop.distill(parts, epochs=4, progress=Recorder(interrupt_after=stop))
    with (parts / "metrics.jsonl").open("a") as file:
        last = (parts / "metrics.jsonl").read_text().splitlines()[-1]
        file.write(last.replace('"epoch": 3', '"epoch": 4') + '\n{"epoch": 5, "los')
    assert workshop.distill(parts, epochs=4).resumed_after == 3
    for name in ("student.safetensors", "recipe.toml"):
        assert (tmp_path / "whole" / name).read_bytes() == (parts / name).read_bytes(), name
    assert _numbers(tmp_path / "whole" / "metrics.jsonl") == _numbers(parts / "metrics.jsonl")

    again = Recorder()
    second = workshop.distill(parts, epochs=4, progress=again)
    assert again.reports == []
    assert (second.test_top1, second.resumed_after) == (first.test_top1, 4)
    with pytest.raises(ConfigError, match=r"epochs was 4 and is 5; learning_rate was 0\.02 and is 0\.1"):
        workshop.distill(parts, epochs=5, learning_rate=0.1)
    many = {"batch_size": 8, "epochs": 5, "learning_rate": 0.1, "momentum": 0.8, "temperature": 2.0, "warmup": 0.5}
    with pytest.raises(ConfigError, match=r"batch_size was 16 and is 8; .*temperature was .*; and 1 more\. Choose"):
        workshop.distill(parts, **many)


def test_a_subset_of_views(workshop: Workshop, tmp_path: Path) -> None:
    recorder = Recorder()
    workshop.distill(tmp_path / "run", views=2, epochs=4, progress=recorder)
    assert {report.view_index for report in recorder.reports} == {0, 1}
    with pytest.raises(DataError, match=r"`views` is 6, but the cache in .* has 5: choose 1 to 5"):
        workshop.distill(tmp_path / "more", views=6)
    with pytest.raises(DataError, match="`views=random` needs `live_teachers`"):
        workshop.distill(tmp_path / "random", views="random")
    workshop.distill(tmp_path / "live", method="kd", online=True, views="random", progress=recorder)
    assert recorder.reports[-1].view_index is None


def test_a_method_that_needs_features_gives_both_cures(workshop: Workshop, tmp_path: Path) -> None:
    bare = Workshop(data=workshop.data, folder=tmp_path)
    (tmp_path / "resnet8").symlink_to(workshop.folder / "resnet8")
    cache_run(bare, "resnet8", features=(), view_seed=7)
    with pytest.raises(CacheMissingError, match='`features=last`, which adds them, or choose `method="de-mkd-logits"`'):
        bare.distill(tmp_path / "run", views=1)
    bare.distill(tmp_path / "logits", views=1, method="de-mkd-logits")
    assert "\nview_seed = 7\n" in (tmp_path / "logits" / "recipe.toml").read_text(), "the seed of the cache"
    added = cache_run(bare, "resnet8", view_seed=7)
    assert added.teachers[0].features == {"stage3": (64,)}
    bare.distill(tmp_path / "features", views=1)


def statistics_of(workshop: Workshop, **options: Any) -> Any:
    """How the teachers of the cache's first epoch are weighted."""
    loader = SoftTargetLoader(workshop.cache, str(workshop.data), device="cpu", batch_size=60, **options)
    list(loader)
    return loader.statistics()


@pytest.mark.parametrize(
    "options",
    [
        {"weight_source": "agreement"},
        {"weight_source": "agreement", "shuffle": "teachers", "weight_level": "dataset"},
        {"entropy_logits": "standardized"},
        {"weight_source": "fixed", "fixed_weights": (0.5, 0.25, 0.25)},
        {"weight_form": "inverse", "weight_level": "dataset"},
        {"entropy_temperature": 4.0},
        {"wrong_teacher": "mask", "feature_weighting": "uniform"},
        {"weight_source": "cross_entropy"},
    ],
)
def test_every_weight_option_keeps_weights_that_sum_to_one(workshop: Workshop, options: dict[str, Any]) -> None:
    teachers = statistics_of(workshop, method="de-mkd", **options)
    assert sum(teachers.mean_weight) == pytest.approx(1, abs=1e-5)
    assert 1 <= teachers.effective_teachers <= 3 + 1e-5


def test_shuffled_samples_keep_the_teachers_mean_weights_and_shuffled_teachers_do_not(workshop: Workshop) -> None:
    options = {"method": "de-mkd-logits", "weight_tau": 0.05}
    plain, samples, teachers = (
        statistics_of(workshop, shuffle=shuffle, **options) for shuffle in ("none", "samples", "teachers")
    )
    assert samples.mean_weight == pytest.approx(plain.mean_weight, abs=1e-5)
    assert samples.wrong_above_uniform != plain.wrong_above_uniform
    assert teachers.mean_weight != pytest.approx(plain.mean_weight, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "views", "why"),
    [
        ({"shuffle": "samples"}, 5, "`shuffle=samples` needs all samples at once"),
        ({"weight_level": "dataset"}, 5, "`weight_level=dataset` needs all samples at once"),
        ({"shuffle": "teachers"}, "random", "drawn once per view, and `views=random` draws new views"),
        ({"weight_source": "fixed", "fixed_weights": (0.5, 0.5)}, 5, "has 2 numbers for 3 teachers"),
    ],
)
def test_weights_that_live_teachers_cannot_give_are_refused_before_anything_is_read(
    workshop: Workshop, tmp_path: Path, options: dict[str, Any], views: int | str, why: str
) -> None:
    nowhere = Workshop(data=tmp_path / "nowhere", folder=workshop.folder)
    with pytest.raises(ConfigError, match=why):
        nowhere.distill(tmp_path / "run", online=True, views=views, **options)


def _floats(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))


def _numbers(metrics: Path) -> list[dict[str, Any]]:
    """The lines without times and digests."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith(("seconds", "sha256"))} for line in lines]
