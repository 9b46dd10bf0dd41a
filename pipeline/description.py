"""How data, views and devices are described in provenances: digests and words that are the same everywhere."""

import platform
from typing import Any

import torch

from demkd.dataset import CropFlip, Pictures
from demkd.pipeline.compute import Compute


def describe_data(pictures: Pictures) -> dict[str, Any]:
    """What identifies a split, whatever it is called and wherever it lies."""
    return {
        "split": pictures.split,
        "samples": len(pictures),
        "picture_size": list(pictures.picture_size),
        "class_names": list(pictures.class_names),
        "pixels_sha256": pictures.pixels_sha256(),
        "labels_sha256": pictures.labels_sha256(),
    }


def describe_views(policy: CropFlip, seed: int) -> dict[str, Any]:
    """What identifies the view of every slot."""
    return {"policy": "crop and flip", "padding": policy.padding, "flip": policy.flip, "seed": seed}


def describe_device(compute: Compute) -> str:
    """For people."""
    if compute.device.type == "cuda":
        return torch.cuda.get_device_name(compute.device)
    return f"{platform.machine()} processor, {torch.get_num_threads()} threads"
