"""Several processes train as one would: the same samples, views, targets and learning rates, so the same student."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import demkd
from demkd.pipeline.processes import ProcessesError, World, require_samples
from demkd.pipeline.results import EpochReport
from demkd.pipeline.synchronised import SynchronisedError, synchronise
from tests.conftest import CHECKOUT
from tests.pipeline.parallel_program import CASES, QUIET, make_caches, pictures
from tests.pipeline.stages import Recorder, train_network

SIZES = (1, 2, 4)
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What students of all cases saw, trained by one process without torchrun, and by torchrun's 2 and 4."""
    made = tmp_path_factory.mktemp("parallel")
    make_caches(made)
    for size in SIZES:
        done = start("-m", "tests.pipeline.parallel_program", made, "cpu", processes=size if size > 1 else 0)
        assert done.returncode == 0, done.stderr
    return made


def noted(folder: Path, case: str, size: int) -> list[dict[str, Any]]:
    """What each process noted."""
    told = size if size > 1 else 0
    return [torch.load(folder / f"{case}-{told}-{rank}.pt", weights_only=False) for rank in range(size)]


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("case", CASES)
def test_processes_share_every_batch_and_learn_as_one(folder: Path, case: str, size: int) -> None:
    (alone,) = noted(folder, case, 1)
    together = noted(folder, case, size)
    assert len(alone["views"]) == 2 * 4, "two epochs of four steps, the last one of ten samples"
    for step, views in enumerate(alone["views"]):
        parts = [one["views"][step] for one in together]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert torch.equal(torch.cat(parts), views), "the samples, in their views, in their order"
    assert all(one["rates"] == alone["rates"] for one in together)
    for one in together:
        for step in range(4):
            torch.testing.assert_close(one["gradients"][step], alone["gradients"][step], rtol=1e-4, atol=1e-5)
        for name, tensor in one["state"].items():
            torch.testing.assert_close(tensor, alone["state"][name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("case", CASES)
def test_figures_are_of_all_samples(folder: Path, case: str, size: int) -> None:
    """Losses, accuracies, how teachers were weighted: told by the first process alone, and returned in all."""
    (alone,) = noted(folder, case, 1)
    first, *others = noted(folder, case, size)
    assert all(one["test_top1"] == alone["test_top1"] for one in (first, *others))
    assert not any(one["reports"] for one in others)
    for report, expected in zip(first["reports"], alone["reports"], strict=True):
        assert report.losses == pytest.approx(expected.losses, rel=1e-5)
        assert report.train_top1 == pytest.approx(expected.train_top1)
        if expected.teachers:
            assert report.teachers.mean_weight == pytest.approx(expected.teachers.mean_weight, rel=1e-5)
            assert report.teachers.top1 == pytest.approx(expected.teachers.top1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Path:
    """A folder with pictures, a network trained on them, and its cache."""
    made = tmp_path_factory.mktemp("command")
    train_network(picture_folder, "resnet8", made / "teacher")
    demkd.cache_teachers({"t": str(made / "teacher")}, str(picture_folder), out=made / "cache", views=2, **QUIET)
    return made


def distilling(pictures: Path, made: Path, out: Path, *options: object) -> list[object]:
    return [
        *("cli.py", "distill", "--data", pictures, "--cache", made / "cache", "--student", "resnet8"),
        *("--method", "de-mkd", "--epochs", 2, "--batch-size", 16, "--precision", "float32", "--out", out, *options),
    ]


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def sentence_of(done: "subprocess.CompletedProcess[str]") -> str:
    """The one error that the processes printed; what torchrun adds comes after it."""
    assert done.returncode not in (0, None)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    assert "demkd" not in done.stderr.partition("ChildFailedError")[0].replace(errors[0], ""), "no traceback of ours"
    return errors[0]


def test_the_command_speaks_with_one_voice(picture_folder: Path, data: Path, tmp_path: Path) -> None:
    done = start(*distilling(picture_folder, data, tmp_path / "run"), processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test top-1") == 1
    assert done.stderr.count("reading the pictures of") == 1
    assert done.stderr.count("epoch 1/2") == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_goes_on_with_another_number_of_processes(picture_folder: Path, data: Path, tmp_path: Path) -> None:
    """One process begins, two go on from its checkpoint; the last epoch is as if one had made both."""

    class Stop(Recorder):
        def epoch(self, _report: EpochReport) -> None:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"train": str(picture_folder), "cache": data / "cache", "epochs": 2, "batch_size": 16,
                               "sync_bn": True, "method": "de-mkd", **QUIET}  # fmt: skip
    whole = demkd.distill("resnet8", out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        demkd.distill("resnet8", out=tmp_path / "run", **{**options, "progress": Stop()})
    done = start(*distilling(picture_folder, data, tmp_path / "run", "--sync-bn", "--json", "--quiet"), processes=2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed_after"] == 1
    last, expected = (metrics(tmp_path / name)[-1] for name in ("run", "whole"))
    assert last["losses"] == pytest.approx(expected["losses"], rel=1e-3)
    assert whole.epochs == len(metrics(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    ("options", "processes", "reason"),
    [
        (
            ["--batch-size", 3],
            2,
            "--batch-size is 3, and 2 processes share it, which each need 2 samples: choose at least 4",
        ),
        (["--method", "nonsense"], 1, "there is no method 'nonsense'"),
    ],
)
def test_what_cannot_be_is_said_once(
    picture_folder: Path, data: Path, tmp_path: Path, options: list[object], processes: int, reason: str
) -> None:
    done = start(*distilling(picture_folder, data, tmp_path, *options), processes=processes)
    assert reason in sentence_of(done)


PER_RANK = """
import os, sys
from demkd.cli import main
main([word.replace("RANK", os.environ["RANK"]) for word in sys.argv[1:]])
"""


def differing(pictures: Path, made: Path, out: Path, *options: object) -> list[object]:
    """The command in a program in which the word RANK becomes the process' number."""
    program = out / "program.py"
    program.write_text(PER_RANK)
    return [program, *distilling(pictures, made, out / "run", *options)[1:]]


def test_processes_that_do_different_things_are_refused(picture_folder: Path, data: Path, tmp_path: Path) -> None:
    done = start(*differing(picture_folder, data, tmp_path, "--seed", "RANK"), processes=2, PYTHONPATH=str(CHECKOUT))
    assert "seed is 1 in rank 1 and 0 in rank 0: start all with the same command" in sentence_of(done)


def test_a_cache_on_one_machine_only_is_named(picture_folder: Path, data: Path, tmp_path: Path) -> None:
    here = data / "cache-of-0"
    shutil.copytree(data / "cache", here)
    command = differing(picture_folder, data, tmp_path, "--cache", data / "cache-of-RANK")
    done = start(*command, processes=2, PYTHONPATH=str(CHECKOUT))
    assert "rank 1 of 2: there is no cache in" in sentence_of(done)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"RANK": "1"}, "RANK is 1, WORLD_SIZE is absent: start the processes with torchrun"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, WORLD_SIZE is 2: start the processes with torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "rank 0 of 2 does not know where to meet the others, because MASTER_ADDR"),
    ],
)
def test_half_an_environment_is_refused(
    picture_folder: Path, data: Path, tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    done = start(*distilling(picture_folder, data, tmp_path), **environment)
    assert reason in sentence_of(done)


def test_other_commands_are_for_one_process(data: Path) -> None:
    done = start("cli.py", "verify", data / "cache", processes=2)
    assert "verify works in one process: start it without torchrun" in done.stderr
    assert done.stderr.count("Error: verify works in one process") == 2, "every rank ends, and says why"


class _NormWithActivation(nn.BatchNorm2d):
    """As timm's: normalisation and activation in one module."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_a_normalisation_that_does_more_is_refused() -> None:
    """Replaced, it would lose its activation, and the saved network would be another."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), _NormWithActivation(4))
    with pytest.raises(SynchronisedError, match="1 of the network is _NormWithActivation"):
        synchronise(network, torch.device("cpu"))
    synchronise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.device("cpu"))


def test_a_file_that_cannot_be_written_is_said_once(picture_folder: Path, data: Path) -> None:
    done = start(*distilling(picture_folder, data, Path("/proc/nobody/run")), processes=2)
    assert "rank 0 of 2: /proc/nobody" in sentence_of(done)


UNUSED = """
import sys, torch, demkd
from torch import nn

class Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)

demkd.distill(Spare(), train=sys.argv[1], cache=sys.argv[2], out=sys.argv[3], method="kd", epochs=1, batch_size=16,
              progress=False, precision="float32")
"""


def test_layers_without_a_gradient_do_no_harm(picture_folder: Path, data: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(UNUSED)
    done = start(program, picture_folder, data / "cache", tmp_path / "run", processes=2, PYTHONPATH=str(CHECKOUT))
    assert done.returncode == 0, done.stderr[-2000:]


def test_in_a_group_of_the_users_own_rank_0_alone_warns() -> None:
    """Which leaves no place for notes, so that no process knows what another said."""
    told = [Recorder(), Recorder()]
    for rank, one in enumerate(told):
        World(rank=rank, size=2, joined=True).voice(one).warn("near chance")
    assert [one.warnings for one in told] == [["near chance"], []]


def test_data_that_make_no_step_are_named_as_such(tmp_path: Path) -> None:
    """And not a loss that is no number."""
    pixels, labels = pictures(5, seed=0)
    with pytest.raises(ProcessesError, match="`train` has 1 picture, of which an epoch has no step: give at least 2"):
        demkd.train("resnet8", train=(pixels[4:], labels[4:]), test=(pixels, labels), out=tmp_path, **QUIET)
    with pytest.raises(ProcessesError, match=r"`train` has 7 pictures, .* no step on 4 processes: give at least 8"):
        require_samples(7, World(size=4).least_batch, World(size=4))
    require_samples(8, World(size=4).least_batch, World(size=4))
