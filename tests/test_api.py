"""The stages as functions of Python objects: modules, tensors, own optimisers, and errors in Python's words."""

import importlib
import json
import os
import shutil
import tomllib
from dataclasses import asdict, fields
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.data import TensorDataset

import demkd
from demkd.cli import main
from demkd.config import AugmentConfig, CacheConfig, ConfigError, ImageConfig, MethodConfig, TrainConfig, parse
from demkd.dataset import ResizedCrop
from demkd.report.stages import blocks_of
from demkd.teachers.load import sizes_by_teacher
from tests.pipeline.stages import Recorder

QUIET: dict[str, Any] = {"progress": False, "precision": "float32"}


def module(*, classes: int = 3, width: int = 8, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )


def images(count: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes of 16-pixel pictures, each brightest in a channel of its own."""
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 150, (count, 16, 16, 3), dtype=torch.uint8, generator=torch.manual_seed(seed))
    pixels[torch.arange(count), :, :, labels] += 100
    return pixels, labels


TRAIN, TEST = images(60), images(12, seed=1)
TEACHERS = {"a": module(seed=1), "b": module(seed=2)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "cache"
    demkd.cache_teachers(TEACHERS, TRAIN, out=folder, views=4, **QUIET)
    return folder


def test_the_users_modules_stay_as_they_are(cache: Path, tmp_path: Path) -> None:
    """Teachers are copied before they are frozen; what was in training mode still is."""
    teacher = module(seed=3).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    report = demkd.cache_teachers({"c": teacher}, TRAIN, out=tmp_path, views=1, **QUIET)
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert os.fspath(report) == str(tmp_path)
    frozen = teacher[1].eval()  # type: ignore[index]
    demkd.evaluate(teacher, TEST, normalize="none", **QUIET)
    assert (teacher.training, frozen.training) == (True, False)


def test_a_run_of_the_users_module_is_evaluated_with_a_module(tmp_path: Path) -> None:
    """The weights and the normalization are the run's; the module that is given stays as it is."""
    report = demkd.train(module(seed=4), train=TRAIN, test=TEST, out=tmp_path / "run", epochs=3, **QUIET)
    other = module(seed=5)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    found = demkd.evaluate(tmp_path / "run", TEST, network=other, **QUIET)
    assert (found.top1, found.top5) == (report.test_top1, report.test_top5)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    with pytest.raises(
        demkd.UserError, match=r"is of a module of your own, torch.*Sequential: give the module \(`netw"
    ):
        demkd.evaluate(tmp_path / "run", TEST, **QUIET)


def test_training_leaves_the_random_numbers_of_the_process_as_they_are(tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise KeyError("the user's own")

    network = module(seed=4)
    before = torch.manual_seed(11).get_state()
    torch.backends.cudnn.benchmark = False
    demkd.train(network, train=TRAIN, test=TEST, out=tmp_path / "own", epochs=1, **QUIET)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyError):
        demkd.train(network, train=TRAIN, test=TEST, out=tmp_path / "bad", epochs=1, optimizer=fail, **QUIET)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.backends.cudnn.benchmark


def test_one_image_is_enough_for_a_cache(tmp_path: Path) -> None:
    one = (TRAIN[0][:1], TRAIN[1][:1])
    demkd.cache_teachers({"c": module(classes=1)}, one, out=tmp_path / "cache", views=1, **QUIET)
    assert demkd.open_cache(tmp_path / "cache").samples == 1

    class Centered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module(classes=1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.network(images - images.mean(0))
            return logits

    with pytest.raises(demkd.UserError, match="other logits for an image in another batch"):
        demkd.cache_teachers({"d": Centered()}, one, out=tmp_path / "other", views=1, **QUIET)


def test_a_student_of_ones_own_is_trained_in_place_and_goes_on(cache: Path, tmp_path: Path) -> None:
    """As if it had never stopped; and once finished, its weights are those of the run."""
    options: dict[str, Any] = {"cache": cache, "train": TensorDataset(*TRAIN), "test": TEST, "learning_rate": 0.01,
                               "batch_size": 16, **QUIET}  # fmt: skip
    whole = module(seed=7)
    demkd.distill(whole, out=tmp_path / "whole", epochs=4, **options)
    stopped = {**options, "progress": Recorder(interrupt_after=2)}
    with pytest.raises(KeyboardInterrupt):
        demkd.distill(module(seed=7), out=tmp_path / "parts", epochs=4, **stopped)
    resumed = module(seed=8)  # what it was before does not matter: the checkpoint knows
    report = demkd.distill(resumed, out=tmp_path / "parts", epochs=4, **options)
    assert report.resumed_after == 2
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    fresh = module(seed=9)
    again = demkd.distill(fresh, out=tmp_path / "whole", epochs=4, **options)
    assert again.resumed_after == 4
    assert torch.equal(fresh.state_dict()["0.weight"], whole.state_dict()["0.weight"])
    (normalize,) = tomllib.loads((tmp_path / "whole" / "recipe.toml").read_text())["normalize"]
    found = demkd.evaluate(fresh, TEST, normalize=normalize, **QUIET)
    assert found.top1 == again.test_top1


def test_an_optimizer_and_a_scheduler_of_ones_own(cache: Path, tmp_path: Path) -> None:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=0.004)

    def scheduler(own: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.ExponentialLR(own, 0.5)

    options: dict[str, Any] = {"cache": cache, "train": TRAIN, "test": TEST, "epochs": 3, **QUIET}
    demkd.distill("resnet8", out=tmp_path / "run", optimizer=optimizer, scheduler=scheduler, **options)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines]
    assert rates == pytest.approx([0.004, 0.002, 0.001])
    recipe = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())
    assert (recipe["optimizer"], recipe["schedule"], recipe["learning_rate"]) == (
        "own AdamW",
        "own ExponentialLR",
        0.004,
    )
    with pytest.raises(ConfigError, match="optimizer was own AdamW and is sgd"):
        demkd.distill("resnet8", out=tmp_path / "run", **options)
    plateau: Any = torch.optim.lr_scheduler.ReduceLROnPlateau
    with pytest.raises(ConfigError, match="`scheduler` gives a ReduceLROnPlateau, whose `step` needs `metrics`"):
        demkd.distill("resnet8", out=tmp_path / "bad", optimizer=optimizer, scheduler=plateau, **options)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_named_optimizers_are_pytorchs(tmp_path: Path, optimizer: str) -> None:
    """One step on one batch from one start: the same weights as PyTorch's own."""
    start, mine = module(seed=4), module(seed=4)
    options: dict[str, Any] = {
        "learning_rate": 0.02,
        "weight_decay": 0.1,
        "schedule": "constant",
        "optimizer": optimizer,
    }
    demkd.train(start, train=TRAIN, test=TEST, out=tmp_path, epochs=1, batch_size=60, normalize="none",
                augment=demkd.CropFlip(padding=0, flip=False), label_smoothing=0.2, **options, **QUIET)  # fmt: skip
    made = {
        "sgd": lambda: torch.optim.SGD(mine.parameters(), 0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
        "adamw": lambda: torch.optim.AdamW(mine.parameters(), 0.02, weight_decay=0.1),
    }[optimizer]()
    logits = mine(TRAIN[0].permute(0, 3, 1, 2) / 255)
    nn.functional.cross_entropy(logits, TRAIN[1], label_smoothing=0.2).backward()
    made.step()
    for name, tensor in mine.state_dict().items():
        torch.testing.assert_close(start.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["kd", "de-mkd-logits", "de-mkd"])
def test_a_user_s_loop_has_the_losses_of_distill(cache: Path, tmp_path: Path, method: str) -> None:
    """The same batches in the same order, and the same loss of the same student on each."""
    demkd.distill("resnet8", cache=cache, train=TRAIN, test=TEST, method=method, epochs=2, batch_size=16, out=tmp_path,
                  learning_rate=1e-9, weight_decay=0.0, seed=3, **QUIET)  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    loader = demkd.SoftTargetLoader(cache, TRAIN, method=method, batch_size=16, seed=3, device="cpu")
    criterion = demkd.DistillationLoss(method, epochs=2)
    assert loader.hint_shapes == ([(8,), (8,)] if method == "de-mkd" else [])
    torch.manual_seed(3)
    student = demkd.networks.build_network("resnet8", classes=3, size=(16, 16)).train()
    adapters = [demkd.networks.Adapter((64, 4, 4), shape) for shape in loader.hint_shapes]
    student.to(memory_format=torch.channels_last)
    for epoch, line in enumerate(lines):
        total, seen = 0.0, []
        loader.set_epoch(epoch)
        for batch in loader:
            logits, features = student.forward_features(batch.images)
            adapted = [adapter(features["stage3"]) for adapter in adapters]
            total += float(criterion(logits, batch, adapted).detach()) * len(batch.labels)
            seen += batch.indices.tolist()
            assert torch.equal(batch.labels, TRAIN[1][batch.indices])
        assert total / len(seen) == pytest.approx(line["losses"]["loss"], rel=1e-4)
        assert sorted(seen) == list(range(60))


def test_two_epochs_cannot_be_mixed(cache: Path) -> None:
    """The targets are those of the view that was read last, and the images of the first epoch show another."""
    loader = demkd.SoftTargetLoader(cache, TRAIN, method="kd", batch_size=16, device="cpu")
    first = iter(loader)
    next(first)
    loader.set_epoch(1)
    next(iter(loader))
    with pytest.raises(RuntimeError, match="epoch 0 is over: another one was started on this loader"):
        next(first)


def test_features_are_chosen_by_name_or_refused(cache: Path, tmp_path: Path) -> None:
    """Of features that are not the last map's, none is taken without a word."""
    folder = tmp_path / "cache"
    demkd.cache_teachers(TEACHERS, TRAIN, out=folder, views=1, features=["0"], feature_grid=2, **QUIET)
    options: dict[str, Any] = {"cache": folder, "train": TRAIN, "test": TEST, "epochs": 1, "batch_size": 16, **QUIET}
    options["method"] = "de-mkd"  # which matches features
    with pytest.raises(demkd.UserError, match=r"no features of its last map, 1: choose one of 0@2x2 \(`hint_layer`\)"):
        demkd.distill("resnet8", out=tmp_path / "run", **options)
    with pytest.raises(demkd.UserError, match="no features of stage9: choose one of 0@2x2"):
        demkd.distill("resnet8", out=tmp_path / "run", hint_layer="stage9", **options)
    with pytest.raises(demkd.UserError, match=r"`hint_layer=c=\.\.\.` names no teacher: there are a, b"):
        demkd.distill("resnet8", out=tmp_path / "run", hint_layer={"c": "0@2x2"}, **options)
    assert not (tmp_path / "run").exists()
    demkd.distill("resnet8", out=tmp_path / "run", hint_layer="0@2x2", student_layer="stage1", **options)
    recipe = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())
    assert (recipe["hint_layer"], recipe["student_layer"]) == (["a=0@2x2", "b=0@2x2"], "stage1")
    with pytest.raises(ConfigError, match="student_layer was stage1 and is stage2"):
        demkd.distill("resnet8", out=tmp_path / "run", hint_layer="0@2x2", student_layer="stage2", **options)
    options["learning_rate"] = 1e-4
    demkd.distill("resnet8", out=tmp_path / "slow", hint_layer="0@2x2", student_layer="stage1", **options)
    live = {**options, "cache": None, "live_teachers": TEACHERS, "views": 1, "hint_layer": "0@2x2"}
    demkd.distill("resnet8", out=tmp_path / "live", student_layer="stage1", **live)
    one, other = (json.loads((tmp_path / name / "metrics.jsonl").read_text())["losses"] for name in ("slow", "live"))
    assert one == pytest.approx(other, rel=1e-3)
    demkd.cache_teachers(TEACHERS, TRAIN, out=folder, views=1, features=["1"], **QUIET)
    demkd.cache_teachers(TEACHERS, TRAIN, out=folder, views=1, features=["1"], feature_grid=2, **QUIET)
    with pytest.raises(demkd.UserError, match="several sizes of its last map, 1: choose one of 0@2x2, 1, 1@2x2"):
        demkd.distill("resnet8", out=tmp_path / "many", **options)


