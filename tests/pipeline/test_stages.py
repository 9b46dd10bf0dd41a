"""A cached teacher is exactly as good as a live one, and nothing but the seeds decides what a student meets."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from demkd.cache import CacheMismatchError, CacheMissingError, open_cache
from demkd.dataset import CropFlip, Renderer, ViewsError, load_images, policy_of
from demkd.losses import entropy
from demkd.losses.weights import entropy_weights
from demkd.pipeline.loading import InputChoice, TeacherSpec, load_teacher
from demkd.pipeline.methods import METHODS, MethodError
from demkd.pipeline.recipe import RecipeError
from tests.pipeline.stages import FLOAT32, TEACHERS, Recorder, Workshop, cache_run, train_network

HALF = 2.0**-11  # the relative rounding of float16


@pytest.mark.parametrize("network", TEACHERS)
def test_every_slot_is_what_the_live_teacher_says(workshop: Workshop, network: str) -> None:
    """Logits within float16's rounding, entropies and predictions from before it, features, for all slots."""
    pictures = load_images(str(workshop.data), split="train")
    spec = TeacherSpec(name=network, checkpoint=workshop.folder / network)
    teacher, _ = load_teacher(spec, source=pictures, compute=FLOAT32, choice=InputChoice())
    file = next(file for file in open_cache(workshop.cache).teachers if file.name == network)
    everyone = torch.arange(len(pictures))
    render = pictures.renderer(policy_of(file.provenance.identity["views"]), FLOAT32.device)
    for slot in range(5):
        view = torch.from_numpy(file.read("view", slot).astype(np.int64))
        live = teacher.answer(render(everyone, view), features=[teacher.hint_layer])
        rounding = {"rtol": HALF * 1.01, "atol": 1e-4}
        torch.testing.assert_close(_floats(file.read("logits", slot)), live.logits, **rounding)
        torch.testing.assert_close(_floats(file.read("entropy", slot)), entropy(live.logits), rtol=0, atol=1e-5)
        assert np.array_equal(file.read("prediction", slot), live.logits.argmax(1))
        cached = file.read(f"features/{teacher.hint_layer}", slot)
        torch.testing.assert_close(_floats(cached), live.features[teacher.hint_layer], **rounding)


def test_precomputed_weights_are_those_of_the_entropies(workshop: Workshop) -> None:
    cache = open_cache(workshop.cache)
    for slot in range(5):
        answers = cache.read_slot(slot)
        assert answers.teacher_weights is not None
        expected = entropy_weights(torch.from_numpy(answers.entropy))
        torch.testing.assert_close(torch.from_numpy(np.array(answers.teacher_weights)), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "method_options"),
    [
        *((name, {}) for name in ("kd", "dkd", "ebkd", "ca-mkd", "de-mkd-logits", "de-mkd")),
        ("de-mkd", {"shuffle": "teachers", "weight_form": "softmax", "weight_tau": 0.05}),
    ],
)
def test_cached_equals_online(workshop: Workshop, tmp_path: Path, method: str, method_options: dict[str, Any]) -> None:
    """The same views, the same seed: every term of every epoch's loss agrees within what float16 rounds away.

    At a small learning rate: training amplifies any difference, rounding too, from step to step.
    """
    cached, online = Recorder(), Recorder()
    options: dict[str, Any] = {"method": method, "epochs": 2, "learning_rate": 1e-4, "seed": 1}
    options |= method_options
    workshop.distill(tmp_path / "cached", progress=cached, **options)
    workshop.distill(tmp_path / "online", progress=online, online=True, **options)
    for one, other in zip(cached.reports, online.reports, strict=True):
        assert one.slot == other.slot
        assert one.losses.keys() == other.losses.keys()
        for name, value in one.losses.items():
            assert math.isclose(value, other.losses[name], rel_tol=1e-3, abs_tol=1e-4), name
        assert one.teachers is not None
        assert other.teachers is not None
        assert one.teachers.mean_weight == pytest.approx(other.teachers.mean_weight, abs=1e-3)
        assert one.teachers.top1 == pytest.approx(other.teachers.top1)


def test_the_first_step_from_a_cache_is_the_first_step_online(workshop: Workshop, tmp_path: Path) -> None:
    """Before the runs can drift apart: one batch of all samples, each term to 4 digits."""
    cached, online = Recorder(), Recorder()
    workshop.distill(tmp_path / "cached", progress=cached, batch_size=60)
    workshop.distill(tmp_path / "online", progress=online, batch_size=60, online=True)
    assert cached.reports[0].losses == pytest.approx(online.reports[0].losses, rel=5e-4)


