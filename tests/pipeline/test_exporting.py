"""An exported student answers as the run's does, in a process that knows nothing of the run, or there is no file."""

import copy
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import demkd
from demkd.errors import UserError
from demkd.networks import build_network
from demkd.pipeline import exporting
from demkd.pipeline.exporting import ExportError, ExportRequest, export
from demkd.pipeline.progress import SilentProgress
from demkd.pipeline.results import ExportReport
from tests.pipeline.stages import train_network

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra onnx is not installed",
)
FORMATS = ["safetensors", "torch-export", pytest.param("onnx", marks=needs_onnx)]


@pytest.fixture(scope="module")
def run(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """resnet8 on 16-pixel pictures of three classes; an epoch has moved its statistics."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    train_network(picture_folder, "resnet8", folder)
    return folder


def exported(run: Path, out: Path, **changes: Any) -> ExportReport:
    request = ExportRequest(run=run, network=None, data=None, format="safetensors", out=out)
    return export(replace(request, **changes), SilentProgress())


def test_safetensors_are_a_checkpoint_of_ours(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "student.safetensors"
    report = exported(run, file)
    assert (report.network, report.classes, report.input_shape, report.pictures) == ("resnet8", 3, (3, 16, 16), 12)
    assert report.largest_difference < 1e-5
    assert report.file_bytes == file.stat().st_size
    with safe_open(file, framework="np") as tensors:
        facts = json.loads(tensors.metadata()["demkd"])
    assert facts["class_names"] == ["ant", "bee", "cat"]
    assert facts["input"] == "(B, 3, 16, 16) float32: (pixels / 255 - mean) / std"
    assert len(facts["mean"]) == len(facts["std"]) == 3
    assert top1(file, picture_folder) == top1(run, picture_folder)
    assert sorted(path.name for path in file.parent.iterdir()) == ["student.safetensors"], "drafts are removed"


@needs_onnx
def test_an_onnx_graph_needs_nothing_of_ours(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    """Reading the pictures as the metadata says, with onnxruntime alone, gives the run's answers."""
    file = tmp_path / "student.onnx"
    report = exported(run, file, format="onnx")
    assert report.largest_difference < 1e-4
    code = """
import json, sys, numpy, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["demkd"])
pixels = numpy.stack([numpy.asarray(Image.open(path)) for path in sys.argv[2:]]).astype("float32")
views = ((pixels / 255 - facts["mean"]) / facts["std"]).transpose(0, 3, 1, 2).astype("float32")
logits, = session.run(["logits"], {"views": views})
assert not any(name.partition(".")[0] in ("torch", "demkd") for name in sys.modules)
print(json.dumps([facts["class_names"][i] for i in logits.argmax(1)]))
"""
    pictures = sorted((picture_folder / "test").glob("*/*.png"))
    result = subprocess.run([sys.executable, "-c", code, file, *pictures], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    right = np.mean([path.parent.name == name for path, name in zip(pictures, json.loads(result.stdout), strict=True)])
    assert right == pytest.approx(top1(run, picture_folder))


@pytest.mark.slow
def test_a_torch_graph_takes_any_batch_and_knows_its_input(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "student.pt2"
    assert exported(run, file, format="torch-export").largest_difference < 1e-5
    facts = {"demkd": ""}
    graph = torch.export.load(file, extra_files=facts).module()
    assert json.loads(facts["demkd"])["network"] == "resnet8"
    assert [graph(torch.zeros(batch, 3, 16, 16)).shape for batch in (1, 2, 7)] == [(1, 3), (2, 3), (7, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    "network",
    [
        "wrn_16_1",
        "vgg8",
        "ResNet18",
        "MobileNetV2",
        "ShuffleV1",
        "ShuffleV2",
        "torchvision:mobilenet_v3_small",
        "timm:resnet10t",
    ],
)
def test_every_family_can_be_exported(network: str, format_: str, picture_folder: Path, tmp_path: Path) -> None:
    if network.startswith("timm:"):
        pytest.importorskip("timm")
    train_network(picture_folder, network, tmp_path / "run")
    report = exported(tmp_path / "run", tmp_path / "file", format=format_)
    assert report.network == network
    assert report.pictures == 12


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
def test_a_checkpoint_of_a_named_network_is_compared_on_256_pictures(tmp_path: Path, format_: str) -> None:
    torch.manual_seed(0)
    torch.save({"model": build_network("wrn_16_2", classes=10).state_dict()}, tmp_path / "a.pth")
    report = exported(tmp_path / "a.pth", tmp_path / "b", format=format_, network="wrn_16_2", data="digits")
    assert report.pictures == 256


def test_a_file_with_other_logits_is_removed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older file of that name stays as it was."""
    file = tmp_path / "student.safetensors"
    file.write_text("older")
    write = exporting.FORMATS["safetensors"]

    def write_another(network: nn.Module, example: Tensor, facts: str, path: Path) -> None:
        other = copy.deepcopy(network)
        other.get_parameter("fc.bias").add_(0.1)
        write(other, example, facts, path)

    monkeypatch.setitem(exporting.FORMATS, "safetensors", write_another)
    with pytest.raises(ExportError, match=r"gives other logits than the student \(they differ by up to 0\.1\)"):
        exported(run, file)
    require_only(file, "older")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b"nothing"), "cannot be loaded again"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"bee", b"bat")), "has lost its metadata"),
    ],
    ids=["unreadable", "other metadata"],
)
def test_a_file_that_cannot_be_read_back_is_not_handed_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, reason: str
) -> None:
    file = tmp_path / "student.safetensors"
    file.write_text("older")
    write = exporting.FORMATS["safetensors"]

    def write_damaged(network: nn.Module, example: Tensor, facts: str, path: Path) -> None:
        write(network, example, facts, path)
        damage(path)

    monkeypatch.setitem(exporting.FORMATS, "safetensors", write_damaged)
    with pytest.raises(ExportError, match=reason) as caught:
        exported(run, file)
    assert "\n" not in str(caught.value)
    require_only(file, "older")


def test_what_a_format_cannot_express_is_one_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TypeError("a branch depends on the numbers\nand so on for pages")

    monkeypatch.setitem(exporting.FORMATS, "torch-export", fail)
    with pytest.raises(ExportError) as caught:
        exported(run, tmp_path / "student.pt2", format="torch-export")
    assert str(caught.value) == (
        f"torch {torch.__version__} could not write this network as torch-export (TypeError: a branch depends on the "
        "numbers): try `file_format=safetensors` or another version of torch"
    )
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_an_onnx_export_that_fails_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("step 3/3") from AttributeError("no attribute 'ir'")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(
        ExportError, match=r"\(AttributeError: no attribute 'ir'\): .*; with torch 2\.6, pip install 'onnx"
    ):
        exported(run, tmp_path / "student.onnx", format="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find("json"))
    with pytest.raises(ExportError, match=rf"^{package} not installed: pip install 'demkd\[onnx\]'"):
        exported(run, tmp_path / "a.onnx", format="onnx")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "tflite"}, "there is no format 'tflite': choose safetensors, onnx, torch-export"),
        ({"run": Path("no-such-run")}, "no-such-run has no recipe that names its data, .*: give `data`"),
        ({"run": Path("no-such-run"), "data": "digits"}, "there is no file no-such-run; give a checkpoint file or"),
        ({"data": "digits"}, "was trained for 3 classes, and digits has 10"),
        (
            {"out": Path("/proc/none/student.onnx")},
            "student.onnx cannot be written .*: choose another file \\(`out`\\)",
        ),
    ],
)
def test_what_cannot_be_exported_says_why(run: Path, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    request = ExportRequest(run=run, network=None, data=None, format="safetensors", out=tmp_path / "student")
    with pytest.raises(UserError, match=reason):
        export(replace(request, **changes), SilentProgress())
    assert not list(tmp_path.iterdir())


def top1(path: Path, data: Path) -> float:
    report = demkd.evaluate(path, data, precision="float32", progress=False)
    assert report.network == "resnet8"
    return report.top1


def require_only(file: Path, text: str) -> None:
    assert file.read_text() == text
    assert list(file.parent.iterdir()) == [file]
