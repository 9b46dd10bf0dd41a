"""Checkpoints load as the field publishes them; whatever else a file is, it is refused in a sentence and never run."""

import contextlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from demkd.errors import UserError
from demkd.teachers import CheckpointError, load_weights, read_checkpoint, state_sha256, trained_classes

State = dict[str, Tensor]


def small_network(classes: int = 5) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def counted(network: nn.Module) -> State:
    """The network's state dict, with other numbers in every entry."""
    return {
        name: torch.arange(tensor.numel()).reshape(tensor.shape).to(tensor.dtype) + position
        for position, (name, tensor) in enumerate(network.state_dict().items())
    }


def prefixed(state: State) -> State:
    return {f"module.{name}": tensor for name, tensor in state.items()}


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}

PUBLISHED: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "RepDistiller": lambda state: {"epoch": 240, "model": state, "best_acc": np.float64(72.5), "optimizer": OPTIMIZER},
    "mdistiller": lambda state: {"epoch": 240, "model": state, "optimizer": OPTIMIZER, "best_acc": 72.5},
    "CA-MKD": lambda state: {"epoch": 240, "model": state, "best_acc": torch.tensor(72.5)},
    "state_dict": lambda state: {"state_dict": state, "best_acc1": np.float32(72.5)},
    "net": lambda state: {"net": state, "acc": 72.5, "epoch": 3},
    "bare, data-parallel": prefixed,
    "model, data-parallel": lambda state: {"model": prefixed(state), "epoch": 240},
}


def saved(content: Any, file: Path, *, zipped: bool = True) -> Path:
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("layout", PUBLISHED)
def test_a_published_layout_loads(tmp_path: Path, layout: str, *, zipped: bool) -> None:
    state = counted(small_network())
    require_state(saved(PUBLISHED[layout](state), tmp_path / "teacher.pth", zipped=zipped), state)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_best_acc_may_be_any_numpy_scalar_of_any_numpy(tmp_path: Path, core: str, *, zipped: bool) -> None:
    """NumPy 2 renamed the module of its scalars; there are files of both kinds."""
    state, file = counted(small_network()), tmp_path / "teacher.pth"
    for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"):
        saved({"model": state, "best_acc": np.dtype(kind).type(1)}, file, zipped=zipped)
        if zipped:
            with zipfile.ZipFile(file) as archive:
                entries = {name: archive.read(name) for name in archive.namelist()}
            with zipfile.ZipFile(file, "w") as archive:
                for name, data in entries.items():
                    archive.writestr(name, of_core(data, core) if name.endswith("data.pkl") else data)
        else:
            file.write_bytes(of_core(file.read_bytes(), core))
        assert f"{core}.multiarray".encode() in file.read_bytes()
        require_state(file, state)


def of_core(data: bytes, core: str) -> bytes:
    return data.replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", f"{core}.".encode())


def test_a_run_folder_has_metadata(tmp_path: Path) -> None:
    """With or without the prefix of data-parallel training; in earlier versions `crop_pct` was `crop_ratio`."""
    state = counted(small_network())
    metadata = {"network": "small", "class_names": list("abcde"), "mean": [0.5] * 3, "std": [1, 1, 1], "crop_pct": 0.9}
    for stored, name in ((state, "crop_pct"), (prefixed(state), "crop_ratio")):
        text = json.dumps(metadata).replace("crop_pct", name)
        save_file(stored, tmp_path / "student.safetensors", metadata={"demkd": text})
        require_state(tmp_path, state)
        assert read_checkpoint(tmp_path).metadata == metadata


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        ({"class_names": ["a", "b", "c", "d", "e"]}, True),
        ({"classes": ("a", "b", "c", "d", "e")}, True),
        ({"class_to_idx": {"c": 2, "a": 0, "b": 1, "e": 4, "d": 3}}, True),
        ({"classes": 5}, False),
        ({"class_names": []}, False),
        ({"class_to_idx": {"a": 0, "b": 2}}, False),
    ],
    ids=str,
)
def test_class_names_beside_the_weights_are_read_in_order(tmp_path: Path, extra: dict[str, Any], found: bool) -> None:
    file = saved({"model": counted(small_network()), **extra}, tmp_path / "teacher.pth")
    assert read_checkpoint(file).metadata == ({"class_names": list("abcde")} if found else {})


