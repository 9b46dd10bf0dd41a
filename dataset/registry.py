"""The augmentations by name, and by their options."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from demkd.config import AugmentConfig
from demkd.dataset.augment import Augmentation
from demkd.dataset.crop_flip import CropFlip
from demkd.dataset.mixing import CutMix, MixUp
from demkd.dataset.randaugment import RandAugment
from demkd.dataset.resized_crop import ResizedCrop
from demkd.errors import DataError

AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    "crop-flip": CropFlip,
    "resized-crop": ResizedCrop,
    "randaugment": RandAugment,
    "mixup": MixUp,
    "cutmix": CutMix,
}
AugmentationLike = Augmentation | AugmentConfig | str | None


def augmentation_from(options: Mapping[str, Any]) -> Augmentation:
    """The augmentation that `Augmentation.to_dict` described."""
    own = {name: value for name, value in options.items() if name not in ("policy", "seed")}
    if isinstance(own.get("base"), Mapping):
        own["base"] = augmentation_from(own["base"])
    try:
        return AUGMENTATIONS[options["policy"]](**own)
    except (KeyError, TypeError):
        raise DataError(
            f"there are no views called {options.get('policy')!r} with {own}: this version has "
            f"{', '.join(AUGMENTATIONS)}"
        ) from None


def as_augmentation(value: AugmentationLike, default: Augmentation) -> Augmentation | None:
    """An augmentation, or the one of this name or these options, for data whose own is the default.

    An option that is None is the default's, or the augmentation's own default.
    """
    config = AugmentConfig(view=value) if isinstance(value, str) else value
    if not isinstance(config, AugmentConfig):
        return config
    mixing = default if isinstance(default, MixUp | CutMix) else None
    below = default if mixing is None else mixing.base
    randaugment = below if isinstance(below, RandAugment) else None
    crop = below if randaugment is None else randaugment.base
    name, plus, strong = (config.view or f"{crop.name}{'+randaugment' if randaugment else ''}").partition("+")
    if config.view and (name not in ("crop-flip", "resized-crop") or (plus and strong != "randaugment")):
        raise DataError(
            f"`view` cannot be {config.view!r}: choose crop-flip or resized-crop, or either with +randaugment"
        )
    box = _given(size=config.size, scale=config.scale, ratio=config.ratio, interpolation=config.interpolation)
    padding, flip = _given(padding=config.padding), _given(flip=config.flip)
    for options, of in ((box, "resized-crop"), (padding, "crop-flip")):
        if options and name != of:
            raise DataError(f"`{next(iter(options))}` is of `view={of}`, and these views are {name}: leave it out")
    chosen = {**box, **padding, **flip}
    augmentation = replace(crop, **chosen) if name == crop.name else AUGMENTATIONS[name](**chosen)  # type: ignore[type-var]
    operations = _given(num_ops=config.randaugment_ops, magnitude=config.magnitude, strong_every=config.strong_every)
    if plus:
        augmentation = replace(randaugment or RandAugment(), base=augmentation, **operations)
    elif operations:
        raise DataError(f"RandAugment's options are given without it: add it (`view={name}+randaugment`)")
    alpha = _given(alpha=config.mix_alpha)
    if mixing and config.mix in (None, mixing.name):
        return replace(mixing, base=augmentation, **alpha)
    if config.mix is not None:
        return AUGMENTATIONS[config.mix](base=augmentation, **alpha)
    if alpha:
        raise DataError("`mix_alpha` is of MixUp and CutMix: choose one (`mix=mixup`)")
    return augmentation


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def augment_options(facts: Mapping[str, Any], *, usual: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `AugmentConfig` that choose an augmentation for data whose own is the usual one."""
    name, base = str(facts.get("policy")), facts.get("base")
    if name in ("mixup", "cutmix") and isinstance(base, Mapping):
        return {**augment_options(base, usual=usual), "mix": name, "mix_alpha": facts.get("alpha")}
    if name == "randaugment" and isinstance(base, Mapping):
        numbers = {
            "randaugment_ops": facts.get("num_ops"),
            "magnitude": facts.get("magnitude"),
            "strong_every": facts.get("strong_every", 1),
        }
        return {**augment_options(base, usual=usual), "view": f"{base.get('policy')}+{name}", **numbers}
    while "base" in usual:
        usual = usual["base"]
    same = usual.get("policy") == name
    own = usual if same else {"flip": True}
    changed = {key: facts[key] for key in ("padding", "flip") if key in facts and facts[key] != own.get(key)}
    if name == "resized-crop":
        return {"view": name, **{key: facts.get(key) for key in ("scale", "ratio", "interpolation")}, **changed}
    return changed if same else {"view": name, **changed}