def test_wrong_labels_reach_everything_that_looks_at_labels_and_no_cached_answer(
    workshop: Workshop, tmp_path: Path
) -> None:
    """Half of the labels wrong: teachers look worse, the entropies are as before, and cached equals online."""
    clean, cached, online = Recorder(), Recorder(), Recorder()
    options: dict[str, Any] = {"method": "dkd", "batch_size": 60}
    workshop.distill(tmp_path / "clean", progress=clean, **options)
    workshop.distill(tmp_path / "cached", progress=cached, label_noise=0.5, **options)
    workshop.distill(tmp_path / "online", progress=online, label_noise=0.5, online=True, **options)
    assert cached.reports[0].losses == pytest.approx(online.reports[0].losses, rel=5e-4)
    assert cached.reports[0].losses["label_loss"] != pytest.approx(clean.reports[0].losses["label_loss"], rel=5e-4)
    before, after = clean.reports[0].teachers, cached.reports[0].teachers
    assert before is not None
    assert after is not None
    assert sum(after.top1) < sum(before.top1)
    assert after.mean_entropy == before.mean_entropy
    with pytest.raises(RecipeError, match=r"label_noise was 0\.5 and is 0\.25"):
        workshop.distill(tmp_path / "cached", label_noise=0.25, **options)


class ViewSpy:
    """Writes down the record that every sample showed in every batch of training."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
        self.shown: dict[int, list[int]] = defaultdict(list)
        renderer = CropFlip.renderer

        def spied(policy: CropFlip, pixels: Tensor) -> Renderer:
            render = renderer(policy, pixels)

            def write_down(indices: Tensor, records: Tensor) -> Tensor:
                if len(pixels) == samples and torch.is_grad_enabled():
                    for index, (number,) in zip(indices.tolist(), records.tolist(), strict=True):
                        self.shown[index].append(number)
                return render(indices, records)

            return write_down

        monkeypatch.setattr(CropFlip, "renderer", spied)


def test_batch_size_resume_and_source_do_not_change_which_view_a_sample_gets(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def views_of(name: str, **options: Any) -> dict[int, list[int]]:
        with monkeypatch.context() as patch:
            spy = ViewSpy(patch, samples=60)
            if options.pop("interrupted", False):
                with pytest.raises(KeyboardInterrupt):
                    workshop.distill(tmp_path / name, epochs=3, progress=Recorder(interrupt_after=2), **options)
            workshop.distill(tmp_path / name, epochs=3, **options)
        return spy.shown

    plain = views_of("plain", method="kd")
    table = np.stack([open_cache(workshop.cache).view(slot) for slot in range(5)])
    slots = [json.loads(line)["slot"] for line in (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()]
    for index, shown in plain.items():
        assert shown == [int(table[slot, index, 0]) for slot in slots]
    assert views_of("other-batches", method="kd", batch_size=7) == plain
    assert views_of("resumed", method="kd", interrupted=True) == plain
    assert views_of("labels-only", method="ce") == plain
    assert views_of("online", method="kd", online=True) == plain
    assert views_of("another-seed", method="kd", seed=1) != plain


def test_a_resumed_student_is_bit_identical(workshop: Workshop, tmp_path: Path) -> None:
    workshop.distill(tmp_path / "whole", epochs=4)
    for stop in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            workshop.distill(tmp_path / "parts", epochs=4, progress=Recorder(interrupt_after=stop))
    report = workshop.distill(tmp_path / "parts", epochs=4)
    assert report.resumed_after == 3
    for name in ("student.safetensors", "recipe.toml"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    whole, parts = (_numbers(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert whole == parts


def test_metrics_after_the_checkpoint_are_cut_on_resume(workshop: Workshop, tmp_path: Path) -> None:
    """A kill between an epoch's line and its checkpoint, and one in the middle of a line."""
    workshop.distill(tmp_path / "whole", epochs=3)
    with pytest.raises(KeyboardInterrupt):
        workshop.distill(tmp_path / "cut", epochs=3, progress=Recorder(interrupt_after=2))
    metrics = tmp_path / "cut" / "metrics.jsonl"
    last = metrics.read_text().splitlines()[-1]
    with metrics.open("a") as file:
        file.write(last.replace('"epoch": 2', '"epoch": 3') + '\n{"epoch": 4, "los')
    workshop.distill(tmp_path / "cut", epochs=3)
    assert _numbers(metrics) == _numbers(tmp_path / "whole" / "metrics.jsonl")


def test_a_finished_run_is_not_trained_again(workshop: Workshop, tmp_path: Path) -> None:
    first = workshop.distill(tmp_path / "run", epochs=2)
    again = Recorder()
    second = workshop.distill(tmp_path / "run", epochs=2, progress=again)
    assert again.reports == []
    assert (second.test_top1, second.resumed_after) == (first.test_top1, 2)


