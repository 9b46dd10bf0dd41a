"""Both stages on a folder of photos, with networks that take any size: what the tests of photos share."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import demkd
from tests.pipeline.stages import Recorder

SILENT: dict[str, Any] = {"precision": "float32", "device": "cpu"}
VIEWS = {
    "resized-crop": demkd.ResizedCrop(size=32, interpolation="bicubic"),
    "randaugment": demkd.RandAugment(base=demkd.ResizedCrop(size=32), num_ops=2, magnitude=9),
    "mixup": demkd.MixUp(base=demkd.ResizedCrop(size=32), alpha=0.4),
    "cutmix": demkd.CutMix(base=demkd.ResizedCrop(size=32)),
}


def network(seed: int = 0, *, width: int = 8) -> nn.Module:
    """Takes pictures of any size."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.Conv2d(width, width, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3),
    )  # fmt: skip


TEACHERS = {"a": network(1), "b": network(2)}
SIZES = {"a": 48}  # b looks at the views' own 32 pixels, and the student at 24


def cache_views(photos: Any, out: Path, augment: Any, **options: Any) -> Any:
    if isinstance(photos, Path):
        options.setdefault("images", demkd.ImageConfig(workers=0))
    settings = {"views": 3, "augment": augment, "input_size": SIZES, "progress": False, **SILENT, **options}
    return demkd.cache_teachers(TEACHERS, photos, out=out, **settings)


def student_losses(photos: Path, out: Path, **options: Any) -> list[dict[str, float]]:
    told = Recorder()
    options.setdefault("images", demkd.ImageConfig(workers=0))
    settings = {"method": "ebkd", "epochs": 2, "batch_size": 30, "learning_rate": 1e-4, "size": 24, **SILENT, **options}
    demkd.distill(network(3), train=photos, out=out, progress=told, **settings)
    return [report.losses for report in told.reports]
