"""What users may give for an argument, and what it stands for."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Union

from demkd.errors import UserError
from demkd.pipeline import defaults
from demkd.pipeline.methods import Method, MethodError, choose_method
from demkd.pipeline.progress import Progress

if TYPE_CHECKING:
    from demkd.dataset import Normalisation, PolicyLike, Reading

Value = TypeVar("Value")
# One value for all teachers, or values by their names.
ByTeacher = Union[Value, Mapping[str, Value], None]  # noqa: UP007 - a generic alias
NormaliseLike = Union[str, "Normalisation", Sequence[Sequence[float]]]


class ArgumentError(UserError, ValueError):
    """An argument that cannot be understood."""


class MethodOptions(TypedDict, total=False):
    """The options of a method, as docs/methods.md explains them; a preset's own where left out."""

    loss: str | None
    standardise: bool | None
    kd_weight: float | None
    temperature: float | None
    tckd_weight: float | None
    nckd_weight: float | None
    batch_weight: float | None
    target_power: float | None
    views_per_step: int | None
    warmup: float | None
    hint_weight: float | None
    weight_source: str | None
    weight_form: str | None
    weight_tau: float | None
    entropy_temperature: float | str | None
    entropy_logits: str | None
    weight_level: str | None
    wrong_teacher: str | None
    feature_weighting: str | None
    fixed_weights: Sequence[float] | None
    shuffle: str | None


class CachingOptions(TypedDict, total=False):
    """What `cache_teachers` and `plan_caching` take besides teachers and data.

    Attributes:
        views: views per sample; 16 by default, or all there are if fewer.
        policy: which views, or a name of them: "crop-flip" (the default for equal pictures of at most 64 pixels) or
            "resized-crop" (for others), either with "+randaugment".
        view_seed: which of them come first.
        features: whose features to keep: "last" (the last map before pooling) or layers by name; () for none.
        feature_grid: average maps down to this side.
        batch_size: of the forward passes, at most 1,024; 256 by default, or 64 for photos on a CPU.
        normalise: mean and standard deviation that a teacher was trained with, of all or by name: "cifar10",
            "cifar100", "imagenet", "none", "m,m,m/s,s,s" or a pair; by default what its checkpoint says, else the
            data's.
        input_size: the side of a teacher's input, of all or by name: views are cut at this size, or resized to it.
        keep: only so many of the largest logits of each answer, and the sum of the others; all by default.
        rest_temperatures: at which that sum is kept.
        shards: in how many files each teacher's answers are, so that as many processes can answer at once; by default
            as many as there are already, else as torchrun has processes, else 1.
        only_shards: those that are made here, from 0; all by default. For machines without a common disk.
        reading: how pictures are decoded.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: "auto", "float32" or "bfloat16".
        progress: bars on stderr, or none, or your own.
    """

    views: int | None
    policy: "PolicyLike"
    view_seed: int
    features: Sequence[str]
    feature_grid: int
    batch_size: int | None
    normalise: ByTeacher[NormaliseLike]
    input_size: ByTeacher[int]
    keep: int | None
    rest_temperatures: Sequence[float]
    shards: int | None
    only_shards: Sequence[int]
    reading: "Reading | None"
    device: str
    precision: str
    progress: bool | Progress


class TrainingKeywords(TypedDict, total=False):
    """How a network is trained.

    Attributes:
        seed: of everything random in the run.
        schedule: of the learning rate: "step", "cosine", "one-cycle" or "constant".
        momentum, nesterov: of SGD.
        label_smoothing: share of the label's target that is spread over all classes.
        label_noise: share of the training labels to replace by wrong ones.
        size: height and width of the network's input, where views are resized; the views' by default.
        crop_ratio: what an evaluation shows of a picture's shorter side, where views are resized; 0.875 by default.
        sync_bn: under torchrun, let batch normalisation see the samples of all processes.
        views_per_decode: show each picture of a batch in so many views, decoding it once.
        order_seed: of which sample shows which view when, in place of `seed`; for `together`.
    """

    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str
    momentum: float
    nesterov: bool
    weight_decay: float
    label_smoothing: float
    label_noise: float
    size: int | None
    crop_ratio: float | None
    sync_bn: bool
    views_per_decode: int
    order_seed: int | None


class DistillKeywords(TrainingKeywords, MethodOptions, total=False):
    """How a student is trained, and the options of its method."""


# What `inspect` lists, of which it takes one; and what is of no use without another argument.
LISTINGS = ("by_class", "sample", "uncertain", "disagree", "wrong_and_trusted", "suspect")
NEEDS: Mapping[str, Sequence[str]] = {
    "sort": ("by_class",),
    "limit": ("by_class",),
    "slot": ("sample",),
    "views": ("sample",),
    "score": ("suspect",),
}
EXCLUDE = (*itertools.combinations(LISTINGS, 2), ("slot", "views"))


def contradiction(
    arguments: Mapping[str, object],
    *,
    named: Callable[[str], str],
    needs: Mapping[str, Sequence[str]] = NEEDS,
    exclude: Iterable[tuple[str, str]] = EXCLUDE,
) -> str | None:
    """A sentence about the first arguments that need or exclude each other; None and False are left out.

    Args:
        named: what an argument is called in the sentence.
        needs: by argument, those of which it needs one.
    """
    given = {name for name, value in arguments.items() if value is not None and value is not False}
    for name, needed in needs.items():
        if name in given and not given.intersection(needed):
            wanted = " or ".join(map(named, needed))
            return f"{named(name)} needs {wanted}: give it too, or leave {named(name)} out"
    for one, other in exclude:
        if {one, other} <= given:
            return f"{named(one)} and {named(other)} exclude each other: leave one out"
    return None


def resolve_method(method: str | Method, options: Mapping[str, Any]) -> Method:
    """A preset by name with some options changed, or a method as it is.

    Raises:
        MethodError: if there is no such preset or option, or they do not fit each other.
    """
    if isinstance(method, str):
        return choose_method(method, **options)
    if options:
        raise MethodError(f"`method` is a Method already: change {', '.join(options)} there")
    return method


def by_teacher(value: ByTeacher[Value]) -> dict[str, Value]:
    """Values by the teachers' names, with "" for all others."""
    if value is None:
        return {}
    return dict(value) if isinstance(value, Mapping) else {"": value}


def normalisations_by_teacher(value: ByTeacher[Any]) -> "dict[str, Normalisation]":
    """The same of whatever `as_normalisation` takes.

    Raises:
        DataError: if one cannot be understood.
    """
    from demkd.dataset import as_normalisation

    return {name: as_normalisation(one) for name, one in by_teacher(value).items()}


def sizes_by_teacher(value: ByTeacher[int]) -> dict[str, int]:
    """The same of sizes in pixels.

    Raises:
        ArgumentError: if one is no such number.
    """
    sizes = by_teacher(value)
    for name, size in sizes.items():
        if type(size) is not int or not 1 <= size <= defaults.LARGEST_INPUT:
            named = f"{name}=" if name else ""
            raise ArgumentError(
                f"`input_size={named}{size}` is not understood: give pixels, 1 to {defaults.LARGEST_INPUT}, such as 224"
            )
    return sizes


def require_crop_ratio(ratio: float | None) -> None:
    """Refuse a ratio that cannot be.

    Raises:
        ArgumentError: saying what can.
    """
    if ratio is not None and not 0 < ratio <= 1:
        raise ArgumentError(
            f"`crop_ratio` is {ratio}: give what is shown of a picture's shorter side, above 0 and to 1"
        )