def test_a_run_started_otherwise_is_refused_naming_the_choice(workshop: Workshop, tmp_path: Path) -> None:
    workshop.distill(tmp_path / "run", epochs=1)
    with pytest.raises(RecipeError, match=r"epochs was 1 and is 2; learning_rate was 0\.02 and is 0\.1"):
        workshop.distill(tmp_path / "run", epochs=2, learning_rate=0.1)


def test_a_subset_of_teachers_and_of_views(workshop: Workshop, tmp_path: Path) -> None:
    recorder = Recorder()
    workshop.distill(tmp_path / "run", views=2, epochs=4, progress=recorder)
    assert {report.slot for report in recorder.reports} == {0, 1}
    with pytest.raises(ViewsError, match=r"`views` is 6, but the cache in .* has 5: choose 1 to 5"):
        workshop.distill(tmp_path / "more", views=6)
    with pytest.raises(ViewsError, match="`views=random` needs `live_teachers`"):
        workshop.distill(tmp_path / "random", views="random")


def test_independent_views_online_have_no_slot(workshop: Workshop, tmp_path: Path) -> None:
    recorder = Recorder()
    workshop.distill(tmp_path / "run", method="kd", online=True, views="random", progress=recorder)
    assert recorder.reports[0].slot is None


def test_other_pixels_or_labels_than_the_cached_are_refused(
    workshop: Workshop, tmp_path: Path, picture_folder: Path
) -> None:
    import shutil

    from PIL import Image

    other = Path(shutil.copytree(picture_folder, tmp_path / "other"))
    Image.new("RGB", (16, 16)).save(other / "train" / "ant" / "000.png")
    moved = Workshop(data=other, folder=workshop.folder)
    with pytest.raises(CacheMismatchError, match=r"data\.pixels_sha256 is .* in the cache and .* now"):
        moved.distill(tmp_path / "run")


def test_a_retrained_teacher_at_the_same_path_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    own = Workshop(data=workshop.data, folder=tmp_path)
    for seed, name in ((5, "first"), (6, "second")):
        train_network(own.data, "resnet8", tmp_path / name, seed=seed)
    cache_run(own, "first")
    (tmp_path / "first").rename(tmp_path / "old")
    (tmp_path / "second").rename(tmp_path / "first")
    with pytest.raises(
        CacheMismatchError, match=r"teacher\.state_sha256 is .* in the cache and .* now\. Choose another"
    ):
        cache_run(own, "first")


def test_a_method_that_needs_features_says_both_cures(workshop: Workshop, tmp_path: Path) -> None:
    bare = Workshop(data=workshop.data, folder=tmp_path)
    (tmp_path / "resnet8").symlink_to(workshop.folder / "resnet8")
    cache_run(bare, "resnet8", features=())
    with pytest.raises(CacheMissingError, match='`features=last`, which adds them, or choose `method="de-mkd-logits"`'):
        bare.distill(tmp_path / "run", views=1)
    bare.distill(tmp_path / "logits", views=1, method="de-mkd-logits")
    added = cache_run(bare, "resnet8")
    assert added.teachers[0].features == {"stage3": (64,)}
    bare.distill(tmp_path / "features", views=1)


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_lowers_its_own_loss(workshop: Workshop, tmp_path: Path, method: str) -> None:
    recorder = Recorder()
    workshop.distill(tmp_path / "run", method=method, epochs=6, progress=recorder, warmup=0.0, learning_rate=0.01)
    losses = [report.losses["loss"] for report in recorder.reports]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": "samples"},
        {"shuffle": "teachers"},
        {"weight_source": "agreement", "weight_form": "softmax"},
        {"weight_source": "agreement", "shuffle": "teachers", "weight_level": "dataset"},
        {"entropy_logits": "standardised"},
        {"weight_source": "fixed", "fixed_weights": (0.5, 0.25, 0.25)},
        {"weight_form": "softmax", "weight_tau": 0.5},
        {"weight_form": "inverse", "weight_level": "dataset"},
        {"entropy_temperature": 4.0},
        {"wrong_teacher": "mask", "feature_weighting": "uniform"},
        {"weight_source": "cross_entropy"},
    ],
)
def test_every_weight_option_runs_and_keeps_weights_that_sum_to_one(
    workshop: Workshop, tmp_path: Path, options: dict[str, Any]
) -> None:
    recorder = Recorder()
    workshop.distill(tmp_path / "run", progress=recorder, **options)
    teachers = recorder.reports[0].teachers
    assert teachers is not None
    assert sum(teachers.mean_weight) == pytest.approx(1, abs=1e-5)
    assert 1 <= teachers.effective_teachers <= 3 + 1e-5


