"""A teacher that cannot be cached is stopped with its name, and what it did; nothing of it reaches a finished file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demkd.networks import NETWORKS
from demkd.networks.resnet import CifarResNet
from demkd.pipeline import stage_one as stage
from demkd.teachers import TeacherError
from tests.pipeline.stages import cache_one
from tests.reliability.conftest import Run, says, teacher_options


def spoil(teachers: Path, target: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A folder with a changed teacher a."""
    target.mkdir()
    state = load_file(teachers / "a.safetensors")
    change(state)
    save_file(state, target / "a.safetensors")
    return target


def scale_up(state: dict[str, Tensor]) -> None:
    """Finite in float32, infinite in float16."""
    state["fc.weight"] *= 1e6


def put_infinity(state: dict[str, Tensor]) -> None:
    state["fc.bias"][0] = torch.inf


def put_nan(state: dict[str, Tensor]) -> None:
    state["fc.bias"][1] = torch.nan


@pytest.mark.parametrize(("change", "value"), [(scale_up, ""), (put_infinity, "inf"), (put_nan, "nan")])
def test_values_that_float16_cannot_hold_stop_stage_one(
    run: Run,
    picture_folder: Path,
    teachers: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], None],
    value: str,
) -> None:
    """With teacher, sample and slot; the other teacher's file and the weights are not touched by it."""
    broken = spoil(teachers, tmp_path / "broken", change)
    command = ["cache-teachers", "--quiet", "--precision", "float32", "--data", picture_folder, "--views", 3]
    run(*command, "--out", tmp_path / "cache", *teacher_options(teachers, "b"), code=0)
    outcome = run(*command, "--out", tmp_path / "cache", *teacher_options(broken, "a"))
    says(outcome, "teacher a answers ")
    says(outcome, f"{value} in logits for sample ")
    says(outcome, "in slot 0, which float16 cannot hold: repair the teacher's weights or its normalisation")
    assert not (tmp_path / "cache" / "a.h5").exists()
    assert run("verify", tmp_path / "cache", "--teachers", "b", "--quiet").code == 0


class Dropping(CifarResNet):
    """Drops out whatever mode it is in, as `F.dropout(x)` in a forward pass does."""

    def before_pooling(self, maps: Tensor) -> Tensor:
        return F.dropout(super().before_pooling(maps), 0.5)


class Training(CifarResNet):
    """Stays in train mode, as a network whose `eval` somebody overrode."""

    def eval(self) -> "Training":
        return self


class BatchStatistics(CifarResNet):
    """Its batch normalisation keeps no running statistics, so a picture's answer depends on its batch."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, depth=8)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda classes: Dropping(classes, depth=8), "teacher t answers the same pictures differently twice"),
        (lambda classes: Training(classes, depth=8), "teacher t answers a picture differently in other company"),
        (BatchStatistics, "teacher t answers a picture differently in other company"),
    ],
    ids=["dropout", "train mode", "batch statistics"],
)
def test_a_teacher_that_is_not_deterministic_is_refused_before_anything_is_written(
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    build: Callable[[int], nn.Module],
    message: str,
) -> None:
    monkeypatch.setitem(NETWORKS, "broken", build)
    torch.manual_seed(0)
    save_file(build(3).state_dict(), tmp_path / "t.safetensors")
    with pytest.raises(TeacherError, match=message):
        cache_one(picture_folder, tmp_path / "t.safetensors", tmp_path / "cache", network="broken", views=2)
    assert not (tmp_path / "cache").exists()


def test_a_teacher_with_another_class_order_is_warned_of(run: Run, picture_folder: Path, tmp_path: Path) -> None:
    """A good teacher passes in silence; the same one with its classes turned is near no class at all."""
    run("train", "resnet8", "--data", picture_folder, "--out", tmp_path / "good", "--epochs", 12, "--batch-size", 16,
        "--schedule", "cosine", "--quiet", code=0)  # fmt: skip
    (tmp_path / "turned").mkdir()
    state = load_file(tmp_path / "good" / "student.safetensors")
    for name in ("fc.weight", "fc.bias"):
        state[name] = state[name].roll(1, 0)
    save_file(state, tmp_path / "turned" / "student.safetensors")
    command = ["cache-teachers", "--data", picture_folder, "--views", 2]
    good = run(*command, "--out", tmp_path / "cache", "--teacher", f"good=resnet8@{tmp_path / 'good'}", code=0)
    turned = run(*command, "--out", tmp_path / "cache", "--teacher", f"turned=resnet8@{tmp_path / 'turned'}", code=0)
    assert "near chance" not in good.stderr
    assert "near chance (33.3%): are its classes in another order" in turned.stderr


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
def test_near_chance_is_never_near_right(classes: int) -> None:
    """With two classes twice chance would be 100 %, and every teacher suspect."""
    limit = stage._near_chance(classes)
    assert 1 / classes < limit <= max(0.6, 2 / classes)
