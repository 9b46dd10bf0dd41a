"""Export: a student as a file for other software, which is loaded and compared before it gets its name.

safetensors    the state dict, for the same network in PyTorch; the commands read it as a checkpoint
onnx           a graph, for any ONNX runtime
torch-export   a graph, for `torch.export.load`, which needs none of this project

Every file takes normalised pictures (B, 3, H, W), float32, for any B and the H and W of the data, gives logits (B, C),
and holds the normalisation and the class names as JSON under "demkd" in its metadata.
"""

import importlib.util
import io
import json
import logging
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from demkd.dataset import ImageSource, Reading, load_images, resting_after
from demkd.errors import UserError
from demkd.pipeline.child_process import child_environment, python_module
from demkd.pipeline.evaluation import evaluation_views
from demkd.pipeline.export_check import FACTS, LOGITS, VIEWS
from demkd.pipeline.loading import LoadedNetwork, load_network
from demkd.pipeline.progress import Progress
from demkd.pipeline.recipe import RecipeError, read_recipe
from demkd.pipeline.results import ExportReport

_PICTURES = 256
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """The options of `export`.

    Attributes:
        run: a finished run folder, or a checkpoint.
        network: the network's name, for a checkpoint that does not have it.
        data: where the test pictures come from; None for the data of the run's recipe.
        reading: how they are decoded.
    """

    run: Path
    network: str | None
    data: str | None
    format: str
    out: Path
    reading: Reading | None = None


def export(request: ExportRequest, progress: Progress) -> ExportReport:
    """Write a draft, load it in a fresh process, compare the logits of 256 test pictures, then rename it to `out`.

    Raises:
        ExportError: if the format is unknown, its packages are missing, the network cannot be exported, or the
            exported one gives other logits; there is no new file then, and an older one stays.
        CheckpointError, DataError: if the network or its pictures cannot be read.
    """
    _require_format(request.format)
    data = request.data or _data_of(request.run)
    progress.note(f"reading the test pictures of {data}")
    test = load_images(data, split="test", reading=request.reading, told=progress)
    loaded = load_network(request.run, name=request.network, source=test)
    network = loaded.network.eval().requires_grad_(requires_grad=False)
    views = _prepared_pictures(loaded, test)
    facts = {
        "network": loaded.name,
        "class_names": test.class_names,
        "mean": loaded.input.normalisation.mean,
        "std": loaded.input.normalisation.std,
        "input_size": loaded.input.size,
        "crop_ratio": loaded.input.crop_ratio,
        "input": f"(B, {', '.join(str(side) for side in views.shape[1:])}) float32: (pixels / 255 - mean) / std",
    }
    with _beside(request.out) as draft:
        progress.note(f"writing {request.format}")
        _write(request.format, network, views[:2], json.dumps(facts), draft)
        progress.note("loading it in a fresh process")
        difference = _compare(request.format, draft, views, expected=_logits(network, views), facts=facts)
        file_bytes = draft.stat().st_size
        draft.replace(request.out)
    return ExportReport(
        folder=request.run,
        file=request.out,
        format=request.format,
        network=loaded.name,
        classes=test.classes,
        input_shape=tuple(views.shape[1:]),
        pictures=len(views),
        largest_difference=difference,
        file_bytes=file_bytes,
    )


def _require_format(name: str) -> None:
    if name not in FORMATS:
        raise ExportError(f"there is no format {name!r}: choose {', '.join(FORMATS)}")
    if name == "onnx":
        missing = [package for package in _ONNX_PACKAGES if importlib.util.find_spec(package) is None]
        if missing:
            raise ExportError(
                f"{' and '.join(missing)} not installed: pip install 'demkd[onnx]' installs what ONNX needs"
            )


def _data_of(run: Path) -> str:
    try:
        return str(read_recipe(run / "recipe.toml")["data"])
    except (RecipeError, KeyError):
        raise ExportError(
            f"{run} has no recipe that names its data, on whose test pictures the file is checked: give `data`"
        ) from None


def _prepared_pictures(loaded: LoadedNetwork, test: ImageSource) -> Tensor:
    """The first 256 test pictures as the network's input: (256, 3, H, W), contiguous."""
    batches = torch.split(torch.arange(min(_PICTURES, len(test))), _BATCH)
    stream = evaluation_views(test, loaded.input, batches, torch.device("cpu"))
    with resting_after(test):
        return torch.cat([loaded.input.prepare(views) for views in stream]).contiguous()


@torch.no_grad()
def _logits(network: nn.Module, views: Tensor) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = torch.cat([network(batch) for batch in torch.split(views, _BATCH)]).numpy()
    return logits


def _write(name: str, network: nn.Module, example: Tensor, facts: str, file: Path) -> None:
    """Write one format; of the exporters' errors, which are of many kinds and pages long, keep the first cause."""
    try:
        with _quiet():
            FORMATS[name](network, example, facts, file)
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


def _write_safetensors(network: nn.Module, _example: Tensor, facts: str, file: Path) -> None:
    state = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
    file.write_bytes(save(state, metadata={"demkd": facts}))


def _write_torch_export(network: nn.Module, example: Tensor, facts: str, file: Path) -> None:
    # Through memory: torch.export.save to a path writes the draft's name into the archive.
    buffer = io.BytesIO()
    torch.export.save(_graph(network, example), buffer, extra_files={"demkd": facts})
    file.write_bytes(buffer.getvalue())


def _write_onnx(network: nn.Module, example: Tensor, facts: str, file: Path) -> None:
    program: Any = torch.onnx.export(
        _graph(network, example), dynamo=True, input_names=["views"], output_names=["logits"], verbose=False
    )
    program.model.metadata_props["demkd"] = facts
    program.save(file)


def _graph(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The network as a graph for any number of pictures; the example (2, 3, H, W) fixes the rest."""
    batch = torch.export.Dim("batch")
    return torch.export.export(network, (example,), dynamic_shapes=({0: batch},), strict=False)


FORMATS: dict[str, Callable[[nn.Module, Tensor, str, Path], None]] = {
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
    "torch-export": _write_torch_export,
}


def _compare(
    name: str, file: Path, views: Tensor, *, expected: NDArray[np.float32], facts: Mapping[str, object]
) -> float:
    """The largest difference between the student's logits and those of the file, loaded in a fresh process.

    Raises:
        ExportError: if it cannot be loaded, differs by more than rounding, or has other metadata.
    """
    exchange = file.parent / "exchange"
    exchange.mkdir()
    np.save(exchange / VIEWS, views.numpy())
    process = subprocess.run(  # noqa: S603 - this interpreter, our own code
        [*python_module("demkd.pipeline.export_check"), name, str(file), str(exchange)],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExportError(f"the exported {name} cannot be loaded again ({reason}): try another `file_format`")
    found: NDArray[np.float32] = np.load(exchange / LOGITS)
    if json.loads((exchange / FACTS).read_text(encoding="utf-8")) != json.loads(json.dumps(facts)):
        raise ExportError(f"the exported {name} has lost its metadata: try another `file_format`")
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ExportError(
            f"the exported {name} gives other logits than the student (they differ by up to {difference:.3g}): "
            "try another `file_format`"
        )
    return difference


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A draft in a temporary folder beside the file, on the same disk, so that it can be renamed.

    Raises:
        ExportError: if it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
            yield Path(folder) / out.name
    except OSError as error:
        raise ExportError(
            f"{out} cannot be written ({error.strerror or error}): choose another file (`out`)"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' log lines and warnings from stderr."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
