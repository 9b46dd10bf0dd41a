"""Export: a student as a file for other software, which is loaded and compared before it gets its name.

safetensors    the state dict, for the same network in PyTorch; the commands read it as a checkpoint
onnx           a graph, for any ONNX runtime
torch-export   a graph, for `torch.export.load`, which needs none of this project

Every file takes normalized images (B, 3, H, W), float32, for any B and the H and W of the data, gives logits (B, C),
and holds the normalization and the class names as JSON under "demkd" in its metadata.
"""

import importlib.util
import io
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from demkd.cache import open_cache
from demkd.config import ConfigError, Folder, ImageConfig, run_data
from demkd.dataset import Data, as_dataset, closing_workers
from demkd.errors import UserError
from demkd.networks import build_network
from demkd.pipeline.distributed import child_environment, python_module
from demkd.pipeline.evaluate import evaluation_views
from demkd.pipeline.parquet import export_rows
from demkd.pipeline.progress import Progress, as_progress
from demkd.pipeline.results import ExportReport, ParquetReport
from demkd.pipeline.targets import images_of
from demkd.teachers.checkpoint import sealed_facts
from demkd.teachers.load import load_network

Floats = NDArray[np.float32]
Predict = Callable[[Floats], Floats]  # views (B, 3, H, W) -> logits (B, C)

_VIEWS, _LOGITS, _FACTS = "views.npy", "logits.npy", "facts.json"  # files between the processes
_IMAGES = 256
_BATCH = 100
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_OTHER_VERSIONS = (
    ", or versions that fit each other: pip install --upgrade torch onnx onnxscript; with torch 2.6, "
    "pip install 'onnxscript<0.3' 'onnx<1.18' 'protobuf<6'"
)
# As a share of the largest logit: other kernels add in another order; a wrong graph is off by far more.
_TOLERANCE = 1e-3


class ExportError(UserError, RuntimeError):
    """A network that cannot be exported, or whose exported file gives other logits."""


