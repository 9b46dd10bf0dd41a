"""What `import demkd` offers, and where each name lives; imported when first used."""

import importlib
from typing import Any

EXPORTS = {
    "demkd.api": (
        *("cache_teachers", "distill", "evaluate", "export", "inspect", "merge"),
        *("pack", "plan_caching", "recompute", "repair", "train", "verify"),
    ),
    "demkd.cache": ("Cache", "open_cache"),
    "demkd.dataset": (
        *("CropFlip", "CutMix", "ImageSource", "MemoryImages", "MixUp", "Normalisation", "RandAugment", "Reading"),
        *("ResizedCrop", "StreamedImages", "ViewChoice", "ViewPolicy", "load_images"),
    ),
    "demkd.errors": ("UserError",),
    "demkd.pipeline.cached_targets": ("CachedTargets",),
    "demkd.pipeline.callbacks": ("Callback",),
    "demkd.pipeline.methods": ("Method", "choose_method"),
}
_HOMES = {name: home for home, names in EXPORTS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'demkd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
