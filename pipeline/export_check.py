"""The other end of an export: a fresh process loads the file and says what it answers.

Each format is read with what its users have: an ONNX graph and a PyTorch graph without this project's networks.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VIEWS, LOGITS, FACTS = "views.npy", "logits.npy", "facts.json"

Floats = NDArray[np.float32]
# From views (B, 3, H, W) to logits (B, C).
Answering = Callable[[Floats], Floats]


def main() -> None:
    """Answer the pictures of a folder: the format, the file and the folder are the last arguments."""
    name, file, folder = sys.argv[-3], Path(sys.argv[-2]), Path(sys.argv[-1])
    views = np.load(folder / VIEWS)
    answer, facts = READERS[name](file, views.shape[2:])
    np.save(folder / LOGITS, np.concatenate([answer(batch) for batch in _batches(views)]))
    (folder / FACTS).write_text(facts, encoding="utf-8")


def _batches(views: Floats) -> Iterator[Floats]:
    """One picture, then the others: a batch size that the export has fixed cannot be both."""
    yield views[:1]
    if len(views) > 1:
        yield views[1:]


def _read_safetensors(file: Path, size: tuple[int, int]) -> tuple[Answering, str]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    from demkd.networks import build_network

    with safe_open(file, framework="pt") as tensors:
        text = tensors.metadata()["demkd"]
    facts = json.loads(text)
    network = build_network(facts["network"], classes=len(facts["class_names"]), size=size)
    network.load_state_dict(load_file(file))
    return _in_torch(network.eval()), text


def _read_torch_export(file: Path, _size: tuple[int, int]) -> tuple[Answering, str]:
    import torch

    facts = {"demkd": ""}
    return _in_torch(torch.export.load(file, extra_files=facts).module()), facts["demkd"]


def _in_torch(network: Callable[[Any], Any]) -> Answering:
    import torch

    def answer(views: Floats) -> Floats:
        with torch.no_grad():
            logits: Floats = network(torch.from_numpy(views)).numpy()
        return logits

    return answer


def _read_onnx(file: Path, _size: tuple[int, int]) -> tuple[Answering, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def answer(views: Floats) -> Floats:
        logits: Floats = session.run(["logits"], {"views": views})[0]
        return logits

    return answer, session.get_modelmeta().custom_metadata_map["demkd"]


READERS: dict[str, Callable[[Path, tuple[int, int]], tuple[Answering, str]]] = {
    "safetensors": _read_safetensors,
    "onnx": _read_onnx,
    "torch-export": _read_torch_export,
}