class Calls:
    """A callback that keeps what it gets, and may press Ctrl-C."""

    def __init__(self, run: Path, *, stop_after: int = 0) -> None:
        self.recipes: list[Any] = []
        self.epochs: list[Any] = []
        self.ends: list[Any] = []
        self._metrics, self._stop_after = run / "metrics.jsonl", stop_after

    def on_start(self, recipe: Any) -> None:
        self.recipes.append(recipe)

    def on_epoch(self, report: Any) -> None:
        assert report.epoch == len(self._metrics.read_text().splitlines()), "it is in the file"
        self.epochs.append(report)
        if report.epoch == self._stop_after:
            raise KeyboardInterrupt

    def on_end(self, report: Any) -> None:
        self.ends.append(report)


def test_callbacks_get_every_epoch_once_also_of_a_resumed_run(tmp_path: Path) -> None:
    """One that raises ends the run; the next call reports the epochs that are left."""
    options: dict[str, Any] = {"train": TRAIN, "test": TEST, "out": tmp_path, "epochs": 4, "batch_size": 20, **QUIET}
    first, second, third = Calls(tmp_path, stop_after=2), Calls(tmp_path), Calls(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        demkd.train(module(seed=1), callbacks=[first], **options)
    report = demkd.train(module(seed=1), callbacks=[second, third], **options)
    assert report.resumed_after == 2
    epochs = [*first.epochs, *second.epochs]
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [epoch.test_top1 for epoch in epochs] == [line["test_top1"] for line in lines]
    assert (first.ends, second.ends) == ([], [report])
    assert [calls.recipes[0]["epochs"] for calls in (first, second)] == [4, 4]
    assert (third.epochs, third.ends) == (second.epochs, second.ends)


def test_every_stage_answers_in_python(cache: Path, tmp_path: Path) -> None:
    assert [row["teacher"] for row in demkd.inspect(cache)["teachers"]] == ["a", "b"]
    assert demkd.inspect(cache, sample=7)["sample"] == 7
    assert len(demkd.inspect(cache, uncertain=3)) == 3
    assert demkd.verify(cache, progress=False).sound
    assert demkd.recompute(cache, TEACHERS, TRAIN, pairs=30, **QUIET).recomputed[1].agrees
    plan = demkd.plan_caching(TEACHERS, TRAIN, out=tmp_path / "none", views=3, **QUIET)
    assert (plan.teachers[0].pending, (tmp_path / "none").exists()) == (180, False)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (partial(demkd.inspect, uncertain=-3), "`uncertain` is -3: give a whole number of at least 1"),
        (partial(demkd.inspect, by_class=True, limit=0), "`limit` is 0"),
        (partial(demkd.recompute, teachers=TEACHERS, data=TRAIN, pairs=0), "`pairs` is 0"),
        (partial(demkd.verify, teachers=["a", "a"]), "`teachers` has a twice"),
    ],
)
def test_other_numbers_are_refused_in_a_sentence(cache: Path, call: Any, why: str) -> None:
    with pytest.raises(demkd.UserError, match=why):
        call(cache)


