"""Every option of both stages, once, and the presets of `--method`.

An option is a field of a frozen dataclass, with its default, help text and allowed values. Command-line options, recipe
and sweep keys, a run's `recipe.toml` and the keyword arguments of `api.py` are these fields. To add an option, add a
field, and use it. No PyTorch here, so that `--help` is quick.
"""

import difflib
import math
import os
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from demkd.errors import UserError, read_regular

DATA_VARIABLE = "DEMKD_DATA"  # environment variable with the default of `--data`
METHOD = "de-mkd"
VIEWS = 16  # or as many as there are
BATCH_SIZE = 256  # of stage one
BATCH_SIZE_ON_CPU = 64  # of stage one, for views above 64 pixels: larger batches spend their time on memory
SIZE = 224  # pixels a side, of a network for photos where nothing says another
CROP_PCT = 0.875  # 224 of 256
LARGEST_INPUT = 4096  # pixels a side

_TABLES = ("augmentation", "sources")  # of a run's recipe that are not options: parameters of the views, digests
Config = TypeVar("Config")
Folder = str | os.PathLike[str]


class ConfigError(UserError, ValueError):
    """An option that does not exist, a value that is not allowed, or options that contradict each other."""


def option(
    default: Any, text: str, *, choices: tuple[str, ...] = (), within: str = "", flag: bool = True, metavar: str = ""
) -> Any:
    """A field of a configuration, with its help text; `within` is the interval of its numbers, such as "[1, inf)".

    With `flag`, it has a flag of its own on the command line; see `setting`.
    """
    metadata = {"help": text, "choices": choices, "within": within, "flag": flag, "metavar": metavar}
    return field(default=default, metadata=metadata)


