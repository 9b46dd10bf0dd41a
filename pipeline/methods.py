"""The methods: what each preset of `--method` means, and what fits them; docs/methods.md has the formulas.

Where a paper's page gives one setting for all pairs, the preset has it.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from demkd.config import ConfigError, MethodConfig, check_names

_HINT_WEIGHT = 50.0  # CA-MKD's, divided by K where it is used
_UNIFORM: Mapping[str, Any] = {"weight_source": "uniform", "warmup": 0.0}
_LS: Mapping[str, Any] = {"standardize": True, "kd_weight": 9.0, "temperature": 2.0}  # LS's: logit standardization

# In the order of --help; each gets its name below.
_PRESETS: dict[str, Mapping[str, Any]] = {
    "ce": {"loss": "none", **_UNIFORM},
    "kd": {"loss": "kd", **_UNIFORM},
    "kd-ls": {"loss": "kd", **_LS, **_UNIFORM},
    "dkd": {"weight_source": "uniform"},
    "dkd-ls": {**_LS, "weight_source": "uniform"},
    "ttm": {"loss": "ttm", "kd_weight": 45.0, "temperature": 10.0, **_UNIFORM},
    "wttm": {"loss": "wttm", "kd_weight": 4.0, "temperature": 5.0, **_UNIFORM},
    # Weights 2 (published) and 8 are for 100 classes. With fewer, DIST's first gradients are too large: 0.08 C is the
    # best of those tried at 10 classes (docs/results.md).
    "dist": {"loss": "dist", "kd_weight": 2.0, "full_weight_classes": 25, **_UNIFORM},
    "dist-entropy": {"loss": "dist", "kd_weight": 8.0, "full_weight_classes": 100, "warmup": 0.0},
    "rank": {"loss": "rank", "kd_weight": 16.0, **_UNIFORM},
    "rank-entropy": {"loss": "rank", "kd_weight": 16.0, "warmup": 0.0},
    "mlkd": {"loss": "mlkd", "kd_weight": 9.0, "batch_weight": 0.5, "full_weight_classes": 100, **_UNIFORM},
    "mlkd-ls": {"loss": "mlkd", **_LS, "batch_weight": 0.5, "full_weight_classes": 100, **_UNIFORM},
    "crld": {"loss": "crld", "kd_weight": 2.0, "views_per_step": 2, **_UNIFORM},
    "ofa": {"loss": "ofa", "temperature": 1.0, **_UNIFORM},
    "ebkd": {"loss": "kd", "weight_form": "one_minus_share", "warmup": 0.0},
    # Its feature part is ours: CA-MKD has other weights for it (docs/methods.md).
    "ca-mkd": {
        "loss": "kd",
        "weight_source": "cross_entropy",
        "weight_form": "one_minus_softmax",
        "warmup": 0.0,
        "hint_weight": _HINT_WEIGHT,
    },
    "de-mkd-logits": {},
    "de-mkd": {"hint_weight": _HINT_WEIGHT},
}
METHODS: dict[str, MethodConfig] = {name: MethodConfig(name=name, **options) for name, options in _PRESETS.items()}
_WITH_A_LABEL = ("dkd", "ofa")  # losses that need one label a sample


def choose_method(method: str | MethodConfig, **options: Any) -> MethodConfig:
    """A preset, or a configuration, with some options changed; None leaves an option as it is."""
    if isinstance(method, str):
        if method not in METHODS:
            close = difflib.get_close_matches(method, METHODS, n=1)
            meant = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(f"there is no method {method!r}{meant}: choose one of {', '.join(METHODS)}")
        method = METHODS[method]
    check_names(options, MethodConfig)
    changes = {name: value for name, value in options.items() if value is not None}
    if changes.get("loss") == "none" != method.loss:
        raise ConfigError("`loss` is 'none', which is the method ce: choose that, or another loss")
    return replace(method, **changes)


def changed_options(method: MethodConfig) -> dict[str, Any]:
    """The options in which a method differs from the preset of its name."""
    preset = METHODS.get(method.name, method)
    return {name: value for name, value in asdict(method).items() if value != getattr(preset, name)}


def method_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that are of a method."""
    names = {entry.name for entry in fields(MethodConfig)} - {"name"}
    return {name: value for name, value in options.items() if name in names}


def check_teacher_count(method: MethodConfig, names: Sequence[str]) -> None:
    """Refuse fixed weights that do not fit the number of teachers."""
    fixed = method.fixed_weights
    if fixed and len(fixed) != len(names):
        raise ConfigError(f"`fixed_weights` has {len(fixed)} numbers for {len(names)} teachers ({', '.join(names)})")


def check_mixable(method: MethodConfig) -> None:
    """Refuse a method that needs one label a sample, where views mix two samples."""
    reason = "needs one label an image, and mixed images have two"
    if method.loss in _WITH_A_LABEL:
        loss = "the decoupled loss" if method.loss == "dkd" else "OFA's loss"
        raise ConfigError(
            f"{loss} of {method.name} {reason}: choose kd, ebkd or another with `loss=kd`, or leave `mix` out"
        )
    if method.needs_teachers and method.weight_source == "cross_entropy":
        raise ConfigError(f"`weight_source=cross_entropy` {reason}: choose entropy, or leave `mix` out")
    if method.wrong_teacher == "mask":
        raise ConfigError(f"`wrong_teacher=mask` {reason}: choose keep, or leave `mix` out")