def test_the_dry_run_says_where_features_take_most_of_the_bytes(tmp_path: Path) -> None:
    wide = {"wide": module(width=256, classes=3)}
    plan = demkd.plan_caching(wide, TRAIN, out=tmp_path / "none", views=50, features=("1",), top_k=1, **QUIET)
    assert plan.teachers[0].feature_bytes == 60 * 50 * 256 * 2
    said = [block for block in blocks_of(plan) if isinstance(block, str)]
    share = f"{plan.teachers[0].feature_bytes / plan.teachers[0].file_bytes:.0%}"
    assert any(line.startswith(f"features are {share} of these bytes; ") for line in said)
    plan = demkd.plan_caching(wide, TRAIN, out=tmp_path / "none", views=50, features=(), **QUIET)
    assert plan.teachers[0].feature_bytes == 0
    assert not any("features" in block for block in blocks_of(plan) if isinstance(block, str))


def test_a_teacher_with_fewer_views_is_named(cache: Path, tmp_path: Path) -> None:
    """Where it is cached, and where students then train on its views."""
    few = Path(shutil.copytree(cache, tmp_path / "cache"))
    quiet = {"precision": "float32"}
    demkd.cache_teachers({"c": module(seed=3)}, TRAIN, out=few, views=2, progress=(notes := Recorder()), **quiet)
    said = [
        text
        for text in notes.notes
        if text.startswith("c has only 2 views, so students train on 2: cache it with --views ")
    ]
    assert len(said) == 1
    for views, count in ((None, 1), (2, 0)):
        notes = Recorder()
        loader = demkd.SoftTargetLoader(few, TRAIN, method="kd", views=views, progress=notes)
        assert (loader.num_views, sum(text in said for text in notes.notes)) == (2, count)
    demkd.SoftTargetLoader(cache, TRAIN, method="kd", progress=(notes := Recorder()))
    assert not any("views" in text for text in notes.notes)


