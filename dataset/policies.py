"""The policies that there are, by name; a cache names its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from demkd.dataset.crop_flip import CropFlip
from demkd.dataset.errors import ViewsError
from demkd.dataset.mixing import CutMix, MixUp
from demkd.dataset.randaugment import RandAugment
from demkd.dataset.resized_crop import ResizedCrop
from demkd.dataset.views import ViewPolicy

POLICIES: dict[str, Callable[..., ViewPolicy]] = {
    policy.name: policy for policy in (CropFlip, ResizedCrop, RandAugment, MixUp, CutMix)
}


def policy_of(facts: Mapping[str, Any]) -> ViewPolicy:
    """The policy that `ViewPolicy.facts` described.

    Raises:
        ViewsError: if this version knows no such policy, or the parameters are not its own.
    """
    parameters = {name: value for name, value in facts.items() if name not in ("policy", "seed")}
    if isinstance(parameters.get("base"), Mapping):
        parameters["base"] = policy_of(parameters["base"])
    try:
        return POLICIES[facts["policy"]](**parameters)
    except ViewsError:
        raise
    except (KeyError, TypeError):
        raise ViewsError(
            f"there are no views called {facts.get('policy')!r} with {parameters}: this version knows "
            f"{', '.join(POLICIES)}"
        ) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewChoice:
    """A policy by its options; what is None is the data's own, or the policy's usual.

    Attributes:
        view: "crop-flip" or "resized-crop", either with "+randaugment".
        mix: "mixup" or "cutmix".
    """

    view: str | None = None
    size: int | None = None
    scale: tuple[float, ...] | None = None
    ratio: tuple[float, ...] | None = None
    interpolation: str | None = None
    randaugment_ops: int | None = None
    magnitude: int | None = None
    strong_every: int | None = None
    mix: str | None = None
    mix_alpha: float | None = None

    def policy(self, default: ViewPolicy) -> ViewPolicy:
        """What it describes, for data whose own policy is the default.

        Raises:
            ViewsError: if there is no such policy, or an option is of another one.
        """
        base_name, plus, strong = (self.view or default.name).partition("+")
        if base_name not in (CropFlip.name, ResizedCrop.name) or (plus and strong != RandAugment.name):
            raise ViewsError(
                f"`view` cannot be {self.view!r}: choose {CropFlip.name} or {ResizedCrop.name}, or either with "
                f"+{RandAugment.name}"
            )
        box = _given(size=self.size, scale=self.scale, ratio=self.ratio, interpolation=self.interpolation)
        policy = _base(default, base_name, box)
        operations = _given(num_ops=self.randaugment_ops, magnitude=self.magnitude, strong_every=self.strong_every)
        if plus:
            policy = RandAugment(base=policy, **operations)
        elif operations:
            raise ViewsError(f"RandAugment's options are given without it: add it (`view={base_name}+randaugment`)")
        return _mixed(policy, self.mix, _given(alpha=self.mix_alpha))


PolicyLike = ViewPolicy | ViewChoice | str | None


def as_policy(policy: PolicyLike, default: ViewPolicy) -> ViewPolicy | None:
    """A policy, or the one that words or a name describe for data whose own is the default.

    Raises:
        ViewsError: if there is none.
    """
    choice = ViewChoice(view=policy) if isinstance(policy, str) else policy
    return choice.policy(default) if isinstance(choice, ViewChoice) else choice


def _base(default: ViewPolicy, name: str, box: dict[str, Any]) -> ViewPolicy:
    if name == ResizedCrop.name:
        return ResizedCrop(**box) if box or default.name != name else default
    if box:
        raise ViewsError(f"`{next(iter(box))}` is of `view=resized-crop`: crop-flip keeps the pictures' own size")
    return default if default.name == name else CropFlip(padding=4, flip=True)


def _mixed(policy: ViewPolicy, mix: str | None, options: dict[str, Any]) -> ViewPolicy:
    if mix is None:
        if options:
            raise ViewsError("`mix_alpha` is of MixUp and CutMix: choose one (`mix=mixup`)")
        return policy
    if mix not in (MixUp.name, CutMix.name):
        raise ViewsError(f"`mix` cannot be {mix!r}: choose {MixUp.name} or {CutMix.name}")
    return POLICIES[mix](base=policy, **options)


def _given(**options: Any) -> dict[str, Any]:
    """What was not left out."""
    return {name: value for name, value in options.items() if value is not None}