def test_a_mismatch_lists_the_tensors_that_differ(tmp_path: Path) -> None:
    state = counted(small_network())
    state["0.weight"] = torch.zeros(4, 1, 3, 3)
    state["extra"] = state.pop("1.weight")
    file = saved(state, tmp_path / "teacher.pth")
    network = small_network()
    before = state_sha256(network)
    with pytest.raises(CheckpointError) as caught:
        load_weights(network, read_checkpoint(file))
    assert sentence(caught.value) == (
        f"{file} does not fit the network: 0.weight is 4x1x3x3 instead of 4x3x3x3; 1.weight is missing; extra is left "
        "over: name the network and the data set that it was trained with"
    )
    assert state_sha256(network) == before
    saved({"elsewhere": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=r"0\.weight is missing; .*; and 5 more: name the network"):
        load_weights(network, read_checkpoint(file))


def test_weights_arrive_and_a_missing_count_of_batches_is_no_loss(tmp_path: Path) -> None:
    """PyTorch counts batches since 0.4.1; older files do not have the count."""
    network, state = small_network(), counted(small_network())
    del state["1.num_batches_tracked"]
    load_weights(network, read_checkpoint(saved(state, tmp_path / "old.pth")))
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())


def test_other_classes_are_told_from_another_architecture(tmp_path: Path) -> None:
    def classes_of(state: State) -> int:
        return trained_classes(small_network(5), read_checkpoint(saved(state, tmp_path / "teacher.pth")), classes=5)

    assert classes_of(counted(small_network(5))) == 5
    assert classes_of(counted(small_network(100))) == 100
    state = counted(small_network(100))
    state["3.bias"] = torch.zeros(99)
    assert classes_of(state) == 5, "two lengths are no number of classes"
    state = counted(small_network(100))
    state["0.weight"] = torch.zeros(4, 1, 3, 3)
    assert classes_of(state) == 5, "another tensor differs too, and load_weights says so"