def setting(default: Any, text: str, **rules: Any) -> Any:
    """A field without a flag: `--set NAME=VALUE` sets it."""
    return option(default, text, flag=False, **rules)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained, whatever it learns from."""

    seed: int = option(0, "Random seed.", within="[0, 1e18]")
    epochs: int = option(240, "Number of epochs.", within="[1, 1e6]")
    batch_size: int = option(64, "Batch size of all processes together.", within="[2, 1e6]")
    learning_rate: float = option(0.05, "Peak learning rate.", within="(0, inf)")
    schedule: str = option(
        "step",
        "Learning rate schedule. step: x 0.1 after 62.5 %, 75 % and 87.5 % of the epochs.",
        choices=("step", "cosine", "one-cycle", "constant"),
    )
    optimizer: str = option("sgd", "Optimizer.", choices=("sgd", "adamw"))
    momentum: float = setting(0.9, "Only for sgd.", within="[0, 1)")
    nesterov: bool = setting(True, "Only for sgd.")
    weight_decay: float = option(5e-4, "Weight decay.", within="[0, inf)")
    label_smoothing: float = option(0.0, "Label smoothing.", within="[0, 1)")
    label_noise: float = setting(0.0, "Fraction of training labels to replace by wrong ones.", within="[0, 1]")
    validation_fraction: float = option(0.0, "Hold out this fraction of each class for validation.", within="[0, 1)")
    size: int | None = option(None, "Input size of the network, where views are resized.", within="[1, 4096]")
    crop_pct: float | None = setting(None, "Fraction of a photo shown in evaluation.", within="(0, 1]")
    sync_bn: bool = setting(False, "Synchronize batch normalization across GPUs.")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How a student learns from its teachers; docs/methods.md has the formulas, `METHODS` the presets."""

    name: str = setting("custom", "Name of the preset.")
    loss: str = setting(
        "dkd", "Logit loss.", choices=("none", "dkd", "kd", "ttm", "wttm", "dist", "rank", "mlkd", "crld", "ofa")
    )
    standardize: bool = setting(False, "Standardize logits to mean 0 and deviation 1.")
    kd_weight: float = option(1.0, "Weight of the logit loss.", within="[0, inf)")
    full_weight_classes: int = setting(
        0, "Multiply kd_weight by C/N (mlkd: its square) with C < N classes.", within="[0, inf)"
    )
    temperature: float = option(4.0, "Softmax temperature of the logit loss.", within="[0.01, 1000]")
    tckd_weight: float = setting(1.0, "Weight of the target-class part (DKD's alpha).", within="[0, inf)")
    nckd_weight: float = setting(8.0, "Weight of the non-target-class part (DKD's beta).", within="[0, inf)")
    batch_weight: float = setting(
        1.0,
        "Weight of the terms across a batch: intra-class part of DIST and rank, MLKD's Gram terms.",
        within="[0, inf)",
    )
    target_power: float = setting(1.5, "OFA's gamma.", within="(0, inf)")
    views_per_step: int = setting(1, "Views of each image per step.", within="[1, 65536]")
    warmup: float = setting(20 / 240, "Fraction of the epochs over which the logit loss warms up.", within="[0, inf)")
    hint_weight: float = option(
        0.0, "Weight of the feature loss, divided by the number of teachers.", within="[0, inf)"
    )
    weight_source: str = setting(
        "entropy",
        "Where teacher weights come from.",
        choices=("entropy", "cross_entropy", "agreement", "uniform", "fixed"),
    )
    weight_form: str = setting(
        "softmax",
        "From uncertainties to weights.",
        choices=("softmax", "one_minus_softmax", "one_minus_share", "inverse"),
    )
    weight_tau: float = setting(1.0, "Temperature of the weight form's softmax.", within="[0.001, 1e6]")
    entropy_temperature: float = setting(1.0, "Softmax temperature for the teachers' entropy.", within="[0.01, 1000]")
    entropy_logits: str = setting("raw", "Logits for the teachers' entropy.", choices=("raw", "standardized"))
    weight_level: str = setting("sample", "One weight per sample, or per data set.", choices=("sample", "dataset"))
    wrong_teacher: str = setting(
        "keep", "mask: no weight for a teacher whose prediction is wrong.", choices=("keep", "mask")
    )
    feature_weighting: str = setting(
        "shared", "Weights of the feature loss: those of the logits, or 1 / K.", choices=("shared", "uniform")
    )
    fixed_weights: tuple[float, ...] = setting(
        (), "One weight per teacher, with weight_source=fixed.", metavar="W,W,..."
    )
    shuffle: str = setting(
        "none", "Control: exchange weights between teachers, or samples.", choices=("none", "teachers", "samples")
    )

    @property
    def needs_teachers(self) -> bool:
        return self.loss != "none"

    @property
    def needs_features(self) -> bool:
        return self.hint_weight > 0

    def __post_init__(self) -> None:
        check(self)
        factors = (self.tckd_weight, self.nckd_weight) if self.loss == "dkd" else (1.0,)
        if self.needs_features and not self.needs_teachers:
            raise ConfigError("the method ce has no teachers, so there are no features for `hint_weight`: leave it out")
        if self.needs_teachers and not self.needs_features and not (self.kd_weight > 0 and any(factors)):
            raise ConfigError(
                "with weights of 0 (`kd_weight`, or `tckd_weight` and `nckd_weight`; and `hint_weight`) nothing is "
                "learned from the teachers; choose the method ce"
            )
        if self.loss == "crld" and self.views_per_step != 2:
            raise ConfigError("`loss=crld` compares two views of an image: set `views_per_step=2` too")
        if (self.weight_source == "fixed") != bool(self.fixed_weights):
            raise ConfigError("`fixed_weights` and `weight_source=fixed` go together: give both or neither")
        if self.fixed_weights and not (min(self.fixed_weights) >= 0 and abs(sum(self.fixed_weights) - 1) <= 1e-6):
            raise ConfigError(f"`fixed_weights` cannot be {self.fixed_weights!r}: none may be below 0, their sum is 1")
        if self.shuffle == "samples" and self.weight_level == "dataset":
            raise ConfigError(
                "`weight_level=dataset` gives all samples the same weights: `shuffle=samples` changes nothing"
            )
        if self.shuffle != "none" and self.weight_source == "uniform" and self.wrong_teacher == "keep":
            raise ConfigError("`weight_source=uniform` gives all teachers the same weights: `shuffle` changes nothing")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Which views images have; an option that is left out is the data's, or the augmentation's default."""

    view: str | None = option(
        None,
        "crop-flip (default for equal images up to 64 pixels) or resized-crop (default for others); "
        "append +randaugment.",
        metavar="NAME",
    )
    flip: bool | None = setting(None, "Flip half of the views; false for digits, letters and signs (default true).")
    padding: int | None = setting(
        None, "crop-flip: zero padding in pixels (default an eighth of the height).", within="[0, 127]"
    )
    scale: tuple[float, ...] | None = setting(
        None, "resized-crop: range of the area (default 0.08,1).", metavar="LOW,HIGH"
    )
    ratio: tuple[float, ...] | None = setting(
        None, "resized-crop: range of the aspect ratio (default 0.75,1.333).", metavar="LOW,HIGH"
    )
    interpolation: str | None = setting(
        None, "resized-crop: interpolation (default bilinear).", choices=("bilinear", "bicubic")
    )
    randaugment_ops: int | None = setting(None, "randaugment: operations per view (default 2).", within="[1, inf)")
    magnitude: int | None = setting(None, "randaugment: magnitude (default 9).", within="[0, 30]")
    strong_every: int | None = setting(None, "randaugment: apply to every Nth view (default 1).", within="[1, inf)")
    mix: str | None = option(None, "Mix two images.", choices=("mixup", "cutmix"))
    mix_alpha: float | None = setting(None, "Parameter of Beta(A, A) (default 1).", within="(0, 2]")
    size: int | None = option(
        None, "resized-crop: size of the views (default 224).", within="[1, 4096]", metavar="PIXELS"
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What stage one computes and keeps."""

    views: int | None = option(None, f"Views per sample (default {VIEWS}, or all if fewer).", within="[1, 65536]")
    view_seed: int = option(0, "Random seed of the views.", within="[0, 1e18]")
    features: tuple[str, ...] = option(
        ("last",), "Layer to cache: last (the last map before pooling), a name, or none; repeatable.", metavar="LAYER"
    )
    feature_grid: int = option(1, "Pool feature maps to this size.", within="[1, inf)")
    batch_size: int | None = option(
        None, "Batch size (at most 1,024; default 256, or 64 for photos on a CPU).", within="[1, 1024]"
    )
    top_k: int | None = option(
        None, "Keep only the K largest logits, and the tail of the others.", within="[1, inf)", metavar="K"
    )
    tail_temperatures: tuple[float, ...] = option(
        (1.0, 2.0, 4.0), "With --top-k: temperatures of the tail.", metavar="T,T,..."
    )
    logits: str = option("float16", "Encoding of all logits.", choices=("float16", "uint8"))
    shards: int | None = option(
        None, "Files per teacher, for as many processes (default: existing ones, or torchrun's processes).",
        within="[1, inf)",
    )  # fmt: skip
    shard: str | tuple[int, int] | None = option(
        None, "Compute only shard I of N, counted from 1; for machines without a common disk.", metavar="I/N"
    )

    def __post_init__(self) -> None:
        given: Any = self.features
        layers = (given,) if isinstance(given, str) else given
        object.__setattr__(self, "features", tuple(layer for layer in layers if layer != "none"))
        object.__setattr__(self, "tail_temperatures", tuple(self.tail_temperatures))
        check(self)
        if self.top_k is None and self.tail_temperatures != CacheConfig.tail_temperatures:
            raise ConfigError("`tail_temperatures` needs `top_k`: give it too, or leave `tail_temperatures` out")


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How image files are decoded."""

    workers: int | None = option(
        None, "Processes that decode images (default: cores - 1).", within="[0, 256]", metavar="N"
    )
    exif: bool = setting(True, "Apply EXIF orientation.")
    skip_broken: bool = option(False, "Skip files that cannot be decoded.")

    def __post_init__(self) -> None:
        check(self)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe as option values and tables."""
    try:
        return tomllib.loads(read_regular(path).decode())
    except FileNotFoundError:
        raise ConfigError(f"there is no recipe {path}") from None
    except (OSError, ValueError, RecursionError) as error:  # also numbers with too many digits
        raise ConfigError(f"the recipe {path} cannot be read ({error}): repair it") from error


