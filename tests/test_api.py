"""The stages as functions of Python objects: modules, tensors, own optimisers, and errors in Python's words."""

import json
import os
import shutil
import tomllib
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import demkd
from demkd import api
from demkd.cache import CacheMismatchError
from demkd.cli import main
from demkd.dataset import Reading, ViewChoice
from demkd.exports import EXPORTS
from demkd.pipeline.arguments import ArgumentError, CachingOptions, MethodOptions, TrainingKeywords
from demkd.pipeline.methods import Method
from demkd.pipeline.preparation import CachingRequest
from demkd.pipeline.recipe import RecipeError, TrainingOptions
from tests.conftest import CHECKOUT

QUIET: dict[str, Any] = {"progress": False, "precision": "float32"}


def module(*, classes: int = 3, width: int = 8, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )


def pictures(count: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes of 16-pixel pictures, each brightest in a channel of its own."""
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 150, (count, 16, 16, 3), dtype=torch.uint8, generator=torch.manual_seed(seed))
    pixels[torch.arange(count), :, :, labels] += 100
    return pixels, labels


TRAIN, TEST = pictures(60), pictures(12, seed=1)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample": 1, "uncertain": 3}, "`sample` and `uncertain` exclude each other"),
        ({"by_class": True, "suspect": 3}, "`by_class` and `suspect` exclude each other"),
        ({"sample": 1, "slot": 0, "views": True}, "`slot` and `views` exclude each other"),
        ({"slot": 1}, "`slot` needs `sample`"),
        ({"score": "margin", "uncertain": 3}, "`score` needs `suspect`"),
    ],
)
def test_inspect_refuses_arguments_that_contradict_each_other(
    cache: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        demkd.inspect(cache, **arguments)


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

    with pytest.raises(demkd.UserError, match="differently in other company"):
        demkd.cache_teachers({"d": Centered()}, one, out=tmp_path / "other", views=1, **QUIET)


def test_a_cached_module_answers_as_the_module(cache: Path) -> None:
    opened = demkd.open_cache(cache)
    source = demkd.MemoryImages(name="x", split="train", pixels=TRAIN[0], labels=TRAIN[1], class_names=("0", "1", "2"))
    answers = opened.read_slot(2)
    render = source.renderer(source.default_policy, torch.device("cpu"))
    views = render(torch.arange(60), torch.from_numpy(answers.view.astype(np.int64)))
    with torch.no_grad():
        live = TEACHERS["b"].eval()(source.usual_normalisation().apply(views))
    torch.testing.assert_close(
        torch.from_numpy(opened.logits(2, slice(None), temperature=1.0)[1].astype(np.float32)),
        live,
        rtol=1e-3,
        atol=1e-3,
    )
    assert opened.teachers[0].provenance.identity["teacher"]["network"] == "torch.nn.modules.container.Sequential"


def test_another_module_or_other_pictures_are_another_cache(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheMismatchError, match=r"teacher\.state_sha256 is"):
        demkd.cache_teachers({"a": module(seed=9)}, TRAIN, out=cache, views=1, **QUIET)
    with pytest.raises(CacheMismatchError, match=r"data\.pixels_sha256 is .*\(`train`\)"):
        demkd.distill("resnet8", cache=cache, train=pictures(60, seed=5), test=TEST, out=tmp_path, epochs=1, **QUIET)
    with pytest.raises(CacheMismatchError, match=r"data\.pixels_sha256 is"):
        demkd.CachedTargets(cache, pictures(60, seed=5), method="kd")


def test_a_student_of_ones_own_is_trained_in_place_and_goes_on(cache: Path, tmp_path: Path) -> None:
    """As if it had never stopped; and once finished, its weights are those of the run."""
    options: dict[str, Any] = {"cache": cache, "train": TensorDataset(*TRAIN), "test": TEST, "learning_rate": 0.01,
                               "batch_size": 16, **QUIET}  # fmt: skip
    whole = module(seed=7)
    demkd.distill(whole, out=tmp_path / "whole", epochs=4, **options)

    class Stop(demkd.pipeline.progress.SilentProgress):  # type: ignore[name-defined,misc]
        def epoch(self, report: Any) -> None:
            if report.epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demkd.distill(module(seed=7), out=tmp_path / "parts", epochs=4, **{**options, "progress": Stop()})
    resumed = module(seed=8)  # what it was before does not matter: the checkpoint knows
    report = demkd.distill(resumed, out=tmp_path / "parts", epochs=4, **options)
    assert report.resumed_after == 2
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    fresh = module(seed=9)
    again = demkd.distill(fresh, out=tmp_path / "whole", epochs=4, **options)
    assert again.resumed_after == 4
    assert torch.equal(fresh.state_dict()["0.weight"], whole.state_dict()["0.weight"])
    found = demkd.evaluate(fresh, TEST, normalise=read_recipe(tmp_path / "whole"), **QUIET)
    assert found.top1 == again.test_top1


def test_an_optimizer_and_a_scheduler_of_ones_own(cache: Path, tmp_path: Path) -> None:
    rates: list[float] = []

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
    with pytest.raises(RecipeError, match="optimizer was own AdamW and is sgd"):
        demkd.distill("resnet8", out=tmp_path / "run", **options)


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
    demkd.train(start, train=TRAIN, test=TEST, out=tmp_path, epochs=1, batch_size=60, normalise="none",
                policy=demkd.CropFlip(padding=0, flip=False), label_smoothing=0.2, **options, **QUIET)  # fmt: skip
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
def test_cached_targets_have_the_losses_of_distill(cache: Path, tmp_path: Path, method: str) -> None:
    """The same batches in the same order, and the same loss of the same student on each."""
    demkd.distill("resnet8", cache=cache, train=TRAIN, test=TEST, method=method, epochs=2, batch_size=16, out=tmp_path,
                  learning_rate=1e-9, weight_decay=0.0, seed=3, **QUIET)  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    targets = demkd.CachedTargets(cache, TRAIN, method=method, epochs=2, seed=3, device="cpu")
    assert targets.hint_shapes == ([(8,), (8,)] if method == "de-mkd" else [])
    torch.manual_seed(3)
    student = demkd.networks.build_network("resnet8", classes=3, size=(16, 16)).train()
    adapters = [demkd.networks.Adapter((64, 4, 4), shape) for shape in targets.hint_shapes]
    student.to(memory_format=torch.channels_last)
    for line in lines:
        total, count, seen = 0.0, 0, []
        for batch in targets.epoch(line["epoch"], batch_size=16):
            logits, features = student.forward_features(batch.views)
            guesses = [adapter(features["stage3"]) for adapter in adapters]
            total += float(targets.loss(logits, batch, guesses).detach()) * len(batch.labels)
            count += len(batch.labels)
            seen += batch.indices.tolist()
            assert torch.equal(batch.labels, TRAIN[1][batch.indices])
        assert total / count == pytest.approx(line["losses"]["loss"], rel=1e-4)
        assert sorted(seen) == list(range(60))


def test_two_epochs_cannot_be_mixed(cache: Path) -> None:
    """The targets are those of the slot that was read last, and the views of the first epoch would be others."""
    targets = demkd.CachedTargets(cache, TRAIN, method="kd", device="cpu")
    first = targets.epoch(1, batch_size=16)
    next(first)
    next(targets.epoch(2, batch_size=16))
    with pytest.raises(RuntimeError, match="epoch 1 cannot go on, because another one was begun"):
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
    with pytest.raises(RecipeError, match="student_layer was stage1 and is stage2"):
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


def test_every_stage_answers_in_python(cache: Path, tmp_path: Path) -> None:
    summary = demkd.inspect(cache)
    assert [teacher.name for teacher in summary.teachers] == ["a", "b"]
    assert demkd.inspect(cache, sample=7).index == 7
    assert len(demkd.inspect(cache, uncertain=3).rows) == 3
    assert demkd.verify(cache, progress=False).sound
    assert demkd.recompute(cache, TEACHERS, TRAIN, pairs=30, **QUIET).recomputed[1].agrees
    assert demkd.repair(cache, TEACHERS, TRAIN, **QUIET).sound
    plan = demkd.plan_caching(TEACHERS, TRAIN, out=tmp_path / "none", views=3, **QUIET)
    assert (plan.teachers[0].pending, (tmp_path / "none").exists()) == (180, False)


@pytest.mark.parametrize(
    ("call", "python", "command"),
    [
        ({"views": 9}, "`views` is 9, but the cache", ["--views", "9"]),
        ({"view_seed": 5}, "`view_seed` is 5, but the views", ["--view-seed", "5"]),
        ({"teachers": ["x"]}, "there is no teacher 'x'", ["--teachers", "x"]),
        ({"normalise": {"a": "imagenet"}}, "`normalise=a=...` is for live teachers", ["--normalise", "a=imagenet"]),
        ({"normalise": "0,0,0/1,nan,1"}, "cannot be: give finite", ["--normalise", "0,0,0/1,nan,1"]),
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
    arguments = [
        "distill",
        "--student",
        "resnet8",
        "--data",
        data,
        "--cache",
        str(folder),
        "--out",
        str(tmp_path / "r"),
    ]
    result = CliRunner().invoke(main, [*arguments, "--quiet", *command])
    assert (result.exit_code, result.stdout) == (1, "")
    said = result.stderr.strip()
    assert "`" not in said
    assert "\n" not in said
    assert python.partition("`")[2].partition("`")[0].partition("=")[0].replace("_", "-") in said


def test_stage_one_batches_fit_into_a_block(tmp_path: Path) -> None:
    """They never cross one; a larger batch size was cut to a block's without a word."""
    with pytest.raises(demkd.UserError, match="`batch_size` is 1025: choose 1 to 1024"):
        demkd.cache_teachers(TEACHERS, TRAIN, out=tmp_path / "cache", batch_size=1025, **QUIET)
    assert not (tmp_path / "cache").exists()


def test_changed_pictures_are_seen_by_the_next_call(picture_folder: Path, tmp_path: Path) -> None:
    """A folder is not remembered by its name: a notebook must see what has changed."""
    data = Path(shutil.copytree(picture_folder, tmp_path / "data"))
    demkd.cache_teachers({"a": module()}, data, out=tmp_path / "cache", views=1, **QUIET)
    Image.new("RGB", (16, 16)).save(data / "train" / "ant" / "000.png")
    with pytest.raises(CacheMismatchError, match=r"data\.pixels_sha256"):
        demkd.cache_teachers({"a": module()}, data, out=tmp_path / "cache", views=1, **QUIET)


def test_large_equal_pictures_have_views_that_fit_a_record(tmp_path: Path) -> None:
    """736 pixels high, which had more views than 16 bits can number."""
    data = tmp_path / "high"
    for split in ("train", "test"):
        for number, name in enumerate("aabb"):
            (data / split / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 736), (number, 0, 0)).save(data / split / name / f"{number}.png")
    options = {"policy": "crop-flip", **QUIET}
    report = demkd.cache_teachers({"a": module(classes=2)}, data, out=tmp_path / "cache", views=2, **options)
    assert report.num_distinct_views is not None
    assert report.num_distinct_views <= 65_536
    demkd.train(module(classes=2), train=data, out=tmp_path / "run", epochs=1, batch_size=2, **options)


