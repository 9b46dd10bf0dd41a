"""Checkpoints as the field publishes them, read without ever running code from them.

Known layouts: a bare state dict; one under `model`, `state_dict` or `net`, with whatever else the training code put
beside it (RepDistiller, mdistiller, CA-MKD); names with `module.` in front, from data-parallel training; safetensors;
and the run folders of this project, whose weights are stored with network, classes and normalization. A checkpoint is
read whole or not at all, by PyTorch's restricted unpickler, which builds tensors and plain containers only.
"""

import hashlib
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from demkd.errors import UserError, shorten

STUDENT_FILE = "student.safetensors"
_RUN_STATE_FILE = "checkpoint.pt"
_WRAPPERS = ("model", "state_dict", "net")
_LARGEST_FIGURE = 1_000_000  # of a mean or a standard deviation; no NaN is below it
_SHOWN = 4
_LEGACY_PICKLES = 5  # a file of PyTorch before 1.6 is so many pickles, then the numbers
_NUMPY_KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be read safely, or is of another network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A network's weights by name, and what their file says of them."""

    path: Path
    state: Mapping[str, Tensor]
    # Of a file of this project: network, class_names, mean, std, input_size, crop_pct, interpolation; of other files,
    # class_names if they have them.
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file, or the weights of a run folder."""
    file = weights_file(path)
    if file.name == _RUN_STATE_FILE and (file.parent / "metrics.jsonl").is_file():
        raise CheckpointError(f"{file} holds the state to resume a run: give the run folder, {file.parent}")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    content, metadata = _unpickle(file), {}
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            names = _class_names(content)
            metadata = {"class_names": names} if names else {}
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{file} holds no state dict, neither bare nor under {', '.join(_WRAPPERS)}: give a checkpoint with one"
        )
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{file} holds no state dict, because {shorten(str(name))} is a {type(value).__name__} and no tensor: "
                f"put the tensors alone under one of {', '.join(_WRAPPERS)}"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "quantized" if value.is_quantized else "without numbers (meta)" if value.is_meta else "sparse"
            raise CheckpointError(f"the tensor {shorten(str(name))} of {file} is {kind}: save dense tensors")
    return Checkpoint(path=file, state=_without_prefix(content), metadata=metadata)


def weights_file(path: Path) -> Path:
    """The file itself, or the weights of a run folder; refused if it is not there."""
    file = path / STUDENT_FILE if path.is_dir() else path
    if not file.is_file():
        what = f"{path} has no {STUDENT_FILE}: the run is not finished" if path.is_dir() else f"there is no file {path}"
        raise CheckpointError(f"{what}; give a checkpoint file or a finished run folder")
    return file


def load_weights(network: nn.Module, checkpoint: Checkpoint) -> None:
    expected = network.state_dict()
    # PyTorch before 0.4.1 did not count batches, and nothing here depends on the count.
    counters = {name: tensor for name, tensor in expected.items() if name.endswith(".num_batches_tracked")}
    state = {**counters, **checkpoint.state}
    # Other shapes first, because they are the best hint; in the network's order.
    differences = [
        f"{name} is {_shape(state[name])} instead of {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    differences += [f"{name} is missing" for name in expected if name not in state]
    differences += [f"{shorten(name)} is left over" for name in state if name not in expected]
    if differences:
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise CheckpointError(
            f"{checkpoint.path} does not fit the network: {'; '.join(differences[:_SHOWN])}{more}: "
            "name the network and the data set that it was trained with"
        )
    network.load_state_dict(state)


def trained_classes(network: nn.Module, checkpoint: Checkpoint, *, classes: int) -> int:
    """The number of classes that a checkpoint was trained for; `classes`, the network's, if its tensors do not show it.

    They do if all tensors with another shape differ in their first dimension only, from C to one other number.
    """
    expected, state = network.state_dict(), checkpoint.state
    pairs = [(expected[name].shape, state[name].shape) for name in expected.keys() & state.keys()]
    different = [(own, other) for own, other in pairs if own != other]
    counts = {other[:1] for _, other in different}
    if len(counts) != 1 or () in counts or any((classes, *other[1:]) != own for own, other in different):
        return classes
    return int(counts.pop()[0])


def state_sha256(network: nn.Module) -> str:
    """Digest of a network's tensors: names, types, shapes and bytes, in the order of their names."""
    return _digest(network.state_dict())


