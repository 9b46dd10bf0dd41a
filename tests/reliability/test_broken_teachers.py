"""A teacher that cannot be cached is refused by name and reason; nothing of it reaches a finished file."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demkd.networks import NETWORKS
from demkd.networks.resnet import CifarResNet
from demkd.teachers import TeacherError
from tests.pipeline.stages import cache_one
from tests.reliability.conftest import Command, Run, says


@pytest.mark.parametrize("bias", [1e6, torch.inf, torch.nan])
def test_values_that_float16_cannot_hold_stop_stage_one(
    run: Run, caching: Command, cache: Path, teachers: Path, tmp_path: Path, bias: float
) -> None:
    """With teacher, sample and view; the other teachers' files are as they were."""
    state = load_file(teachers / "a.safetensors")
    state["fc.bias"][1] = bias
    save_file(state, tmp_path / "c.safetensors")
    outcome = run(*caching(cache, views=4, names=""), "--teacher", f"c=resnet8@{tmp_path / 'c.safetensors'}")
    says(outcome, "teacher c has ")
    says(outcome, f"{'' if bias == 1e6 else bias} in logits for sample ")
    says(outcome, "in view 0, which float16 cannot hold: repair the teacher's weights or its normalization")
    assert not (cache / "c.00001-of-00001.h5").exists()
    assert run("verify", cache, "--teachers", "a,b", "--quiet").code == 0


class Dropping(CifarResNet):
    """Drops out in every mode, as `F.dropout(x)` in a forward pass does."""

    def before_pooling(self, maps: Tensor) -> Tensor:
        return F.dropout(super().before_pooling(maps), 0.5)


class Training(CifarResNet):
    """Stays in train mode: somebody overrode its `eval`."""

    def eval(self) -> "Training":
        return self


class BatchStatistics(CifarResNet):
    """Its batch normalization keeps no running statistics, so the logits of an image depend on its batch."""

    def __init__(self, classes: int, *, depth: int) -> None:
        super().__init__(classes, depth=depth)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Dropping, "teacher t returns other logits for the same images"),
        (Training, "teacher t returns other logits for an image in another batch"),
        (BatchStatistics, "teacher t returns other logits for an image in another batch"),
    ],
)
def test_a_teacher_that_is_not_deterministic_is_refused_before_anything_is_written(
    picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: type[CifarResNet], message: str
) -> None:
    monkeypatch.setitem(NETWORKS, "broken", lambda classes: network(classes, depth=8))
    torch.manual_seed(0)
    save_file(network(3, depth=8).state_dict(), tmp_path / "t.safetensors")
    with pytest.raises(TeacherError, match=message):
        cache_one(picture_folder, tmp_path / "t.safetensors", tmp_path / "cache", network="broken", views=2)
    assert not (tmp_path / "cache").exists()


def test_a_teacher_with_another_class_order_is_a_warning(run: Run, picture_folder: Path, tmp_path: Path) -> None:
    """A good teacher gives no warning; with its classes rotated it is below chance."""
    run("train", "resnet8", "--data", picture_folder, "--out", tmp_path / "good", "--epochs", 12, "--batch-size", 16,
        "--schedule", "cosine", "--quiet", code=0)  # fmt: skip
    state = load_file(tmp_path / "good" / "student.safetensors")
    for name in ("fc.weight", "fc.bias"):
        state[name] = state[name].roll(1, 0)
    save_file(state, tmp_path / "rotated.safetensors")
    command = ["cache-teachers", "--data", picture_folder, "--views", 2, "--out", tmp_path / "cache"]
    good = run(*command, "--teacher", f"good=resnet8@{tmp_path / 'good'}", code=0)
    rotated = run(*command, "--teacher", f"rotated=resnet8@{tmp_path / 'rotated.safetensors'}", code=0)
    assert "near chance" not in good.stderr
    assert "near chance (33.3%): check the class order" in rotated.stderr