def test_a_run_of_images_in_memory_is_exported_with_data(picture_folder: Path, tmp_path: Path) -> None:
    demkd.train("resnet8", train=TRAIN, test=TEST, out=tmp_path / "run", epochs=1, **QUIET)
    export = partial(demkd.export, tmp_path / "run", out=tmp_path / "x", file_format="safetensors", progress=False)
    with pytest.raises(demkd.UserError, match="run has no recipe that names its data: give `data`"):
        export()
    with pytest.raises(demkd.UserError, match="was trained with other classes"):
        export(data=str(picture_folder))
    assert export(data=TEST).images == 12


@pytest.mark.parametrize(
    ("call", "python", "command"),
    [
        ({"views": 9}, "`views` is 9, but the cache", ["--views", "9"]),
        ({"teachers": ["x"]}, "there is no teacher 'x'", ["--teachers", "x"]),
        ({"normalize": {"a": "imagenet"}}, "`normalize=a=...` is for live teachers", ["--normalize", "a=imagenet"]),
    ],
)
def test_errors_speak_of_arguments_here_and_of_options_there(
    picture_folder: Path, tmp_path: Path, call: dict[str, Any], python: str, command: list[str]
) -> None:
    """One sentence; in backticks in Python, as an option on the command line."""
    folder = tmp_path / "cache"
    teacher = module()
    data = str(picture_folder)
    demkd.cache_teachers({"a": teacher}, data, out=folder, views=2, **QUIET)
    with pytest.raises(demkd.UserError) as caught:
        demkd.distill("resnet8", cache=folder, train=data, out=tmp_path / "run", **call, **QUIET)
    assert python in str(caught.value)
    arguments = ["distill", "--student", "resnet8", "--data", data, "--cache", str(folder), "--out", str(tmp_path)]
    result = CliRunner().invoke(main, [*arguments, "--quiet", *command])
    assert (result.exit_code, result.stdout) == (1, "")
    said = result.stderr.strip()
    assert "`" not in said
    assert "\n" not in said
    assert python.partition("`")[2].partition("`")[0].partition("=")[0].replace("_", "-") in said