def test_shuffled_samples_keep_the_teachers_mean_weights_and_shuffled_teachers_do_not(
    workshop: Workshop, tmp_path: Path
) -> None:
    means = {}
    for shuffle in ("none", "samples", "teachers"):
        recorder = Recorder()
        options = {"shuffle": shuffle, "weight_form": "softmax", "weight_tau": 0.05}
        workshop.distill(tmp_path / shuffle, progress=recorder, method="de-mkd-logits", **options)
        assert recorder.reports[0].teachers is not None
        means[shuffle] = recorder.reports[0].teachers.mean_weight
    assert means["samples"] == pytest.approx(means["none"], abs=1e-5)
    assert means["teachers"] != pytest.approx(means["none"], abs=1e-3)


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        ("no-such", {}, "choose one of ce, kd, kd-ls, dkd, dkd-ls, ttm, .*, ebkd, ca-mkd, de-mkd-logits, de-mkd"),
        ("ce", {"hint_weight": 1.0}, "ce has no teachers, so there are no features"),
        ("de-mkd", {"weight_source": "fixed"}, "go together"),
        ("de-mkd", {"fixed_weights": (0.5, 0.3, 0.2)}, "go together"),
        ("de-mkd", {"temperature": 0.0}, "`temperature` cannot be 0.0: it must be above 0"),
        ("de-mkd", {"kd_weight": -1.0}, "`kd_weight` cannot be -1.0: it must not be below 0"),
        ("de-mkd-logits", {"kd_weight": 0.0}, "nothing is learnt from the teachers; choose the method ce"),
        ("dkd", {"tckd_weight": 0.0, "nckd_weight": 0.0}, "nothing is learnt from the teachers; choose the method ce"),
        (
            "de-mkd",
            {"weight_level": "dataset", "shuffle": "samples"},
            "`shuffle=samples` changes nothing",
        ),
        (
            "kd",
            {"shuffle": "teachers"},
            "`weight_source=uniform` gives all teachers the same weights: `shuffle` changes",
        ),
        ("kd", {"standardise": 1}, "`standardise` cannot be 1: it must be true or false"),
        ("ofa", {"target_power": 0.0}, "`target_power` cannot be 0.0: it must be above 0"),
        ("kd", {"weight_source": "fixed", "fixed_weights": (2.0, -1.0)}, "none may be below 0, their sum is 1"),
        ("kd", {"weight_source": "fixed", "fixed_weights": (float("nan"), 1.0)}, "none may be below 0, their sum is 1"),
        ("de-mkd", {"weight_form": "hard"}, "choose one of one_minus_softmax, softmax"),
    ],
)
def test_unknown_and_contradicting_options_are_refused_with_the_reason(
    workshop: Workshop, tmp_path: Path, method: str, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(MethodError, match=why):
        workshop.distill(tmp_path / "run", method=method, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "views", "why"),
    [
        ({"shuffle": "samples"}, 5, "`shuffle=samples` needs all samples at once"),
        ({"weight_level": "dataset"}, 5, "`weight_level=dataset` needs all samples at once"),
        ({"shuffle": "teachers"}, "random", "drawn once per slot, and `views=random` has no slots"),
        ({"weight_source": "fixed", "fixed_weights": (0.5, 0.5)}, 5, "has 2 numbers for 3 teachers"),
    ],
)
def test_weights_that_live_teachers_cannot_give_are_refused_before_anything_is_read(
    workshop: Workshop, tmp_path: Path, options: dict[str, Any], views: int | str, why: str
) -> None:
    nowhere = Workshop(data=tmp_path / "nowhere", folder=workshop.folder)
    with pytest.raises(MethodError, match=why):
        nowhere.distill(tmp_path / "run", online=True, views=views, **options)


def test_a_run_records_the_view_seed_of_its_cache(workshop: Workshop, tmp_path: Path) -> None:
    own = Workshop(data=workshop.data, folder=tmp_path)
    (tmp_path / "resnet8").symlink_to(workshop.folder / "resnet8")
    cache_run(own, "resnet8", view_seed=7)
    own.distill(tmp_path / "run", method="kd", views=1)
    assert "\nview_seed = 7\n" in (tmp_path / "run" / "recipe.toml").read_text()


def test_the_loss_fades_in_over_the_warmup(workshop: Workshop, tmp_path: Path) -> None:
    """Epoch e of 4 with half of them warm-up: factors 0.5, 1, 1, 1 of the logit loss (epochs count from 1)."""
    recorder = Recorder()
    workshop.distill(tmp_path / "run", method="dkd", epochs=4, progress=recorder, warmup=0.5, nckd_weight=2.0)
    for report, factor in zip(recorder.reports, (0.5, 1.0, 1.0, 1.0), strict=True):
        losses = report.losses
        kd = losses["target_class_kd"] + 2.0 * losses["non_target_class_kd"]
        assert losses["loss"] == pytest.approx(losses["label_loss"] + factor * kd, rel=1e-5)


def _floats(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))


def _numbers(metrics: Path) -> list[dict[str, Any]]:
    """The lines without what a clock said."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("seconds")} for line in lines]
