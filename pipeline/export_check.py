"""A program that `exporting.py` starts: load an exported file in a fresh process, and write its logits.

    python -m demkd.pipeline.export_check FORMAT FILE FOLDER

FOLDER has the pictures and gets the logits and the metadata. ONNX and PyTorch graphs are loaded without this project's
networks, as users load them.
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
Predict = Callable[[Floats], Floats]  # views (B, 3, H, W) -> logits (B, C)


def main() -> None:
    name, file, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    views = np.load(folder / VIEWS)
    predict, facts = READERS[name](file, views.shape[2:])
    np.save(folder / LOGITS, np.concatenate([predict(batch) for batch in _batches(views)]))
    (folder / FACTS).write_text(facts, encoding="utf-8")


def _batches(views: Floats) -> Iterator[Floats]:
    """One picture, then the others: two batch sizes, to find a graph that takes only one."""
    yield views[:1]
    if len(views) > 1:
        yield views[1:]


def _read_safetensors(file: Path, size: tuple[int, int]) -> tuple[Predict, str]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    from demkd.networks import build_network

    with safe_open(file, framework="pt") as tensors:
        text = tensors.metadata()["demkd"]
    facts = json.loads(text)
    network = build_network(facts["network"], classes=len(facts["class_names"]), size=size)
    network.load_state_dict(load_file(file))
    return _in_torch(network.eval()), text


def _read_torch_export(file: Path, _size: tuple[int, int]) -> tuple[Predict, str]:
    import torch

    facts = {"demkd": ""}
    return _in_torch(torch.export.load(file, extra_files=facts).module()), facts["demkd"]


def _in_torch(network: Callable[[Any], Any]) -> Predict:
    import torch

    def predict(views: Floats) -> Floats:
        with torch.no_grad():
            logits: Floats = network(torch.from_numpy(views)).numpy()
        return logits

    return predict


def _read_onnx(file: Path, _size: tuple[int, int]) -> tuple[Predict, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def predict(views: Floats) -> Floats:
        logits: Floats = session.run(["logits"], {"views": views})[0]
        return logits

    return predict, session.get_modelmeta().custom_metadata_map["demkd"]


READERS: dict[str, Callable[[Path, tuple[int, int]], tuple[Predict, str]]] = {
    "safetensors": _read_safetensors,
    "onnx": _read_onnx,
    "torch-export": _read_torch_export,
}


if __name__ == "__main__":
    main()