def run_data(folder: Path, *, option: str) -> str:
    """The data set of a run, as its recipe names it.

    Raises:
        ConfigError: without a recipe, or if the images were in memory; the user can give `option`.
    """
    try:
        data = str(read_recipe(folder / "recipe.toml")["data"])
        if not data.startswith("a ") or Path(data).exists():  # "a TensorDataset"
            return data
    except (ConfigError, KeyError):
        pass
    raise ConfigError(f"{folder} has no recipe that names its data: give `{option}`")


def check_output(folder: Path, command: str = "") -> None:
    """Refuse a folder with the files of something else; the command that writes there is "" for a cache."""
    file = folder / "recipe.toml"
    recipe = read_recipe(file) if file.exists() else {}
    made = "train" if "network" in recipe else "distill" if "student" in recipe else ""
    if made not in ("", command):
        raise ConfigError(f"{folder} is a run of {made}: choose another folder (`out`)")
    if command and any(folder.glob("*.h5*")):
        raise ConfigError(f"{folder} is a cache: choose another folder (`out`)")


def recipe_options(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a recipe; of a cached run, the live teachers' checkpoints are not in it."""
    options = {name: value for name, value in tables.items() if name not in _TABLES}
    if options.get("online"):
        options.pop("teachers", None)
    return options


def check_no_own_code(networks: Iterable[str]) -> None:
    """Refuse code of the user's own among a recipe's networks, as students or in teachers."""
    from demkd.networks import is_own_code

    for text in networks:
        name = text.partition("@")[0].rpartition("=")[2]
        if is_own_code(name):
            raise ConfigError(
                f"the recipe names {name}, code of your own, which is only imported when you name it: "
                "give it on the command line, of `distill` if this is a sweep"
            )


def field_types(config: type[Any]) -> dict[str, tuple[Any, ...]]:
    """The types that each field of a configuration accepts, such as (int, NoneType)."""
    hints = get_type_hints(config)
    return {
        name: get_args(hint) if isinstance(hint, types.UnionType) or get_origin(hint) is Union else (hint,)
        for name, hint in hints.items()
    }


def check(config: Any) -> None:
    """Check every field of a configuration, and make NumPy's numbers Python's."""
    accepted = field_types(type(config))
    for entry in fields(config):
        value = getattr(config, entry.name)
        if value is entry.default:
            continue
        if not _is_allowed(entry, accepted[entry.name], value):
            raise ConfigError(f"`{entry.name}` is {value!r}: give {_allowed(entry, accepted[entry.name])}")
        object.__setattr__(config, entry.name, plain(value))


def plain(value: Any) -> Any:
    """A value with tuples for lists, and Python's numbers for NumPy's, which JSON and TOML cannot hold."""
    if isinstance(value, tuple | list):
        return tuple(map(plain, value))
    if type(value) in (bool, int, float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def of_options(config: type[Config], options: Mapping[str, Any]) -> Config:
    """The configuration of those options that are its fields."""
    names = {entry.name for entry in fields(config)}  # type: ignore[arg-type]
    return config(**{name: value for name, value in options.items() if name in names})


def check_names(options: Iterable[str], *configs: type[Any], also: Iterable[str] = ()) -> None:
    """Refuse options that no configuration has."""
    known = sorted({entry.name for config in configs for entry in fields(config)} - {"name"} | set(also))
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            raise ConfigError(f"there is no option {name!r}: choose among {', '.join(close or known)}")


def check_counts(**counts: object) -> None:
    """Refuse what is neither None nor a whole number of at least 1."""
    for name, count in counts.items():
        if count is not None and not (_is_a(int, count) and count >= 1):  # type: ignore[operator]
            raise ConfigError(f"`{name}` is {count!r}: give a whole number of at least 1")


def parse(config: type[Any], name: str, text: str) -> Any:
    """The value of a field from a text, as the command line gives it; a list is separated by commas."""
    accepted = field_types(config)[name]
    try:
        if bool in accepted:
            return {"true": True, "false": False}[text.lower()]
        if str in accepted:
            return text
        for kind in accepted:
            if get_origin(kind) is tuple:
                return tuple(get_args(kind)[0](part.strip()) for part in text.split(","))
        return int(text) if int in accepted else float(text)
    except (ValueError, KeyError):
        entry = next(entry for entry in fields(config) if entry.name == name)
        raise ConfigError(f"`{name}` is {text!r}: give {_allowed(entry, accepted)}") from None


def _is_allowed(entry: "Field[Any]", accepted: tuple[Any, ...], value: Any) -> bool:
    choices, within = entry.metadata["choices"], entry.metadata["within"]
    if choices:
        return value in choices or (isinstance(value, str) and value in _registered(entry.name))
    if not any(_is_a(kind, value) for kind in accepted):
        return False
    if value is None or not within:
        return True
    low, high = _bounds(within)
    at_end = (value == low and within[0] == "[") or (value == high and within[-1] == "]")
    return bool(low < value < high or at_end)


def _registered(name: str) -> Iterable[str]:
    """The losses and weightings that a user added to the registries."""
    if name not in ("loss", "weight_form", "weight_source"):
        return ()
    from demkd import losses

    registry = {"loss": "LOSSES", "weight_form": "WEIGHT_FORMS", "weight_source": "UNCERTAINTIES"}[name]
    return tuple(getattr(losses, registry))


def _is_a(kind: Any, value: Any) -> bool:
    if get_origin(kind) is tuple:
        return isinstance(value, tuple | list) and all(_is_a(get_args(kind)[0], item) for item in value)
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    if kind is int:
        return isinstance(value, Integral)
    if kind is float:
        return isinstance(value, Real) and math.isfinite(value)
    return isinstance(value, kind)


def _bounds(within: str) -> tuple[float, float]:
    low, high = within[1:-1].split(",")
    return float(low), float(high)


def _allowed(entry: "Field[Any]", accepted: tuple[Any, ...]) -> str:
    """A description of what a field accepts."""
    choices, within = entry.metadata["choices"], entry.metadata["within"]
    if choices:
        return f"one of {', '.join(dict.fromkeys((*choices, *_registered(entry.name))))}"
    if bool in accepted:
        return "true or false"
    if any(get_origin(kind) is tuple for kind in accepted):
        return "a list of numbers" if "float" in str(accepted) else "a list of names"
    if str in accepted:
        return "a text"
    noun = "a whole number" if int in accepted else "a number"
    if not within:
        return noun
    low, high = _bounds(within)
    start = f"above {low:g}" if within[0] == "(" else f"of at least {low:g}"
    limit = f"{high:,.0f}" if 1000 <= high < 1e15 else f"{high:g}"
    if high == math.inf:
        return f"{noun} {start}"
    return f"{noun} {start} and {'below' if within[-1] == ')' else 'at most'} {limit}"


# The presets of --method; docs/methods.md has the formulas. Where a paper's page gives one setting for all pairs, the
# preset has it.
_HINT_WEIGHT = 50.0  # CA-MKD's, divided by K where it is used
_UNIFORM: Mapping[str, Any] = {"weight_source": "uniform", "warmup": 0.0}
_LS: Mapping[str, Any] = {"standardize": True, "kd_weight": 9.0, "temperature": 2.0}  # LS's: logit standardization

# In the order of --help; each gets its name below.
_PRESETS: dict[str, Mapping[str, Any]] = {
    "ce": {"loss": "none", **_UNIFORM},
    "kd": {"loss": "kd", **_UNIFORM},
    "kd-ls": {"loss": "kd", **_LS, **_UNIFORM},
    "dkd": {"weight_source": "uniform"},
    # Weight 9 is unstable with five classes (docs/results.md).
    "dkd-ls": {**_LS, "weight_source": "uniform", "full_weight_classes": 100},
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
