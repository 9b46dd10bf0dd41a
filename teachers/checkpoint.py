"""Checkpoints as the field publishes them, read without ever running code from them.

Known layouts: a bare state dict; one under `model` or `state_dict`, with whatever else the training code put beside it
(RepDistiller, mdistiller, CA-MKD); names with `module.` in front, from data-parallel training; safetensors; and the
run folders of this project, whose weights also know their network, classes and normalisation.
"""

import contextlib
import hashlib
import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from demkd.teachers.errors import CheckpointError

STUDENT_FILE = "student.safetensors"
_WRAPPERS = ("model", "state_dict", "net")
_SHOWN = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A network's weights and what their file says of them.

    Attributes:
        state: tensor by name.
        facts: what a file of this project knows: network, class_names, mean, deviation. Empty for others.
    """

    path: Path
    state: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file, or the weights of a run folder.

    Raises:
        CheckpointError: if there is none, if it is truncated or no checkpoint, or if reading it would run code.
    """
    file = path / STUDENT_FILE if path.is_dir() else path
    if not file.is_file():
        what = f"{path} has no {STUDENT_FILE}: the run is not finished" if path.is_dir() else f"there is no file {path}"
        raise CheckpointError(f"{what}; give a checkpoint file or a finished run folder")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    return Checkpoint(path=file, state=_state_dict(file, _unpickle_weights(file)))


def load_weights(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a network.

    Raises:
        CheckpointError: naming the tensors that are missing, left over or of another shape.
    """
    expected, found = network.state_dict(), checkpoint.state
    differences = [
        *(f"{name} is missing" for name in expected.keys() - found.keys()),
        *(f"{name} is left over" for name in found.keys() - expected.keys()),
        *(
            f"{name} is {_shape_text(found[name])} instead of {_shape_text(expected[name])}"
            for name in expected.keys() & found.keys()
            if found[name].shape != expected[name].shape
        ),
    ]
    if differences:
        shown = "; ".join(sorted(differences)[:_SHOWN])
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise CheckpointError(
            f"{checkpoint.path} does not fit the network: {shown}{more}. "
            "Name the network and the data set that it was trained with"
        )
    network.load_state_dict(dict(found))


def state_sha256(network: nn.Module) -> str:
    """Digest of a network's tensors: names, types, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_safetensors(file: Path) -> Checkpoint:
    try:
        with safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - it is no dict
        facts = json.loads(metadata.get("demkd", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is truncated or no safetensors file ({error}): get it again") from error
    return Checkpoint(path=file, state=state, facts=facts)


def _unpickle_weights(file: Path) -> Any:
    """PyTorch's restricted unpickler: tensors and plain containers, and the NumPy scalars that `best_acc` may be."""
    try:
        with _numpy_scalars():
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "Unsupported" in str(error):
            raise CheckpointError(
                f"{file} holds more than tensors, and reading it could run code: convert it to safetensors "
                "where you trust it (safetensors.torch.save_file of its state dict)"
            ) from error
        raise CheckpointError(f"{file} is truncated or no checkpoint: get it again") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{file} is truncated or no checkpoint: get it again") from error


@contextlib.contextmanager
def _numpy_scalars() -> Iterator[None]:
    """Let the restricted unpickler build NumPy's number types, under both names of NumPy's core."""
    rebuild: Any = np.float64(0).__reduce__()[0]
    names: list[Any] = [(rebuild, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    dtypes = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")]
    with torch.serialization.safe_globals([*names, np.dtype, *dtypes]):
        yield


def _state_dict(file: Path, content: Any) -> dict[str, Tensor]:
    """Find the tensors, and take the data-parallel prefix off their names."""
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{file} holds no state dict, neither bare nor under {', '.join(_WRAPPERS)}")
    strange = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"{file} holds no state dict: {strange[0]} is not a tensor")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _shape_text(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "a scalar"
