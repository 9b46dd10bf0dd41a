"""Several processes train as one would: the same samples, views, targets and learning rates, so the same student."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import demkd
from demkd.config import ConfigError
from demkd.pipeline.trainer import TrainingError, check_plain_batch_norm
from tests.conftest import CHECKOUT
from tests.pipeline import parallel_program
from tests.pipeline.parallel_program import CASES, QUIET, images, make_caches
from tests.pipeline.stages import Recorder, train_network

SIZE = 2  # processes, which share 15 images and the last 13 unevenly
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def start(*command: object, processes: int = 0, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run Python alone (0 processes), or several times by torchrun."""
    launcher = [*TORCHRUN, str(processes)] if processes else [sys.executable]
    return subprocess.run(
        [*launcher, *map(str, command)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment},
        timeout=200,
    )


@pytest.mark.parametrize("case", CASES)
def test_processes_share_every_batch_and_learn_as_one(several: tuple[Path, str, str], case: str) -> None:
    """Losses, accuracies and weights are of all samples: reported by the first process alone, returned in all."""
    folder, _, errors = several
    assert (folder / f"{case}-{SIZE}-1.pt").exists(), errors
    alone = torch.load(folder / f"{case}-0-0.pt", weights_only=False)
    together = [torch.load(folder / f"{case}-{SIZE}-{rank}.pt", weights_only=False) for rank in range(SIZE)]
    assert len(alone["views"]) == 2 * 4, "two epochs of four steps, the last one of 13 samples"
    for step, views in enumerate(alone["views"]):
        parts = [one["views"][step] for one in together]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert torch.equal(torch.cat(parts), views), "the samples, in their views, in their order"
    for one in together:
        assert one["rates"] == alone["rates"]
        assert one["test_top1"] == alone["test_top1"]
        for step in range(4):
            torch.testing.assert_close(one["gradients"][step], alone["gradients"][step], rtol=1e-4, atol=1e-5)
        for name, tensor in one["state"].items():
            torch.testing.assert_close(tensor, alone["state"][name], rtol=1e-3, atol=1e-4, msg=name)
    first, *others = together
    assert not any(one["reports"] for one in others)
    for report, expected in zip(first["reports"], alone["reports"], strict=True):
        assert report.losses == pytest.approx(expected.losses, rel=1e-5)
        assert report.train_top1 == pytest.approx(expected.train_top1)
        if expected.teachers:
            assert report.teachers.mean_weight == pytest.approx(expected.teachers.mean_weight, rel=1e-5)
            assert report.teachers.top1 == pytest.approx(expected.teachers.top1)


PER_RANK = """
import os, sys
from demkd.cli import main
main([word.replace("RANK", os.environ["RANK"]) for word in sys.argv[1:]])
"""
SEVERAL = """
import json, os, sys, demkd
from pathlib import Path
from demkd.cli import main
from tests.pipeline import parallel_program
from torch import nn
rank, out, options, arguments = os.environ["RANK"], sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
parallel_program.main(Path(out), "cpu")

class Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)

demkd.distill(**options, method="de-mkd-logits", epochs=2, out=f"{out}/run")
demkd.distill(**{**options, "student": Spare()}, method="kd", epochs=1, out=f"{out}/spare")
main([*arguments, "--out", f"{out}/command"], standalone_mode=False)
main([*arguments, "--out", f"{out}/differing", "--seed", rank])
"""