class Runs:
    """Unpickled without care, this makes a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sentinel),)


class Evaluates(Runs):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('os').mkdir({str(self.sentinel)!r})",)


class SetsState(Runs):
    """Runs when its state is set, not when it is made."""

    def __reduce__(self) -> tuple[Any, ...]:
        return SetsState, (self.sentinel,), {"any": 1}

    def __setstate__(self, state: Any) -> None:
        self.sentinel.mkdir()


def torch_saved(content: Any, *, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


DANGEROUS: dict[str, Callable[[Path], bytes]] = {
    **{f"pickle, protocol {p}": lambda path, p=p: pickle.dumps(Runs(path), protocol=p) for p in range(6)},
    "zip": lambda path: torch_saved({"model": {}, "best_acc": Runs(path)}, zipped=True),
    "zip, among the tensors": lambda path: torch_saved({"weight": torch.ones(1), "bias": Runs(path)}, zipped=True),
    "before 1.6": lambda path: torch_saved({"model": {}, "best_acc": Runs(path)}, zipped=False),
    "eval": lambda path: torch_saved(Evaluates(path), zipped=True),
    "setstate": lambda path: torch_saved(SetsState(path), zipped=True),
    "INST": lambda path: f"(S'{path}'\nios\nmkdir\n.".encode(),  # calls without a REDUCE
}


@pytest.mark.parametrize("kind", DANGEROUS)
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, kind: str) -> None:
    sentinel, file = tmp_path / "ran", tmp_path / "teacher.pth"
    file.write_bytes(DANGEROUS[kind](sentinel))
    with pytest.raises(CheckpointError, match=r"more than tensors.*could run code: .* safetensors") as caught:
        read_checkpoint(file)
    sentence(caught.value)
    assert not sentinel.exists()
    with contextlib.suppress(Exception):  # what is no checkpoint has run before that shows
        torch.load(file, weights_only=False)
    assert sentinel.exists(), "the file is not dangerous, so this test shows nothing"


def in_run_folder(state: State, folder: Path) -> Path:
    save_file(state, folder / "student.safetensors")
    return folder / "student.safetensors"


WHOLE: dict[str, Callable[[State, Path], Path]] = {
    "zip": lambda state, folder: saved({"model": state, "best_acc": np.float64(1)}, folder / "a.pth"),
    "before 1.6": lambda state, folder: saved(
        {"model": state, "best_acc": np.float64(1)}, folder / "b.pth", zipped=False
    ),
    "run folder": in_run_folder,
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_truncated_file_says_so_wherever_it_was_cut(tmp_path: Path, kind: str) -> None:
    file = WHOLE[kind](counted(small_network()), tmp_path)
    whole = file.read_bytes()
    named = tmp_path if kind == "run folder" else file
    require_state(named, counted(small_network()))
    lengths = {*range(min(40, len(whole))), *range(0, len(whole), max(len(whole) // 150, 1)), len(whole) - 1}
    for length in sorted(lengths):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"is truncated or no (checkpoint|safetensors file)") as caught:
            read_checkpoint(named)
        sentence(caught.value)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><p>Sign in", b"best teacher ever\n", bytes(range(256))])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="is truncated or no") as caught:
        read_checkpoint(tmp_path / name)
    sentence(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "holds no state dict, neither bare nor under model, state_dict, net"),
        ({}, "holds no state dict, neither bare nor under"),
        ({"model": {}}, "holds no state dict, neither bare nor under"),
        ({"weight": torch.ones(1), "epoch": 3}, "because epoch is a int and no tensor"),
        ({"teacher": {"weight": torch.ones(1)}}, "because teacher is a dict and no tensor"),
        ({"model": {"weight": torch.ones(2, 2).to_sparse()}}, "the tensor weight of .* is sparse: save dense tensors"),
        ({"weight": torch.empty(2, device="meta")}, r"tensor weight of .* is without numbers \(meta\)"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_checkpoint(saved(content, tmp_path / "a.pth"))
    sentence(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read"),
        ("[1, 2]", "cannot be read"),
        ('{"network": 3}', "invalid network"),
        ('{"class_names": "abc"}', "invalid class_names"),
        ('{"mean": [1, 2]}', "invalid mean"),
        ('{"std": ["1", "2", "3"]}', "invalid std"),
        ('{"mean": [0, 0, NaN], "std": [1, 1, 1]}', "invalid mean"),
        ('{"mean": [0, 0, 1' + "0" * 400 + '], "std": [1, 1, 1]}', "invalid mean"),
        ('{"mean": [0, 0, true], "std": [1, 1, 1]}', "invalid mean"),
        ('{"mean": [0, 0, 0], "std": [1, 1, Infinity]}', "invalid std"),
        ('{"mean": [0, 0, 0], "std": [1, 0, 1]}', "invalid std"),
        ('{"mean": [0, 0, 0], "std": [1, -1, 1]}', "invalid std"),
        ('{"mean": [0, 0, 0]}', "has `mean` without `std`, or the reverse"),
    ],
)
def test_strange_metadata_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    save_file(counted(small_network()), tmp_path / "a.safetensors", metadata={"demkd": text})
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_checkpoint(tmp_path / "a.safetensors")
    sentence(caught.value)


def test_a_missing_file_and_an_unfinished_run_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no file .*no\.pth; give a checkpoint file or a finished run"):
        read_checkpoint(tmp_path / "no.pth")
    with pytest.raises(CheckpointError, match=r"has no student\.safetensors: the run is not finished"):
        read_checkpoint(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    file = saved({"epoch": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=f"checkpoint.pt holds the state to resume a run: .* {tmp_path}$"):
        read_checkpoint(file)


def test_the_digest_is_of_names_types_shapes_and_every_byte() -> None:
    network = small_network()
    network.load_state_dict(counted(network))
    digests = {state_sha256(network)}
    network.get_submodule("3").bias.data[4] += 1e-6
    digests.add(state_sha256(network))
    digests.add(state_sha256(network.double()))
    digests.add(state_sha256(nn.Sequential(*[nn.Identity(), *network])))
    assert len(digests) == 4
    reloaded = small_network().double()
    reloaded.load_state_dict(network.state_dict())
    assert state_sha256(reloaded) == state_sha256(network)


def require_state(path: Path, expected: State) -> None:
    found = read_checkpoint(path).state
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def sentence(error: UserError) -> str:
    """The error's text, which must be one line, and no page."""
    text = str(error)
    assert isinstance(error, ValueError)
    assert "\n" not in text
    assert 20 < len(text) < 600
    return text
