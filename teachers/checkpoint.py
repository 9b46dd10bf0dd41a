"""Checkpoints as the field publishes them, read without ever running code from them.

Known layouts: a bare state dict; one under `model`, `state_dict` or `net`, with whatever else the training code put
beside it (RepDistiller, mdistiller, CA-MKD); names with `module.` in front, from data-parallel training; safetensors;
and the run folders of this project, whose weights also know their network, classes and normalisation. A checkpoint is
always read whole or not at all, by PyTorch's restricted unpickler, which builds tensors and plain containers only.
"""

import contextlib
import hashlib
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
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
_CLASS_NAMES = ("class_names", "classes")
_COUNTER = ".num_batches_tracked"
_LARGEST_FIGURE = 1_000_000  # of a mean or a standard deviation; no NaN is below it
_SHOWN = 4
_SHOWN_LENGTH = 80
_LEGACY_PICKLES = 5  # a file of PyTorch before 1.6 is so many pickles, then the numbers
_NUMPY_KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A network's weights and what their file says of them.

    Attributes:
        state: tensor by name.
        facts: what a file of this project knows: network, class_names, mean, std. Of other files, class_names
            if they have them.
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
    return _checkpoint(file, _unpickle_weights(file))


def load_weights(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a network.

    Raises:
        CheckpointError: naming the tensors that are missing, left over or of another shape.
    """
    expected = network.state_dict()
    # PyTorch before 0.4.1 did not count batches, and nothing here depends on the count.
    counters = {name: tensor for name, tensor in expected.items() if name.endswith(_COUNTER)}
    found = {**counters, **checkpoint.state}
    differences = list(_differences(expected, found))
    if differences:
        shown = "; ".join(differences[:_SHOWN])
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise CheckpointError(
            f"{checkpoint.path} does not fit the network: {shown}{more}: "
            "name the network and the data set that it was trained with"
        )
    network.load_state_dict(found)


def trained_classes(network: nn.Module, checkpoint: Checkpoint, *, classes: int) -> int:
    """For how many classes a checkpoint was trained, read off its tensors; `classes`, the network's, if they agree.

    They disagree in nothing but the classes if every tensor of another shape is as long as there are classes, there
    and here, and equal in all other dimensions.
    """
    expected, found = network.state_dict(), checkpoint.state
    pairs = [(expected[name].shape, found[name].shape) for name in expected.keys() & found.keys()]
    different = [(own, other) for own, other in pairs if own != other]
    if any(len(own) == 0 or own[:1] != (classes,) or own[1:] != other[1:] for own, other in different):
        return classes
    counts = {other[0] for _, other in different}
    return counts.pop() if len(counts) == 1 else classes


def state_sha256(network: nn.Module) -> str:
    """Digest of a network's tensors: names, types, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Iterator[str]:
    """Other shapes first, because they tell the most; in the network's order."""
    for name in expected:
        if name in found and found[name].shape != expected[name].shape:
            yield f"{name} is {_shape_text(found[name])} instead of {_shape_text(expected[name])}"
    for name in expected:
        if name not in found:
            yield f"{name} is missing"
    for name in found:
        if name not in expected:
            yield f"{_short(name)} is left over"


def _read_safetensors(file: Path) -> Checkpoint:
    try:
        with safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is truncated or no safetensors file ({error}): get it again") from error
    return Checkpoint(path=file, state=_without_prefix(state), facts=_facts(file, metadata.get("demkd", "{}")))


def _facts(file: Path, text: str) -> dict[str, Any]:
    """What a file of this project says of its network."""
    checks: dict[str, Callable[[Any], bool]] = {
        "network": lambda value: isinstance(value, str),
        "class_names": _are_names,
        "mean": _are_figures,
        "std": lambda value: _are_figures(value) and min(value) > 0,
        "input_size": lambda value: value is None or (type(value) is int and 1 <= value <= 4096),
        "crop_ratio": lambda value: value is None or (isinstance(value, int | float) and 0 < value <= 1),
        "interpolation": lambda value: isinstance(value, str),
    }
    try:
        facts = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the metadata of {file} cannot be read ({error}): get it again") from error
    for name, is_right in checks.items():
        if name in facts and not is_right(facts[name]):
            raise CheckpointError(f"the metadata of {file} has a strange {name}: get it again")
    if ("mean" in facts) != ("std" in facts):
        raise CheckpointError(f"the metadata of {file} have half a normalisation: get it again")
    return facts


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_figures(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(number) in (int, float) and abs(number) <= _LARGEST_FIGURE for number in value)
    )


def _unpickle_weights(file: Path) -> Any:
    """PyTorch's restricted unpickler: tensors and plain containers, and the NumPy scalars that `best_acc` may be."""
    try:
        with _numpy_scalars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old protocols and storages, which concern its author
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _holds_whole_pickles(file):
            raise _not_a_checkpoint(file) from error
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({_short(culprit.group(1))})" if culprit else ""
        raise CheckpointError(
            f"{file} holds more than tensors{what}, and reading it could run code: where you trust it, load it and "
            "save its state dict with safetensors.torch.save_file(state_dict, 'FILE.safetensors'), then give that file"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror or error}): check the file") from error
    except Exception as error:  # a cut or random file makes the unpickler raise nearly anything
        raise _not_a_checkpoint(file) from error


def _not_a_checkpoint(file: Path) -> CheckpointError:
    return CheckpointError(f"{file} is truncated or no checkpoint: get it again")


def _holds_whole_pickles(file: Path) -> bool:
    """Whether a file that the unpickler refused is whole, so that what it holds is to blame; nothing is built."""
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


@contextlib.contextmanager
def _numpy_scalars() -> Iterator[None]:
    """Let the restricted unpickler build NumPy's number types, under both names of NumPy's core."""
    rebuild: Any = np.float64(0).__reduce__()[0]
    names: list[Any] = [(rebuild, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    dtypes = [type(np.dtype(kind)) for kind in _NUMPY_KINDS]
    with torch.serialization.safe_globals([*names, np.dtype, *dtypes]):
        yield


def _checkpoint(file: Path, content: Any) -> Checkpoint:
    """Find the tensors, bare or wrapped, and the class names beside them."""
    facts: dict[str, Any] = {}
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            names = _class_names(content)
            facts = {"class_names": names} if names else {}
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{file} holds no state dict, neither bare nor under {', '.join(_WRAPPERS)}: give a checkpoint with one"
        )
    strange = next((name for name, value in content.items() if not isinstance(value, Tensor)), None)
    if strange is not None:
        raise CheckpointError(
            f"{file} holds no state dict, because {_short(str(strange))} is a {type(content[strange]).__name__} and "
            f"no tensor: put the tensors alone under one of {', '.join(_WRAPPERS)}"
        )
    return Checkpoint(path=file, state=_without_prefix(content), facts=facts)


def _class_names(content: Mapping[Any, Any]) -> list[str] | None:
    """The names in the order of their labels, if a checkpoint has them: a list, or torchvision's `class_to_idx`."""
    for key in _CLASS_NAMES:
        value = content.get(key)
        if isinstance(value, list | tuple) and value and _are_names(list(value)):
            return list(value)
    labels = content.get("class_to_idx")
    if isinstance(labels, Mapping) and sorted(map(str, labels.values())) == sorted(map(str, range(len(labels)))):
        return [str(name) for name, _ in sorted(labels.items(), key=lambda pair: int(pair[1]))]
    return None


def _without_prefix(state: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """Take the data-parallel prefix off the names."""
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def _shape_text(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "a scalar"


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN_LENGTH else f"{name[:_SHOWN_LENGTH]}..."