@pytest.fixture(scope="module")
def data(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of a network trained on a folder of images."""
    folder = tmp_path_factory.mktemp("data")
    train_network(picture_folder, "resnet8", folder / "teacher")
    demkd.cache_teachers({"t": str(folder / "teacher")}, str(picture_folder), out=folder / "cache", views=2, **QUIET)
    return folder / "cache"


def distilling(images: Path, cache: object) -> list[object]:
    return ["distill", "--data", images, "--cache", cache, "--student", "resnet8",
            "--epochs", 2, "--batch-size", 16, "--precision", "float32"]  # fmt: skip


@pytest.fixture(scope="module")
def several(picture_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """What two processes left behind, one student after another and an error; their stdout and stderr."""
    folder = tmp_path_factory.mktemp("several")
    make_caches(folder)
    parallel_program.main(folder, "cpu")
    options: dict[str, Any] = {"train": str(picture_folder), "cache": str(data), "batch_size": 16, **QUIET}
    options["student"] = "tests.reliability.tiny_network:tiny"  # no batch normalization
    two: dict[str, Any] = {**options, "method": "de-mkd-logits", "epochs": 2}
    demkd.distill(out=folder / "whole", **two)
    with pytest.raises(KeyboardInterrupt):
        demkd.distill(out=folder / "run", **{**two, "progress": Recorder(interrupt_after=1)})
    program = folder / "program.py"
    program.write_text(SEVERAL)
    command = distilling(picture_folder, data)
    done = start(program, folder, json.dumps(options), *command, processes=SIZE, PYTHONPATH=str(CHECKOUT))
    assert done.returncode != 0
    return folder, done.stdout, done.stderr


def test_a_run_goes_on_with_another_number_of_processes(several: tuple[Path, str, str]) -> None:
    """One process begins, two go on from its checkpoint; the last epoch is as if one had made both."""
    for line, expected in zip(*(metrics(several[0] / name) for name in ("run", "whole")), strict=True):
        assert line["losses"] == pytest.approx(expected["losses"], rel=1e-3)


def test_layers_without_a_gradient_do_no_harm(several: tuple[Path, str, str]) -> None:
    assert len(metrics(several[0] / "spare")) == 1


def test_the_command_reports_once(several: tuple[Path, str, str]) -> None:
    """Progress, results, and the error of processes that were given different options."""
    folder, stdout, stderr = several
    assert stdout.count("test top-1") == 1, stderr
    assert stderr.count("epoch 1/2") == 1
    assert len(metrics(folder / "command")) == 2
    assert "seed is 1 in rank 1 and 0 in rank 0: start all with the same command" in only_error(stderr)


def only_error(stderr: str) -> str:
    """The one error that the processes printed; what torchrun adds comes after it."""
    (error,) = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert "demkd" not in stderr.partition("ChildFailedError")[0].replace(error, ""), "no traceback of ours"
    return error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "cache", "options", "sentence"),
    [
        ("{tmp}/run", "{tmp}/cache-of-RANK", [], "rank 1 of 2: there is no cache in"),
        ("/proc/nobody/run", "{cache}", [], "rank 0 of 2: /proc/nobody"),
        ("{tmp}/run", "{cache}", ["--set", "sync_bn=true"], "sync_bn needs GPUs"),
        ("{tmp}/run", "{cache}", ["--batch-size", 3], "--batch-size is 3 for 2 pr"),
    ],
)
def test_what_one_process_cannot_do_ends_all_in_one_sentence(
    picture_folder: Path, data: Path, tmp_path: Path, out: str, cache: str, options: list[object], sentence: str
) -> None:
    (tmp_path / "cache-of-0").symlink_to(data)
    program = tmp_path / "program.py"
    program.write_text(PER_RANK)
    out, cache = (text.format(tmp=tmp_path, cache=data) for text in (out, cache))
    command = [program, *distilling(picture_folder, cache), "--out", out, *options]
    done = start(*command, processes=2, PYTHONPATH=str(CHECKOUT))
    assert done.returncode != 0
    assert sentence in only_error(done.stderr)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class _NormWithActivation(nn.BatchNorm2d):
    """As timm's: normalization and activation in one module."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_a_normalization_that_does_more_is_refused() -> None:
    """Replaced, it would lose its activation, and the saved network would be another."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), _NormWithActivation(4))
    with pytest.raises(TrainingError, match="1 of the network is a _NormWithActivation"):
        check_plain_batch_norm(network)
    check_plain_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


def test_data_that_make_no_step_are_named_as_such(tmp_path: Path) -> None:
    """And not a loss that is no number."""
    pixels, labels = images(5, seed=0)
    with pytest.raises(ConfigError, match=r"`train` has 1 image: fewer than one batch. Give at least 2"):
        demkd.train("resnet8", train=(pixels[:1], labels[:1]), test=(pixels, labels), out=tmp_path, **QUIET)
    with pytest.raises(ConfigError, match=r"`train` has 5 images: fewer than one batch. Give at least 8"):
        demkd.SoftTargetLoader(None, (pixels, labels), method="ce", world_size=4)
