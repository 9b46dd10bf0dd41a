"""Recipes: a run's choices as a flat TOML file, the same names as the options of the command line."""

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w

from demkd.errors import UserError
from demkd.pipeline import defaults
from demkd.pipeline.methods import Method
from demkd.untrusted import read_regular


class RecipeError(UserError, ValueError):
    """A recipe that cannot be read, or does not fit what is there."""


@dataclass(frozen=True, kw_only=True)  # without slots, so that the defaults can be read off the class
class TrainingOptions:
    """How a network is to be trained, whatever it learns from.

    Attributes:
        schedule: "step" (x 0.1 after 62.5 %, 75 % and 87.5 % of the epochs, as 150, 180, 210 of 240), "cosine", or
            "one-cycle" (linear up over 30 %, linear down to 0).
        optimizer: "sgd" or "adamw", or what the user's own is called.
        momentum, nesterov: of SGD.
        label_smoothing: the share of the label's target that is spread over all classes.
        label_noise: the share of the training labels that is replaced by wrong ones, drawn with the seed.
        size: height and width of the network's input, where views are resized; None for the views' own.
        crop_ratio: what an evaluation shows of a picture's shorter side, where views are resized.
        sync_bn: whether batch normalisation sees the samples of all processes.
        views_per_decode: m: in so many views a batch shows each of its pictures, decoded once for all of them.
            Of m epochs, each shows another m-th of the pictures, in the m views that they would have shown one by one.
        order_seed: decides which sample shows which view when, and whose weights a control shuffles; the seed if None.
            Students whose orders agree can be trained together.
    """

    data: str
    network: str
    seed: int = 0
    epochs: int = defaults.EPOCHS
    batch_size: int = 64
    learning_rate: float = 0.05
    schedule: str = "step"
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    label_noise: float = 0.0
    size: int | None = None
    crop_ratio: float | None = None
    sync_bn: bool = False
    views_per_decode: int = 1
    order_seed: int | None = None

    @property
    def ordered_by(self) -> int:
        """The seed of everything that a sample meets."""
        return self.seed if self.order_seed is None else self.order_seed


@dataclass(frozen=True, kw_only=True)
class Training(TrainingOptions):
    """The same with everything resolved that depends on the data and the machine.

    Attributes:
        precision: "float32" or "bfloat16".
        mean, std: of the network's input.
        view_policy: the name and parameters of the views.
    """

    precision: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    view_policy: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Teaching:
    """What a student learns from.

    Attributes:
        teachers: names in the cache, or `NAME=NETWORK@CHECKPOINT` live.
        views: how many slots, or "random" for independent views.
        hint_layer: whose features are matched, `TEACHER=LAYER` each; empty without features.
        student_layer: whose features are adapted to them; empty for the last map.
    """

    method: Method
    teachers: tuple[str, ...]
    online: bool
    views: int | str
    view_seed: int
    hint_layer: tuple[str, ...] = ()
    student_layer: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides a run's numbers.

    Attributes:
        teaching: None for plain supervised training on independent views.
        sources: digests of the pixels, the labels and the teachers.
    """

    training: Training
    teaching: Teaching | None
    sources: Mapping[str, str]

    def to_toml(self) -> str:
        tables: dict[str, Any] = {name: value for name, value in asdict(self.training).items() if value is not None}
        if self.teaching:
            teaching = asdict(self.teaching)
            method = teaching.pop("method")
            tables |= {"method": method.pop("name"), **teaching, **method}
        tables["student" if self.teaching else "network"] = tables.pop("network")
        policy = dict(tables.pop("view_policy"))
        return tomli_w.dumps({**tables, "view_policy": policy, "sources": dict(self.sources)})

    def choices(self) -> dict[str, Any]:
        """Every choice by name, as a file would say it."""
        return _flat(tomllib.loads(self.to_toml()))


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe as option values.

    Raises:
        RecipeError: if there is none, or it is no TOML.
    """
    try:
        return tomllib.loads(read_regular(path).decode())
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}") from None
    except (OSError, ValueError, RecursionError) as error:  # also numbers too long to be one
        raise RecipeError(f"the recipe {path} cannot be read ({error}): repair it") from error


def option_values(tables: Mapping[str, Any], *, repeatable: Collection[str]) -> dict[str, Any]:
    """A recipe as the command line's options: lists separated by commas, what a run resolved as `normalise`.

    What follows from the data, and digests, which are compared when a run goes on, are no options.

    Args:
        repeatable: the options that are lists themselves.
    """
    values = {key: value for key, value in tables.items() if key not in ("sources", "view_policy")}
    if isinstance(policy := tables.get("view_policy"), Mapping):
        values = {**view_words(policy), **values}
    if isinstance(values.get("mean"), list) and isinstance(values.get("std"), list):
        values.setdefault("normalise", [f"{in_words(values.pop('mean'))}/{in_words(values.pop('std'))}"])
    if values.get("online"):
        values.pop("teachers", None)  # names of live teachers, whose checkpoints a recipe does not know
    return {
        key: in_words(value) or None if isinstance(value, list) and key not in repeatable else value
        for key, value in values.items()
    }


def view_words(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options that choose the views of a recipe's table, without the size; none for crop and flip."""
    name, base = str(facts.get("policy")), facts.get("base")
    if name in ("mixup", "cutmix") and isinstance(base, Mapping):
        return {**view_words(base), "mix": name, "mix_alpha": facts.get("alpha")}
    if name == "randaugment" and isinstance(base, Mapping):
        numbers = {
            "randaugment_ops": facts.get("num_ops"),
            "magnitude": facts.get("magnitude"),
            "strong_every": facts.get("strong_every", 1),
        }
        return {**view_words(base), "view": f"{base.get('policy')}+{name}", **numbers}
    if name == "resized-crop":
        return {"view": name, **{key: facts.get(key) for key in ("scale", "ratio", "interpolation")}}
    return {}


def in_words(value: Any) -> str:
    """A value as the command line takes it: lists are separated by commas."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def require_same_recipe(recipe: Recipe, path: Path) -> None:
    """Refuse to go on with a run that was started with other choices.

    Raises:
        RecipeError: naming every choice that differs, with both values.
    """
    started = _flat(read_recipe(path))
    now = recipe.choices()
    different = [
        f"{name} was {started.get(name, '(absent)')} and is {now.get(name, '(absent)')}"
        for name in sorted(started.keys() | now.keys())
        if started.get(name) != now.get(name)
    ]
    if different:
        raise RecipeError(
            f"the run in {path.parent} was started differently: {'; '.join(different)}. "
            "Choose another folder (`out`), or repeat what it was started with"
        )


def _flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Every choice by name; those of the views by dotted names, because a student may have a size of its own."""
    views = {f"view_policy.{name}": value for name, value in dict(tables.get("view_policy", {})).items()}
    others = {key: value for key, value in tables.items() if key not in ("view_policy", "sources")}
    return {**others, **views, **dict(tables.get("sources", {}))}
