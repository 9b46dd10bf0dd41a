"""Learning-rate schedules: the factor of the learning rate as a pure function of how much of a run is done."""

from collections.abc import Callable
from math import cos, pi


def _step(done: float) -> float:
    """x 0.1 after 62.5 %, 75 % and 87.5 %: epochs 150, 180 and 210 of the usual 240."""
    return 0.1 ** sum(done >= milestone for milestone in (0.625, 0.75, 0.875))


def _cosine(done: float) -> float:
    """Half a cosine, from 1 to 0 (Loshchilov and Hutter 2017)."""
    return (1 + cos(pi * done)) / 2


def _one_cycle(done: float) -> float:
    """Linear up over 30 %, linear down to 0: for short schedules (after Smith and Topin 2018)."""
    return min(done / 0.3, (1 - done) / 0.7)


# name -> function of the share of the run's steps that are done, in [0, 1): factor of the learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {"step": _step, "cosine": _cosine, "one-cycle": _one_cycle}