def export(
    run: Folder,
    *,
    file_format: str,
    out: Folder,
    data: Data | None = None,
    network: str | None = None,
    images: ImageConfig | None = None,
    progress: bool | Progress = True,
) -> ExportReport | ParquetReport:
    """Write the network of a finished run for use elsewhere, and check the file by loading it in a fresh process.

    Or write the rows of a cache as Parquet files.

    Args:
        run: a run folder, or a checkpoint; of "parquet", a cache.
        file_format: "safetensors", "onnx", "torch-export" or "parquet".
        out: the file; of "parquet", the folder.
        data: whose test images it is checked on, as `evaluate` takes them; by default those of the run's recipe. Of
            "parquet", the cached data, to name each image's file.
        network: the network's name, for a checkpoint that does not know it.
        images: how those are decoded.

    Raises:
        ExportError: if the format is unknown, its packages are missing, the network cannot be exported, or the
            exported one gives other logits; there is no new file then, and an older one stays.
        CheckpointError, DataError: if the network or its images cannot be read.
    """
    out, progress = Path(out), as_progress(progress)
    if file_format == "parquet":
        if network is not None:
            raise ConfigError("`network` is of a checkpoint, and `file_format=parquet` of a cache: leave it out")
        with open_cache(run, task=progress.task) as cache:
            file_of = cache.file_of if data is None else images_of(cache, data).file_of
            return export_rows(cache, out, file_of, progress)
    run = Path(run)
    if file_format not in FORMATS:
        raise ExportError(f"there is no format {file_format!r}: choose {', '.join(FORMATS)}, or parquet for a cache")
    missing = [package for package in _ONNX_PACKAGES if importlib.util.find_spec(package) is None]
    if file_format == "onnx" and missing:
        raise ExportError(f"{' and '.join(missing)} not installed: pip install 'demkd[onnx]' installs what ONNX needs")
    data = run_data(run, option="data") if data is None else data  # the file is checked on its test images
    test = as_dataset(data, split="test", images=images, progress=progress)
    loaded = load_network(run, name=network, dataset=test)
    student = loaded.network.eval().requires_grad_(requires_grad=False)
    batches = torch.split(torch.arange(min(_IMAGES, len(test))), _BATCH)
    with closing_workers(test):
        stream = evaluation_views(test, loaded.input, batches, torch.device("cpu"))
        views = torch.cat([loaded.input.prepare(views) for views in stream]).contiguous()  # (256, 3, H, W)
    with torch.no_grad():
        expected: Floats = torch.cat([student(batch) for batch in torch.split(views, _BATCH)]).numpy()
    facts = {
        "network": loaded.name,
        "class_names": test.class_names,
        "mean": loaded.input.normalization.mean,
        "std": loaded.input.normalization.std,
        "input_size": loaded.input.size,
        "crop_pct": loaded.input.crop_pct,
        "interpolation": loaded.input.interpolation,
        "input": f"(B, {', '.join(str(side) for side in views.shape[1:])}) float32: (pixels / 255 - mean) / std",
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside the file, on the same disk, so that the draft can be renamed.
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
            draft = Path(folder) / out.name
            progress.note(f"writing {file_format}")
            _write(file_format, student, views[:2], json.dumps(facts), draft)
            progress.note("loading it in a fresh process")
            difference = _compare(file_format, draft, views.numpy(), expected, json.dumps(facts))
            file_bytes = draft.stat().st_size
            draft.replace(out)
    except OSError as error:
        raise ExportError(
            f"{out} cannot be written ({error.strerror or error}): choose another file (`out`)"
        ) from error
    return ExportReport(
        folder=run,
        file=out,
        format=file_format,
        network=loaded.name,
        classes=test.classes,
        input_shape=tuple(views.shape[1:]),
        images=len(views),
        largest_difference=difference,
        file_bytes=file_bytes,
    )


def _write(name: str, student: nn.Module, example: Tensor, facts: str, file: Path) -> None:
    """Write one format, quietly; of the exporters' errors, which are pages long, keep the first cause."""
    write, _ = FORMATS[name]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            write(student, example, facts, file)
    except OSError:
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        reason = (str(cause).strip().splitlines() or [""])[0][:200]
        raise ExportError(
            f"torch {torch.__version__} could not write this network as {name} ({type(cause).__name__}: {reason}): "
            f"try `file_format=safetensors`{_OTHER_VERSIONS if name == 'onnx' else ' or another version of torch'}"
        ) from error
    finally:
        logging.disable(before)


def _compare(name: str, file: Path, views: Floats, expected: Floats, facts: str) -> float:
    """The largest difference between the student's logits and those of the file, loaded in a fresh process."""
    exchange = file.parent / "exchange"
    exchange.mkdir()
    np.save(exchange / _VIEWS, views)
    process = subprocess.run(  # noqa: S603 - this interpreter, our own code
        [*python_module("demkd.pipeline.export"), name, str(file), str(exchange)],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExportError(f"the exported {name} cannot be loaded again ({reason}): try another `file_format`")
    found: Floats = np.load(exchange / _LOGITS)
    if json.loads((exchange / _FACTS).read_text(encoding="utf-8")) != json.loads(facts):
        raise ExportError(f"the exported {name} has lost its metadata: try another `file_format`")
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ExportError(
            f"the exported {name} gives other logits than the student (they differ by up to {difference:.3g}): "
            "try another `file_format`"
        )
    return difference


def _load_and_predict(name: str, file: Path, exchange: Path) -> None:
    """In the fresh process: one image, then the others, to find a graph that takes only one batch size."""
    views = np.load(exchange / _VIEWS)
    _, read = FORMATS[name]
    predict, facts = read(file, views.shape[2:])
    with torch.no_grad():
        logits = [predict(batch) for batch in (views[:1], views[1:]) if len(batch)]
    np.save(exchange / _LOGITS, np.concatenate(logits))
    (exchange / _FACTS).write_text(facts, encoding="utf-8")


def _write_safetensors(network: nn.Module, _example: Tensor, facts: str, file: Path) -> None:
    state = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    file.write_bytes(save(state, metadata={"demkd": sealed_facts(json.loads(facts), state)}))


def _read_safetensors(file: Path, size: tuple[int, int]) -> tuple[Predict, str]:
    with safe_open(file, framework="pt") as tensors:
        facts = json.loads(tensors.metadata()["demkd"])
    del facts["sha256"]
    network = build_network(facts["network"], classes=len(facts["class_names"]), size=size).eval()
    network.load_state_dict(load_file(file))
    return lambda views: network(torch.from_numpy(views)).numpy(), json.dumps(facts)


def _graph(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The network as a graph for any number of images; the example (2, 3, H, W) fixes the rest."""
    batch = torch.export.Dim("batch")
    return torch.export.export(network, (example,), dynamic_shapes=({0: batch},), strict=False)


def _write_torch_export(network: nn.Module, example: Tensor, facts: str, file: Path) -> None:
    # Through memory: torch.export.save to a path writes the draft's name into the archive.
    buffer = io.BytesIO()
    torch.export.save(_graph(network, example), buffer, extra_files={"demkd": facts})
    file.write_bytes(buffer.getvalue())


def _read_torch_export(file: Path, _size: tuple[int, int]) -> tuple[Predict, str]:
    facts = {"demkd": ""}
    network = torch.export.load(file, extra_files=facts).module()
    return lambda views: network(torch.from_numpy(views)).numpy(), facts["demkd"]


def _write_onnx(network: nn.Module, example: Tensor, facts: str, file: Path) -> None:
    program: Any = torch.onnx.export(
        _graph(network, example), dynamo=True, input_names=["views"], output_names=["logits"], verbose=False
    )
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        value.shape[0] = "batch"  # else a symbol of PyTorch's, such as s49
    program.model.metadata_props["demkd"] = facts
    program.save(file)


def _read_onnx(file: Path, _size: tuple[int, int]) -> tuple[Predict, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map["demkd"]
    return lambda views: session.run(["logits"], {"views": views})[0], facts


Write = Callable[[nn.Module, Tensor, str, Path], None]  # network, example, facts, file
Read = Callable[[Path, tuple[int, int]], tuple[Predict, str]]  # file, (H, W) -> a function, facts
FORMATS: dict[str, tuple[Write, Read]] = {
    "safetensors": (_write_safetensors, _read_safetensors),
    "onnx": (_write_onnx, _read_onnx),
    "torch-export": (_write_torch_export, _read_torch_export),
}


if __name__ == "__main__":
    _load_and_predict(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
