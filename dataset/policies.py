"""The policies that there are, by name; a cache names its own."""

from collections.abc import Callable, Mapping
from typing import Any

from demkd.dataset.crop_flip import CropFlip
from demkd.dataset.errors import ViewsError
from demkd.dataset.views import ViewPolicy

POLICIES: dict[str, Callable[..., ViewPolicy]] = {CropFlip.name: CropFlip}


def policy_of(facts: Mapping[str, Any]) -> ViewPolicy:
    """The policy that `ViewPolicy.facts` described.

    Raises:
        ViewsError: if this version knows no such policy, or the parameters are not its own.
    """
    parameters = {name: value for name, value in facts.items() if name not in ("policy", "seed")}
    try:
        return POLICIES[facts["policy"]](**parameters)
    except (KeyError, TypeError):
        raise ViewsError(
            f"there are no views called {facts.get('policy')!r} with {parameters}: this version knows "
            f"{', '.join(POLICIES)}"
        ) from None
