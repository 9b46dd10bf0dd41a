"""The methods: what each preset of `--method` means, as one set of options that one training loop understands.

Every option and its formula is described in docs/methods.md; the defaults are DE-MKD's.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

from demkd.errors import UserError


class MethodError(UserError, ValueError):
    """A method that does not exist, or options that contradict each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """How the student learns from its teachers.

    Attributes:
        decouple: "dkd" (TCKD and NCKD with weights of their own), "coupled" (Hinton's loss) or "none" (labels only).
        kd_weight: the factor of the logit loss as a whole.
        temperature: T of the logit loss.
        tckd_weight, nckd_weight: DKD's alpha and beta.
        warmup: the share of the schedule over which the logit loss is faded in; 0 for none.
        hint_weight: gamma, divided by K; 0 for no features.
        weight_source: "entropy", "cross_entropy", "uniform", "fixed", "shuffled_teachers" or "shuffled_samples".
        weight_form: a name in `losses.WEIGHT_FORMS`.
        weight_tau: the temperature of the form's softmax.
        entropy_temperature: the temperature at which teachers are asked how sure they are.
        weight_level: "sample", or "dataset": uncertainties are averaged over a slot first.
        weight_on: "both", or only "nckd" or "tckd"; the other part gets 1 / K.
        entropy_scope: "full", or "decoupled": the entropy of b for TCKD, of q for NCKD.
        wrong_teacher: "keep", or "mask": a teacher whose prediction is wrong gets no weight.
        feature_weighting: "shared" (the logits' weights) or "uniform".
        fixed_weights: the weights by teacher for the source "fixed".
        reduction: "normalised", or "released": the loss scales of CA-MKD's repository.
    """

    name: str
    decouple: str = "dkd"
    kd_weight: float = 1.0
    temperature: float = 4.0
    tckd_weight: float = 1.0
    nckd_weight: float = 8.0
    warmup: float = 20 / 240
    hint_weight: float = 0.0
    weight_source: str = "entropy"
    weight_form: str = "one_minus_softmax"
    weight_tau: float = 1.0
    entropy_temperature: float = 1.0
    weight_level: str = "sample"
    weight_on: str = "both"
    entropy_scope: str = "full"
    wrong_teacher: str = "keep"
    feature_weighting: str = "shared"
    fixed_weights: tuple[float, ...] = ()
    reduction: str = "normalised"

    @property
    def needs_teachers(self) -> bool:
        return self.decouple != "none"

    @property
    def needs_features(self) -> bool:
        return self.hint_weight > 0


_HINT_WEIGHT = 50.0  # CA-MKD's, divided by K where it is used

METHODS: dict[str, Method] = {
    "ce": Method(name="ce", decouple="none", weight_source="uniform", warmup=0.0),
    "kd": Method(name="kd", decouple="coupled", weight_source="uniform", warmup=0.0),
    "dkd": Method(name="dkd", weight_source="uniform"),
    "ebkd": Method(name="ebkd", decouple="coupled", weight_form="one_minus_share", warmup=0.0),
    "ca-mkd": Method(
        name="ca-mkd", decouple="coupled", weight_source="cross_entropy", warmup=0.0, hint_weight=_HINT_WEIGHT
    ),
    "de-mkd-logits": Method(name="de-mkd-logits"),
    "de-mkd": Method(name="de-mkd", hint_weight=_HINT_WEIGHT),
}

# The words of an option, as --help lists them without PyTorch; weightings of one's own need not be here (`_words`).
CHOICES: dict[str, tuple[str, ...]] = {
    "decouple": ("dkd", "coupled"),
    "weight_source": ("entropy", "cross_entropy", "uniform", "fixed", "shuffled_teachers", "shuffled_samples"),
    "weight_form": ("one_minus_softmax", "softmax", "one_minus_share", "inverse"),
    "weight_level": ("sample", "dataset"),
    "weight_on": ("both", "nckd", "tckd"),
    "entropy_scope": ("full", "decoupled"),
    "wrong_teacher": ("keep", "mask"),
    "feature_weighting": ("shared", "uniform"),
    "reduction": ("normalised", "released"),
}
ENTROPY_SOURCES = frozenset({"entropy", "shuffled_teachers", "shuffled_samples"})
_POSITIVE = ("temperature", "weight_tau", "entropy_temperature")
_NUMBERS = (*_POSITIVE, "kd_weight", "tckd_weight", "nckd_weight", "warmup", "hint_weight")


