"""Which of several processes this one is, as torchrun tells it: RANK, WORLD_SIZE and LOCAL_RANK in the environment."""

import os
from dataclasses import dataclass

from demkd.errors import UserError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


class LaunchError(UserError, ValueError):
    """An environment that says half of what torchrun says, or nonsense."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Process `rank` of `world_size`, and of those on this machine the `local_rank`-th; all from 0."""

    rank: int
    world_size: int
    local_rank: int


def launch() -> Launch | None:
    """What torchrun says of this process; None if it was started alone.

    Raises:
        LaunchError: if the environment has only some of it, or no such numbers.
    """
    given = {name: os.environ[name] for name in _NAMES if name in os.environ}
    if not given:
        return None
    said = ", ".join(f"{name}={value!r}" for name, value in given.items())
    for name in _NAMES[:2]:
        if name not in given:
            raise LaunchError(
                f"the environment has {said} and no {name}: start with torchrun, which sets all, or unset it"
            )
    try:
        rank, world_size, local_rank = (int(given.get(name, "0")) for name in _NAMES)
    except ValueError:
        rank, world_size, local_rank = -1, 0, 0
    if not (0 <= rank < world_size and local_rank >= 0):
        raise LaunchError(
            f"the environment has {said}, which is no process of several: start with torchrun, or unset them"
        )
    return Launch(rank=rank, world_size=world_size, local_rank=local_rank)


def is_silent() -> bool:
    """Whether another process speaks for this one."""
    launched = launch()
    return launched is not None and launched.rank > 0
