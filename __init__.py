"""demkd: entropy-weighted, decoupled multi-teacher knowledge distillation from a cache of the teachers' logits.

    cache = demkd.cache_teachers({"a": module_a, "b": module_b}, train_data, out="cache", views=4)
    report = demkd.distill("resnet8", cache=cache, train=train_data, test=test_data, out="run")

Names are imported when they are first used, so that `import demkd` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demkd.api import cache_teachers, evaluate, inspect, pack, plan_caching
    from demkd.cache import Cache, open_cache
    from demkd.config import AugmentConfig, CacheConfig, ImageConfig, MethodConfig, TrainConfig
    from demkd.dataset import ArrayDataset, CropFlip, CutMix, ImageDataset, MixUp, RandAugment, ResizedCrop, load_images
    from demkd.dataset.normalize import Normalization
    from demkd.errors import UserError
    from demkd.losses.criterion import DistillationLoss
    from demkd.pipeline.export import export
    from demkd.pipeline.results import Callback
    from demkd.pipeline.stage_two import distill, train
    from demkd.pipeline.targets import SoftTargetLoader
    from demkd.pipeline.verify import recompute, verify

_MODULES: dict[str, tuple[str, ...]] = {
    "api": ("cache_teachers", "evaluate", "inspect", "pack", "plan_caching"),
    "cache": ("Cache", "open_cache"),
    "config": ("AugmentConfig", "CacheConfig", "ImageConfig", "MethodConfig", "TrainConfig"),
    "dataset": (
        *("ArrayDataset", "CropFlip", "CutMix", "ImageDataset", "MixUp"),
        *("Normalization", "RandAugment", "ResizedCrop", "load_images"),
    ),
    "errors": ("UserError",),
    "losses.criterion": ("DistillationLoss",),
    "pipeline.export": ("export",),
    "pipeline.results": ("Callback",),
    "pipeline.stage_two": ("distill", "train"),
    "pipeline.targets": ("SoftTargetLoader",),
    "pipeline.verify": ("recompute", "verify"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ArrayDataset", "AugmentConfig", "Cache", "CacheConfig", "Callback", "CropFlip", "CutMix", "DistillationLoss",
    "ImageConfig", "ImageDataset", "MethodConfig", "MixUp", "Normalization", "RandAugment", "ResizedCrop",
    "SoftTargetLoader", "TrainConfig", "UserError", "cache_teachers", "distill", "evaluate", "export", "inspect",
    "load_images", "open_cache", "pack", "plan_caching", "recompute", "train", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'demkd' has no attribute {name!r}")
    return getattr(importlib.import_module(f"demkd.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