def test_python_has_every_option_of_the_command_line_and_its_defaults() -> None:
    """The command line is a layer above these functions, with nothing of its own."""
    view_words = {field.name: "policy" for field in fields(ViewChoice) if field.name != "size"}
    reading_words = {field.name: "reading" for field in fields(Reading)}
    renamed = {"data": "train", "online": "live_teachers", **view_words, **reading_words}
    own = {"recipe", "json", "as_json", "quiet"}
    hints = get_type_hints(TrainingKeywords), get_type_hints(MethodOptions)
    parameters = set(signature(api.distill).parameters) | set(hints[0]) | set(hints[1])
    for option in main.commands["distill"].params:
        name = renamed.get(option.name or "", option.name or "")
        if name in own:
            continue
        assert name in parameters, name
    assert set(hints[0]) == set(TrainingOptions.__dataclass_fields__) - {"data", "network", "optimizer"}
    assert set(hints[1]) == set(Method.__dataclass_fields__) - {"name"}
    assert set(CachingOptions.__annotations__) - {"device", "precision", "progress", "reading"} == set(
        CachingRequest.__dataclass_fields__
    ) - {"source", "teachers", "folder"}


def test_the_defaults_of_the_command_line_are_those_of_python() -> None:
    """Options that are typed in are passed on; the others have one default, wherever it is read."""
    for name, owner in (("distill", TrainingOptions), ("cache-teachers", CachingRequest)):
        known = owner.__dataclass_fields__
        for option in main.commands[name].params:
            if option.name in known and isinstance(option.default, str | int | float):
                usual = known[option.name].default
                shown = ",".join(f"{one:g}" for one in usual) if isinstance(usual, tuple) else usual
                assert option.default == shown, option.name


def test_every_public_name_is_exported_once() -> None:
    names = [name for names in EXPORTS.values() for name in names]
    assert sorted(names) == dir(demkd)
    for name in names:
        assert getattr(demkd, name).__doc__, name
    init = (CHECKOUT / "__init__.py").read_text()
    for name in names:
        assert f'    "{name}",\n' in init, name


def read_recipe(run: Path) -> Any:
    recipe = tomllib.loads((run / "recipe.toml").read_text())
    return recipe["mean"], recipe["std"]