def choose_method(name: str, **options: Any) -> Method:
    """A preset with some options changed; None leaves the preset's value, and "kd" as `entropy_temperature` is T.

    Raises:
        MethodError: if there is no such preset, option or value, if options contradict each other, or if one of them
            would do nothing.
    """
    if name not in METHODS:
        raise MethodError(f"there is no method {name!r}: choose one of {', '.join(METHODS)}")
    changes = _changes(METHODS[name], options)
    _require_known_values(changes)
    method = replace(METHODS[name], **changes)
    for is_contradiction, why in _CONTRADICTIONS:
        if is_contradiction(method):
            raise MethodError(f"these options contradict each other: {why}")
    for key, (is_read, reader) in _READERS.items():
        if key in changes and not is_read(method):
            raise MethodError(f"{key} would do nothing here: it is for {reader}; leave it out")
    return method


def _changes(preset: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say something else than the preset."""
    known = [field.name for field in fields(Method) if field.name != "name"]
    for key in options:
        if key not in known:
            raise MethodError(f"a method has no option {key}: choose among {', '.join(known)}")
    chosen = {key: value for key, value in options.items() if value is not None}
    if chosen.get("entropy_temperature") == "kd":
        chosen["entropy_temperature"] = chosen.get("temperature", preset.temperature)
    return {key: value for key, value in chosen.items() if value != getattr(preset, key)}


def require_teacher_count(method: Method, names: Sequence[str]) -> None:
    """Refuse options that do not fit the number of teachers.

    Raises:
        MethodError: saying how many there are.
    """
    fixed = method.fixed_weights
    if fixed and len(fixed) != len(names):
        raise MethodError(f"fixed_weights has {len(fixed)} numbers for {len(names)} teachers ({', '.join(names)})")
    if method.reduction == "released" and not RELEASED_SCALES[method.name](len(names)):
        raise MethodError(
            f"reduction released gives {method.name}'s logit loss the factor 0 with {len(names)} teacher "
            f"({', '.join(names)}): choose normalised, or more teachers"
        )


def _require_known_values(changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if key in CHOICES:
            if value not in (words := _words(key)):
                raise MethodError(f"{key} cannot be {value!r}: choose one of {', '.join(words)}")
        elif key in _NUMBERS:
            _require_number(key, value)


def _require_number(key: str, value: Any) -> None:
    if not isinstance(value, Real):
        raise MethodError(f"{key} cannot be {value!r}: it must be a number")
    if not math.isfinite(value) or value < 0 or (value == 0 and key in _POSITIVE):
        raise MethodError(f"{key} cannot be {value}: it must {'be above' if key in _POSITIVE else 'not be below'} 0")


def _words(key: str) -> tuple[str, ...]:
    """What an option may be: a weighting is known as soon as `demkd.losses` has it."""
    from demkd.losses import UNCERTAINTIES, WEIGHT_FORMS

    weightings: dict[str, Iterable[str]] = {"weight_form": WEIGHT_FORMS, "weight_source": UNCERTAINTIES}
    return tuple(dict.fromkeys((*CHOICES[key], *weightings.get(key, ()))))


def _are_shares(values: Any) -> bool:
    if not isinstance(values, tuple | list) or not all(isinstance(value, Real) for value in values):
        return False
    return min(values) >= 0 and abs(sum(values) - 1) <= 1e-6  # NaN is neither of both


def _logit_factors(method: Method) -> dict[str, float]:
    """What the parts of the logit loss count for; a coupled loss is one part, with the weights of NCKD."""
    parts = {
        "dkd": {"tckd": method.tckd_weight, "nckd": method.nckd_weight},
        "coupled": {"nckd": 1.0},
        "none": {},
    }[method.decouple]
    return {part: method.kd_weight * factor for part, factor in parts.items()}


def _has_logit_loss(method: Method) -> bool:
    return any(_logit_factors(method).values())


def _is_weighted(method: Method) -> bool:
    """Whether a part of the loss takes weights by teacher, so that it matters which."""
    logits = any(factor for part, factor in _logit_factors(method).items() if method.weight_on in ("both", part))
    return logits or (method.needs_features and method.feature_weighting == "shared")


def _has_uncertainty(method: Method) -> bool:
    return _is_weighted(method) and method.weight_source not in ("uniform", "fixed")


def _is_uniform(method: Method) -> bool:
    return method.weight_source == "uniform" and method.wrong_teacher == "keep"


def _evens_out(method: Method) -> bool:
    """Whether `weight_on` gives 1 / K to a part that counts and would have other weights."""
    left_out = (factor for part, factor in _logit_factors(method).items() if part != method.weight_on)
    return any(left_out) and not _is_uniform(method)


_LOGIT_LOSS = (_has_logit_loss, "a method with a logit loss")
_WEIGHTED = (_is_weighted, "a loss that is weighted by teacher")
_UNCERTAINTY = (_has_uncertainty, "a loss that is weighted by the teachers' uncertainties")
_WITHOUT_TAU = ("one_minus_share", "inverse")
_WITHOUT_ENTROPY_TEMPERATURE = ("uniform", "fixed", "cross_entropy")

# Which methods read an option. One that is changed and not read would silently do nothing.
_READERS: dict[str, tuple[Callable[[Method], bool], str]] = {
    "decouple": _LOGIT_LOSS,
    "temperature": _LOGIT_LOSS,
    "warmup": _LOGIT_LOSS,
    "reduction": _LOGIT_LOSS,
    "kd_weight": (lambda m: _has_logit_loss(replace(m, kd_weight=1.0)), _LOGIT_LOSS[1]),
    "tckd_weight": (lambda m: m.decouple == "dkd" and m.kd_weight > 0, "a decoupled loss with a kd_weight above 0"),
    "nckd_weight": (lambda m: m.decouple == "dkd" and m.kd_weight > 0, "a decoupled loss with a kd_weight above 0"),
    "weight_source": _WEIGHTED,
    "wrong_teacher": _WEIGHTED,
    "weight_form": _UNCERTAINTY,
    "weight_level": _UNCERTAINTY,
    "entropy_temperature": _UNCERTAINTY,
    "entropy_scope": _UNCERTAINTY,
    "weight_tau": (
        lambda m: _has_uncertainty(m) and m.weight_form not in _WITHOUT_TAU,
        f"weights of uncertainties in other forms than {' and '.join(_WITHOUT_TAU)}",
    ),
    "weight_on": (_evens_out, "a loss whose other part counts and has other weights than 1 / K"),
    "feature_weighting": (
        lambda m: m.needs_features and not _is_uniform(m),
        "a method with features and other weights than 1 / K",
    ),
}

# Options that have no meaning together are refused with the reason.
_CONTRADICTIONS: tuple[tuple[Callable[[Method], bool], str], ...] = (
    (
        lambda m: m.decouple == "none" and m.needs_features,
        "the method ce has no teachers, so there are no features to match",
    ),
    (
        lambda m: m.needs_teachers and not m.needs_features and not _has_logit_loss(m),
        "with factors of 0 (kd_weight, or tckd_weight and nckd_weight; and hint_weight) nothing is learnt from the "
        "teachers; choose the method ce",
    ),
    (
        lambda m: m.decouple != "dkd" and m.weight_on != "both",
        "weight_on names a part of DKD's loss, and the loss is not decoupled",
    ),
    (
        lambda m: m.decouple != "dkd" and m.entropy_scope == "decoupled",
        "entropy_scope decoupled gives TCKD and NCKD weights of their own, and the loss is not decoupled",
    ),
    (
        lambda m: m.weight_source not in ENTROPY_SOURCES and m.entropy_scope != "full",
        "entropy_scope decoupled needs a weight_source of entropies",
    ),
    (
        lambda m: m.weight_source in _WITHOUT_ENTROPY_TEMPERATURE and m.entropy_temperature != 1.0,
        f"entropy_temperature is for other weight_sources than {', '.join(_WITHOUT_ENTROPY_TEMPERATURE)}",
    ),
    (
        lambda m: m.weight_source in ("uniform", "fixed") and m.weight_level == "dataset",
        "weight_level dataset averages uncertainties, and this weight_source has none",
    ),
    (
        lambda m: bool(m.fixed_weights) and not _are_shares(m.fixed_weights),
        "fixed_weights are shares: none below 0, and their sum 1",
    ),
    (
        lambda m: m.weight_level == "dataset" and m.weight_source == "shuffled_samples",
        "weight_level dataset gives all samples the same weights, so there is nothing for shuffled_samples to shuffle",
    ),
    (
        lambda m: (m.weight_source == "fixed") != bool(m.fixed_weights),
        "fixed_weights and weight_source fixed go together",
    ),
    (
        lambda m: m.reduction == "released" and (m.name not in RELEASED_SCALES or m.decouple != "coupled"),
        "reduction released is known for kd, ebkd and ca-mkd, with their coupled loss",
    ),
)

# The total weight of the logit loss in CA-MKD's repository, by preset, as a function of K (docs/methods.md).
RELEASED_SCALES: dict[str, Callable[[int], float]] = {
    "kd": lambda _teachers: 1.0,
    "ebkd": lambda teachers: (teachers - 1) / teachers,
    "ca-mkd": lambda teachers: 1 / teachers,
}
