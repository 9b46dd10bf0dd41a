"""An exported student gives the logits of the run's student in another process, or there is no file."""

import copy
import importlib.util
import json
import subprocess
import sys
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
from demkd.pipeline import export as exporting
from demkd.pipeline.export import ExportError
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


def exported(run: Path, out: Path, **options: Any) -> ExportReport:
    return demkd.export(run, out=out, **{"file_format": "safetensors", "progress": False, **options})


def test_safetensors_are_a_checkpoint_of_ours(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "student.safetensors"
    report = exported(run, file)
    assert (report.network, report.classes, report.input_shape, report.images) == ("resnet8", 3, (3, 16, 16), 12)
    assert report.largest_difference < 1e-5
    assert report.file_bytes == file.stat().st_size
    with safe_open(file, framework="np") as tensors:
        facts = json.loads(tensors.metadata()["demkd"])
    assert facts["class_names"] == ["ant", "bee", "cat"]
    assert facts["input"] == "(B, 3, 16, 16) float32: (pixels / 255 - mean) / std"
    assert len(facts["mean"]) == len(facts["std"]) == 3
    assert top1(file, picture_folder) == top1(run, picture_folder)
    assert sorted(path.name for path in file.parent.iterdir()) == ["student.safetensors"], "drafts are removed"


@pytest.mark.slow
@needs_onnx
def test_an_onnx_graph_needs_nothing_of_ours(run: Path, picture_folder: Path, tmp_path: Path) -> None:
    """Reading the pictures as the metadata says, with onnxruntime alone, gives the run's answers."""
    file = tmp_path / "student.onnx"
    report = exported(run, file, file_format="onnx")
    assert report.largest_difference < 1e-4
    code = """
import json, sys, numpy, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
assert session.get_inputs()[0].shape == ["batch", 3, 16, 16]
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
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    "network",
    ["resnet8", "wrn_16_1", "vgg8", "ResNet18", "MobileNetV2", "ShuffleV1", "ShuffleV2",
     "torchvision:mobilenet_v3_small", "timm:resnet10t"],
)  # fmt: skip
def test_every_family_can_be_exported(network: str, format_: str, picture_folder: Path, tmp_path: Path) -> None:
    if network.startswith("timm:"):
        pytest.importorskip("timm")
    train_network(picture_folder, network, tmp_path / "run")
    report = exported(tmp_path / "run", tmp_path / "file", file_format=format_)
    assert (report.network, report.images) == (network, 12)
    if format_ == "torch-export":
        facts = {"demkd": ""}
        graph = torch.export.load(tmp_path / "file", extra_files=facts).module()
        assert json.loads(facts["demkd"])["network"] == network
        assert [graph(torch.zeros(batch, 3, 16, 16)).shape for batch in (1, 2, 7)] == [(1, 3), (2, 3), (7, 3)]


@pytest.mark.slow
def test_a_checkpoint_of_a_named_network_is_compared_on_256_images(tmp_path: Path) -> None:
    torch.save({"model": build_network("wrn_16_2", classes=10).state_dict()}, tmp_path / "a.pth")
    assert exported(tmp_path / "a.pth", tmp_path / "b", network="wrn_16_2", data="digits").images == 256


def other_logits(student: nn.Module, example: Tensor, facts: str, file: Path) -> None:
    other = copy.deepcopy(student)
    other.get_parameter("fc.bias").add_(0.1)
    exporting._write_safetensors(other, example, facts, file)


def other_metadata(student: nn.Module, example: Tensor, facts: str, file: Path) -> None:
    exporting._write_safetensors(student, example, facts.replace("bee", "bat"), file)


def unreadable(_student: nn.Module, _example: Tensor, _facts: str, file: Path) -> None:
    file.write_bytes(b"nothing")


def not_expressible(*_: object) -> None:
    raise TypeError("a branch depends on the numbers\nand so on for pages")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (other_logits, r"gives other logits than the student \(they differ by up to 0\.1\)"),
        (
            not_expressible,
            "could not write this network as safetensors \\(TypeError: a branch depends on the numbers\\): try "
            "`file_format=safetensors` or another version of torch",
        ),
        pytest.param(other_metadata, "has lost its metadata", marks=pytest.mark.slow),
        pytest.param(unreadable, "cannot be loaded again", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_is_not_the_student_is_removed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, reason: str
) -> None:
    """An older file of that name stays as it was; the reason is one line."""
    file = tmp_path / "student.safetensors"
    file.write_text("older")
    monkeypatch.setitem(exporting.FORMATS, "safetensors", (write, exporting._read_safetensors))
    with pytest.raises(ExportError, match=reason) as caught:
        exported(run, file)
    assert "\n" not in str(caught.value)
    assert file.read_text() == "older"
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_package_names_the_extra(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find("json"))
    with pytest.raises(ExportError, match=r"^onnxscript not installed: pip install 'demkd\[onnx\]'"):
        exported(run, tmp_path / "a.onnx", file_format="onnx")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"file_format": "tflite"}, "there is no format 'tflite': choose safetensors, onnx, torch-export"),
        ({"run": Path("no-such-run")}, "no-such-run has no recipe that names its data: give `data`"),
        ({"data": "digits"}, "was trained for 3 classes, and digits has 10"),
        (
            {"out": Path("/proc/none/student.onnx")},
            "student.onnx cannot be written .*: choose another file \\(`out`\\)",
        ),
    ],
)
def test_what_cannot_be_exported_says_why(run: Path, tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        exported(**{"run": run, "out": tmp_path / "student", **changes})
    assert not list(tmp_path.iterdir())


def top1(path: Path, data: Path) -> float:
    report = demkd.evaluate(path, data, precision="float32", progress=False)
    assert report.network == "resnet8"
    return report.top1
