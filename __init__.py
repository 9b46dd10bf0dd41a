"""demkd: entropy-weighted, decoupled multi-teacher knowledge distillation from a cache of the teachers' answers.

    cache = demkd.cache_teachers({"a": module_a, "b": module_b}, train_data, out="cache", views=4)
    report = demkd.distill("resnet8", cache=cache, train=train_data, test=test_data, out="run")

Names are imported when they are first used, so that `import demkd` costs nothing.
"""

from typing import TYPE_CHECKING

from demkd.exports import __dir__, __getattr__

if TYPE_CHECKING:
    from demkd.api import (
        cache_teachers,
        distill,
        evaluate,
        export,
        inspect,
        merge,
        pack,
        plan_caching,
        recompute,
        repair,
        train,
        verify,
    )
    from demkd.cache import Cache, open_cache
    from demkd.dataset import (
        CropFlip,
        CutMix,
        ImageSource,
        MemoryImages,
        MixUp,
        Normalisation,
        RandAugment,
        Reading,
        ResizedCrop,
        StreamedImages,
        ViewChoice,
        ViewPolicy,
        load_images,
    )
    from demkd.errors import UserError
    from demkd.pipeline.cached_targets import CachedTargets
    from demkd.pipeline.callbacks import Callback
    from demkd.pipeline.methods import Method, choose_method

__all__ = [
    "Cache",
    "CachedTargets",
    "Callback",
    "CropFlip",
    "CutMix",
    "ImageSource",
    "MemoryImages",
    "Method",
    "MixUp",
    "Normalisation",
    "RandAugment",
    "Reading",
    "ResizedCrop",
    "StreamedImages",
    "UserError",
    "ViewChoice",
    "ViewPolicy",
    "__dir__",
    "__getattr__",
    "cache_teachers",
    "choose_method",
    "distill",
    "evaluate",
    "export",
    "inspect",
    "load_images",
    "merge",
    "open_cache",
    "pack",
    "plan_caching",
    "recompute",
    "repair",
    "train",
    "verify",
]