def sealed_facts(facts: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """The metadata of a file of safetensors as JSON: facts, and a digest of them and of the tensors."""
    return json.dumps({**facts, "sha256": _digest(state, json.dumps(facts, sort_keys=True))})


def _digest(state: Mapping[str, Tensor], facts: str = "") -> str:
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(state.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_safetensors(file: Path) -> Checkpoint:
    try:
        with safe_open(file, framework="pt") as tensors:
            text = (tensors.metadata() or {}).get("demkd", "{}")
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is truncated or no safetensors file ({error}): get it again") from error
    checks: dict[str, Callable[[Any], bool]] = {
        "network": lambda value: isinstance(value, str),
        "class_names": _are_names,
        "mean": _are_figures,
        "std": lambda value: _are_figures(value) and min(value) > 0,
        "input_size": lambda value: value is None or (type(value) is int and 1 <= value <= 4096),
        "crop_pct": lambda value: value is None or (isinstance(value, int | float) and 0 < value <= 1),
        "interpolation": lambda value: isinstance(value, str),
    }
    try:
        metadata = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the metadata of {file} cannot be read ({error}): get it again") from error
    sha256 = metadata.pop("sha256", None)  # earlier versions, and other software, write none
    if sha256 is not None and sha256 != _digest(state, json.dumps(metadata, sort_keys=True)):
        raise CheckpointError(f"{file} was changed after it was written, its digest says: get it again")
    if "crop_ratio" in metadata:  # its name in earlier versions
        metadata.setdefault("crop_pct", metadata.pop("crop_ratio"))
    for name, is_valid in checks.items():
        if name in metadata and not is_valid(metadata[name]):
            raise CheckpointError(f"the metadata of {file} has an invalid {name}: get it again")
    if ("mean" in metadata) != ("std" in metadata):
        raise CheckpointError(f"the metadata of {file} has `mean` without `std`, or the reverse: get it again")
    return Checkpoint(path=file, state=_without_prefix(state), metadata=metadata)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_figures(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(number) in (int, float) and abs(number) <= _LARGEST_FIGURE for number in value)
    )


def _unpickle(file: Path) -> Any:
    """By PyTorch's restricted unpickler: tensors and plain containers, and the NumPy scalars that `best_acc` may be."""
    rebuild: Any = np.float64(0).__reduce__()[0]
    # NumPy 2 renamed its core, and with it the function that makes a scalar.
    names: list[Any] = [(rebuild, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    dtypes = [type(np.dtype(kind)) for kind in _NUMPY_KINDS]
    try:
        with torch.serialization.safe_globals([*names, np.dtype, *dtypes]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old protocols and storages, which concern its author
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror or error}): check the file") from error
    except Exception as error:  # a cut or random file makes the unpickler raise nearly anything
        if not isinstance(error, pickle.UnpicklingError) or not _is_whole(file):
            raise CheckpointError(f"{file} is truncated or no checkpoint: get it again") from error
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({shorten(culprit.group(1))})" if culprit else ""
        raise CheckpointError(
            f"{file} holds more than tensors{what}, and reading it could run code: where you trust it, load it and "
            "save its state dict with safetensors.torch.save_file(state_dict, 'FILE.safetensors'), then give that file"
        ) from error


def _is_whole(file: Path) -> bool:
    """Whether a file that the unpickler refused is not truncated, so that its content is the reason."""
    if zipfile.is_zipfile(file):
        return True
    try:
        with file.open("rb") as stream:
            for _ in range(_LEGACY_PICKLES):
                if not stream.peek(1):
                    return True
                for _opcode in pickletools.genops(stream):
                    pass
    except Exception:  # as above
        return False
    return True


def _class_names(content: Mapping[Any, Any]) -> list[str] | None:
    """The names in the order of their labels, if a checkpoint has them: a list, or torchvision's `class_to_idx`."""
    for key in ("class_names", "classes"):
        value = content.get(key)
        if isinstance(value, list | tuple) and value and _are_names(list(value)):
            return list(value)
    labels = content.get("class_to_idx")
    if isinstance(labels, Mapping) and sorted(map(str, labels.values())) == sorted(map(str, range(len(labels)))):
        return [str(name) for name, _ in sorted(labels.items(), key=lambda pair: int(pair[1]))]
    return None


def _without_prefix(state: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def _shape(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "a scalar"