def test_large_equal_images_have_views_that_16_bits_number(tmp_path: Path) -> None:
    data = torch.zeros(2, 736, 8, 3, dtype=torch.uint8), torch.arange(2)
    options = {"out": tmp_path, "views": 2, "augment": "crop-flip", **QUIET}
    report = demkd.cache_teachers({"a": module(classes=2)}, data, **options)
    assert report.num_distinct_views <= 65_536


def test_python_has_every_option_of_the_command_line() -> None:
    """Flags, `--set` and recipes give fields of the configurations, or arguments of these functions."""
    shared = {"recipe", "settings", "as_json", "quiet", "dry_run"}
    for name, function, renamed in (
        ("distill", demkd.distill, {"data": "train", "online": "live_teachers"}),
        ("train", demkd.train, {"data": "train"}),
        ("cache-teachers", demkd.cache_teachers, {}),
    ):
        command = main.commands[name]
        fields_of = {field.name for config in command.configs for field in fields(config)}
        known = {*signature(function).parameters, *signature(demkd.distill).parameters, *fields_of, *shared}
        for option in command.params:
            assert renamed.get(option.name or "", option.name) in known, option.name
    command = main.commands["distill"]
    assert set(command.configs) == {TrainConfig, MethodConfig, AugmentConfig, ImageConfig}
    assert command.settings.keys() >= {field.name for field in fields(CacheConfig)} & {"batch_size"}


