"""Networks on the command line: listed, named from anywhere, exported; real checkpoints are as good as they were."""

import json
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import demkd
from demkd.cli import main
from demkd.networks import NETWORKS
from tests.conftest import Cli

OWN_CODE = """
import cache, dataset  # the project's own
from torch import nn

def build(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
"""

TOP1 = {"resnet20": 60.16, "wrn_16_2": 65.52, "vgg8": 62.09}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with folders called as ours, and a network in one of them."""
    for name in ("networks", "cache", "dataset", "pipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "networks" / "mine.py").write_text(OWN_CODE)
    return tmp_path


def test_networks_lists_every_network_with_its_cost() -> None:
    listing = json.loads(CliRunner().invoke(main, ["networks", "--json"], catch_exceptions=False).stdout)
    assert [network["network"] for network in listing] == list(NETWORKS)
    assert listing[0] == {
        "network": "resnet8",
        "parameters": 83_892,
        "features": "stem 16x32x32  stage1 16x32x32  stage2 32x16x16  stage3 64x8x8  pooled 64",
    }
    shown = CliRunner().invoke(main, ["networks", "--classes", "10"]).stdout
    assert all(name in shown for name in NETWORKS)
    assert f"{83_892 - 90 * (64 + 1):,}" in shown, "a linear layer of 90 classes fewer"


@pytest.mark.slow
def test_own_code_is_trained_cached_and_exported(cli: Cli, project: Path, picture_folder: Path) -> None:
    """Every command takes it where it is named; a run folder alone does not import it."""
    small = ("--data", picture_folder, "--device", "cpu", "--precision", "float32", "--quiet")
    training = ("--epochs", 1, "--batch-size", 16, "--learning-rate", 0.001, *small)
    cli("train", "networks.mine:build", "--out", "teacher", *training, cwd=project)
    teacher = "mine=networks.mine:build@teacher"
    cli("cache-teachers", "--teacher", teacher, "--views", 2, "--features", "1", "--out", "kept", *small, cwd=project)
    cli("distill", "--cache", "kept", "--student", "networks.mine:build", "--out", "run", *training, cwd=project)
    refused = cli("evaluate", "run", *small, cwd=project, check=False)
    assert refused.returncode == 1
    assert "is of networks.mine:build, code of your own, which is only imported when you name it" in refused.stderr
    evaluation = cli("evaluate", "run", "--network", "networks.mine:build", *small, "--json", cwd=project).stdout
    assert json.loads(evaluation)["samples"] == 12
    out = ("--format", "safetensors", "--out", "student.safetensors", "--json", "--quiet")
    report = json.loads(cli("export", "run", "--network", "networks.mine:build", *out, cwd=project).stdout)
    assert report["largest_difference"] < 1e-5


def test_a_recipe_does_not_import_code(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as a network to train, nor as a student, nor as a teacher."""
    monkeypatch.chdir(project)
    for command, recipe, arguments in [
        ("train", 'network = "networks.mine:build"', []),
        ("distill", 'student = "networks.mine:build"', ["--cache", "kept"]),
        ("distill", 'teacher = ["a=networks.mine:build@w.pth"]', ["--online", "--student", "resnet8"]),
    ]:
        (project / "recipe.toml").write_text(f'{recipe}\ndata = "digits"\n')
        line = [command, "--recipe", "recipe.toml", "--out", "run", *arguments]
        result = CliRunner().invoke(main, line)
        assert result.exit_code == 1, result.output
        assert "the recipe names networks.mine:build, code of your own" in result.stderr
        assert "networks.mine" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize("network", TOP1)
def test_real_checkpoints_have_their_top1(shared: Path, tmp_path_factory: pytest.TempPathFactory, network: str) -> None:
    """All 10,000 test images in float32, to within 0.1 points of what their README says."""
    report = demkd.evaluate(
        shared / "checkpoints" / f"{network}_cifar100.pth",
        cifar100_test(shared, tmp_path_factory),
        network=network,
        normalize="cifar100",
        precision="float32",
        progress=False,
    )
    assert report.samples == 10_000
    assert 100 * report.top1 == pytest.approx(TOP1[network], abs=0.1)


def cifar100_test(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test images as a folder, unpacked once a session; of the training images the class folders are enough."""
    folder = tmp_path_factory.getbasetemp() / "cifar100"
    if not folder.exists():
        with zipfile.ZipFile(shared / "data" / "cifar100" / "test.zip") as archive:
            archive.extractall(folder)
        for name in (folder / "test").iterdir():
            (folder / "train" / name.name).mkdir(parents=True)
    return folder
