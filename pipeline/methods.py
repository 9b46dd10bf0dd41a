"""The methods: what each preset of `--method` means, as one set of options that one training loop understands.

Every option and its formula is described in docs/methods.md; the defaults are DE-MKD's.
"""

import math
from collections.abc import Iterable, Sequence
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
        loss: a name in `logit_losses.LOSSES`, such as "dkd" (TCKD and NCKD with weights of their own) or "kd" (Hinton's
            loss); "none" for labels only.
        standardise: whether the loss sees standardised logits, of every teacher and of the student.
        kd_weight: the factor of the logit loss as a whole.
        temperature: T of the logit loss.
        tckd_weight, nckd_weight: DKD's alpha and beta.
        batch_weight: of DIST's and MLKD's terms that compare the samples of a batch, relative to the others.
        target_power: OFA's gamma.
        views_per_step: in how many views a step shows each sample: neighbouring slots.
        warmup: the share of the schedule over which the logit loss is faded in; 0 for none.
        hint_weight: gamma, divided by K; 0 for no features.
        weight_source: a name in `losses.UNCERTAINTIES`, "uniform" or "fixed".
        weight_form: a name in `losses.WEIGHT_FORMS`.
        weight_tau: the temperature of the form's softmax.
        entropy_temperature: the temperature at which teachers are asked how sure they are.
        entropy_logits: "raw", or "standardised": which logits teachers' uncertainties are of.
        weight_level: "sample", or "dataset": uncertainties are averaged over a slot first.
        wrong_teacher: "keep", or "mask": a teacher whose prediction is wrong gets no weight.
        feature_weighting: "shared" (the logits' weights) or "uniform".
        fixed_weights: the weights by teacher for the source "fixed".
        shuffle: a control: "none", or "teachers" or "samples", whose weights change places.
    """

    name: str
    loss: str = "dkd"
    standardise: bool = False
    kd_weight: float = 1.0
    temperature: float = 4.0
    tckd_weight: float = 1.0
    nckd_weight: float = 8.0
    batch_weight: float = 1.0
    target_power: float = 1.5
    views_per_step: int = 1
    warmup: float = 20 / 240
    hint_weight: float = 0.0
    weight_source: str = "entropy"
    weight_form: str = "one_minus_softmax"
    weight_tau: float = 1.0
    entropy_temperature: float = 1.0
    entropy_logits: str = "raw"
    weight_level: str = "sample"
    wrong_teacher: str = "keep"
    feature_weighting: str = "shared"
    fixed_weights: tuple[float, ...] = ()
    shuffle: str = "none"

    @property
    def needs_teachers(self) -> bool:
        return self.loss != "none"

    @property
    def needs_features(self) -> bool:
        return self.hint_weight > 0


_HINT_WEIGHT = 50.0  # CA-MKD's, divided by K where it is used

# In the order of --help. Where a paper's page gives one setting for all pairs, it is that; see docs/methods.md.
METHODS: dict[str, Method] = {
    "ce": Method(name="ce", loss="none", weight_source="uniform", warmup=0.0),
    "kd": Method(name="kd", loss="kd", weight_source="uniform", warmup=0.0),
    "kd-ls": Method(
        name="kd-ls", loss="kd", standardise=True, kd_weight=9.0, temperature=2.0, weight_source="uniform", warmup=0.0
    ),
    "dkd": Method(name="dkd", weight_source="uniform"),
    "dkd-ls": Method(name="dkd-ls", standardise=True, kd_weight=9.0, temperature=2.0, weight_source="uniform"),
    "ttm": Method(name="ttm", loss="ttm", kd_weight=45.0, temperature=10.0, weight_source="uniform", warmup=0.0),
    "wttm": Method(name="wttm", loss="wttm", kd_weight=4.0, temperature=5.0, weight_source="uniform", warmup=0.0),
    "dist": Method(name="dist", loss="dist", kd_weight=2.0, weight_source="uniform", warmup=0.0),
    "dist-entropy": Method(name="dist-entropy", loss="dist", kd_weight=8.0, weight_form="softmax", warmup=0.0),
    "mlkd": Method(name="mlkd", loss="mlkd", kd_weight=9.0, batch_weight=0.5, weight_source="uniform", warmup=0.0),
    "mlkd-ls": Method(
        name="mlkd-ls",
        loss="mlkd",
        standardise=True,
        kd_weight=9.0,
        temperature=2.0,
        batch_weight=0.5,
        weight_source="uniform",
        warmup=0.0,
    ),
    "ofa": Method(name="ofa", loss="ofa", temperature=1.0, weight_source="uniform", warmup=0.0),
    "ebkd": Method(name="ebkd", loss="kd", weight_form="one_minus_share", warmup=0.0),
    "ca-mkd": Method(name="ca-mkd", loss="kd", weight_source="cross_entropy", warmup=0.0, hint_weight=_HINT_WEIGHT),
    "de-mkd-logits": Method(name="de-mkd-logits"),
    "de-mkd": Method(name="de-mkd", hint_weight=_HINT_WEIGHT),
}

# The words of an option, for --help, which imports no PyTorch; what a user adds need not be here (`_words`).
CHOICES: dict[str, tuple[str, ...]] = {
    "loss": ("dkd", "kd", "ttm", "wttm", "dist", "mlkd", "ofa"),
    "weight_source": ("entropy", "cross_entropy", "agreement", "uniform", "fixed"),
    "weight_form": ("one_minus_softmax", "softmax", "one_minus_share", "inverse"),
    "entropy_logits": ("raw", "standardised"),
    "weight_level": ("sample", "dataset"),
    "wrong_teacher": ("keep", "mask"),
    "feature_weighting": ("shared", "uniform"),
}
# Those of a study's controls: what tells whether a part of a method is worth anything, and makes no better student.
CONTROLS: dict[str, tuple[str, ...]] = {
    "shuffle": ("none", "teachers", "samples"),
}
_WORDS = {**CHOICES, **CONTROLS}
_WITH_A_LABEL = ("dkd", "ofa")  # losses that ask which class is the label's
_POSITIVE = ("temperature", "weight_tau", "entropy_temperature", "target_power")
_NUMBERS = (*_POSITIVE, "kd_weight", "tckd_weight", "nckd_weight", "batch_weight", "warmup", "hint_weight")


def choose_method(name: str, **options: Any) -> Method:
    """A preset with some options changed; None leaves the preset's value, and "kd" as `entropy_temperature` is T.

    Raises:
        MethodError: if there is no such preset, option or value, or if options contradict each other.
    """
    if name not in METHODS:
        raise MethodError(f"there is no method {name!r}: choose one of {', '.join(METHODS)}")
    known = [field.name for field in fields(Method) if field.name != "name"]
    unknown = [key for key in options if key not in known]
    if unknown:
        raise MethodError(f"a method has no option {unknown[0]}: choose among {', '.join(known)}")
    changes = {key: value for key, value in options.items() if value is not None}
    if changes.get("entropy_temperature") == "kd":
        changes["entropy_temperature"] = changes.get("temperature", METHODS[name].temperature)
    for key, value in changes.items():
        if value != getattr(METHODS[name], key):  # loss = "none" is ce's own, in a run's recipe, and no choice
            _require_known_value(key, value)
    method = replace(METHODS[name], **changes)
    _require_possible_loss(method)
    _require_possible_weights(method)
    return method


def require_teacher_count(method: Method, names: Sequence[str]) -> None:
    """Refuse options that do not fit the number of teachers.

    Raises:
        MethodError: saying how many there are.
    """
    fixed = method.fixed_weights
    if fixed and len(fixed) != len(names):
        raise MethodError(f"`fixed_weights` has {len(fixed)} numbers for {len(names)} teachers ({', '.join(names)})")


def require_view_count(views: int, together: int, option: str = "views_per_step") -> None:
    """Refuse a number of slots that steps of several views cannot share out.

    Raises:
        MethodError: with both numbers, and the option that says how many are shown together.
    """
    if views % together:
        raise MethodError(
            f"`views` is {views}, which is no multiple of the {together} that a step shows together "
            f"(`{option}`): choose another number"
        )


def require_mixable(method: Method) -> None:
    """Refuse what needs one label a sample, where views are mixed of two samples.

    Raises:
        MethodError: with the reason.
    """
    reason = "needs one label a picture, and mixed pictures have two"
    if method.loss in _WITH_A_LABEL:
        said = "the decoupled loss" if method.loss == "dkd" else "OFA's loss"
        raise MethodError(
            f"{said} of {method.name} {reason}: choose kd, ebkd or another with `loss=kd`, or leave `mix` out"
        )
    if method.needs_teachers and method.weight_source == "cross_entropy":
        raise MethodError(f"`weight_source=cross_entropy` {reason}: choose entropy, or leave `mix` out")
    if method.wrong_teacher == "mask":
        raise MethodError(f"`wrong_teacher=mask` {reason}: choose keep, or leave `mix` out")


def _require_known_value(key: str, value: Any) -> None:
    if key in _WORDS and value not in (words := _words(key)):
        raise MethodError(f"`{key}` cannot be {value!r}: choose one of {', '.join(words)}")
    if key == "standardise" and not isinstance(value, bool):
        raise MethodError(f"`{key}` cannot be {value!r}: it must be true or false")
    if key == "views_per_step" and (type(value) is not int or value < 1):
        raise MethodError(f"`{key}` cannot be {value!r}: it must be 1 or a larger whole number")
    if key in _NUMBERS:
        _require_number(key, value)


def _require_number(key: str, value: Any) -> None:
    if not isinstance(value, Real):
        raise MethodError(f"`{key}` cannot be {value!r}: it must be a number")
    if not math.isfinite(value) or value < 0 or (value == 0 and key in _POSITIVE):
        raise MethodError(f"`{key}` cannot be {value}: it must {'be above' if key in _POSITIVE else 'not be below'} 0")


def _words(key: str) -> tuple[str, ...]:
    """The words of an option, and the names of losses and weightings that a user added."""
    from demkd.losses import UNCERTAINTIES, WEIGHT_FORMS
    from demkd.pipeline.logit_losses import LOSSES

    tables: dict[str, Iterable[str]] = {"loss": LOSSES, "weight_form": WEIGHT_FORMS, "weight_source": UNCERTAINTIES}
    return tuple(dict.fromkeys((*_WORDS[key], *tables.get(key, ()))))


def _are_shares(values: Any) -> bool:
    if not isinstance(values, tuple | list) or not all(isinstance(value, Real) for value in values):
        return False
    return min(values) >= 0 and abs(sum(values) - 1) <= 1e-6  # False if one is NaN


def _require_possible_loss(method: Method) -> None:
    factors = (method.tckd_weight, method.nckd_weight) if method.loss == "dkd" else (1.0,)
    has_logit_loss = method.needs_teachers and method.kd_weight > 0 and any(factors)
    if method.needs_features and not method.needs_teachers:
        raise MethodError("the method ce has no teachers, so there are no features for `hint_weight`: leave it out")
    if method.needs_teachers and not method.needs_features and not has_logit_loss:
        raise MethodError(
            "with factors of 0 (`kd_weight`, or `tckd_weight` and `nckd_weight`; and `hint_weight`) nothing is learnt "
            "from the teachers; choose the method ce"
        )


def _require_possible_weights(method: Method) -> None:
    if (method.weight_source == "fixed") != bool(method.fixed_weights):
        raise MethodError("`fixed_weights` and `weight_source=fixed` go together: give both or neither")
    if method.fixed_weights and not _are_shares(method.fixed_weights):
        raise MethodError(f"`fixed_weights` cannot be {method.fixed_weights!r}: none may be below 0, their sum is 1")
    if method.shuffle == "samples" and method.weight_level == "dataset":
        raise MethodError(
            "`weight_level=dataset` gives all samples the same weights: `shuffle=samples` changes nothing"
        )
    if method.shuffle != "none" and method.weight_source == "uniform" and method.wrong_teacher == "keep":
        raise MethodError("`weight_source=uniform` gives all teachers the same weights: `shuffle` changes nothing")