@pytest.mark.parametrize(
    ("config", "values", "why"),
    [
        (TrainConfig, {"epochs": 0}, "`epochs` is 0: give a whole number of at least 1 and at most 1,000,000"),
        (MethodConfig, {"views_per_step": 1.5}, "`views_per_step` is 1.5: give a whole number of at least 1"),
        (TrainConfig, {"epochs": 10**25}, "at least 1 and at most 1,000,000"),
        (TrainConfig, {"seed": 10**25}, "`seed` is 10{25}: give a whole number of at least 0 and at most 1e.18"),
        (CacheConfig, {"view_seed": 2**64}, "at least 0 and at most 1e.18"),
        (TrainConfig, {"batch_size": 10**25}, "at least 2 and at most 1,000,000"),
        (MethodConfig, {"temperature": 1e-300}, "`temperature` is 1e-300: give a number of at least 0.01 and at most"),
        (TrainConfig, {"nesterov": 1}, "`nesterov` is 1: give true or false"),
        (CacheConfig, {"batch_size": 1025}, "`batch_size` is 1025: give .* at most 1,024"),  # a block of the cache
        (CacheConfig, {"tail_temperatures": ("1",)}, "`tail_temperatures` is .*: give a list of numbers"),
        (CacheConfig, {"tail_temperatures": (1.0,)}, "`tail_temperatures` needs `top_k`"),
        (AugmentConfig, {"mix": "mixdown"}, "`mix` is 'mixdown': give one of mixup, cutmix"),
    ],
)
def test_a_configuration_refuses_what_is_not_allowed_at_once(config: Any, values: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config(**values)


def test_numpys_numbers_are_as_good_as_pythons(tmp_path: Path) -> None:
    """In JSON and TOML too."""
    three, half = np.int64(3), np.float32(0.5)
    demkd.train(module(), train=TRAIN, test=TEST, out=tmp_path, epochs=np.int64(1), learning_rate=half, **QUIET)
    assert tomllib.loads((tmp_path / "recipe.toml").read_text())["learning_rate"] == 0.5
    normalization = demkd.Normalization(mean=[half] * 3, std=np.ones(3))  # type: ignore[arg-type]
    assert float(normalization.apply(torch.zeros(1, 3, 1, 1)).mean()) == -0.5
    json.dumps([ResizedCrop(scale=(half, half)).to_dict(), sizes_by_teacher({"a": three})])
    json.dumps([asdict(CacheConfig(top_k=three, tail_temperatures=[half])), asdict(normalization)])


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("features", "last, 3", ("last", "3")), ("shard", "1/2", "1/2"), ("tail_temperatures", "1,2", (1.0, 2.0))],
)
def test_a_list_is_separated_by_commas(name: str, text: str, value: object) -> None:
    assert parse(CacheConfig, name, text) == value


def test_every_public_name_is_exported_once() -> None:
    names = dir(demkd)
    for name in names:
        assert getattr(demkd, name).__doc__, name
    assert names == importlib.import_module("demkd.__init__").__all__


@pytest.mark.parametrize("config", [AugmentConfig, CacheConfig, ImageConfig, MethodConfig, TrainConfig])
def test_every_default_is_an_allowed_value_with_a_help_text(config: Any) -> None:
    """The check of a value accepts a default unseen."""
    for field in fields(config):
        choices = field.metadata["choices"]
        assert field.metadata["help"], field.name
        assert not choices or field.default is None or field.default in choices, field.name
