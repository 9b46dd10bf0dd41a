"""Optimizers and learning-rate schedules: the project's, or the user's own."""

from collections.abc import Callable, Iterable
from inspect import signature
from math import cos, pi
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from demkd.config import ConfigError, TrainConfig

Parameters = Iterable[nn.Parameter]
OptimizerLike = Callable[[Parameters], Optimizer]
SchedulerLike = Callable[[Optimizer], LRScheduler]


def make_optimizer(
    parameters: list[nn.Parameter],
    config: TrainConfig,
    optimizer: OptimizerLike | None = None,
    scheduler: SchedulerLike | None = None,
) -> tuple[Optimizer, LRScheduler | None, dict[str, Any]]:
    """The optimizer, the user's scheduler if there is one, and what the run's recipe calls them.

    The user's optimizer has a learning rate of its own; the user's scheduler is stepped once an epoch.
    """
    names: dict[str, Any] = {}
    if optimizer:
        made = optimizer(parameters)
        rate = float(made.param_groups[0]["lr"])
        names |= {"optimizer": f"own {type(made).__name__}", "schedule": "constant", "learning_rate": rate}
    else:
        made = OPTIMIZERS[config.optimizer](parameters, config)
    if scheduler is None:
        return made, None, names
    schedule = scheduler(made)
    wanted = [
        argument.name
        for argument in signature(schedule.step).parameters.values()
        if argument.default is argument.empty and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
    ]
    if wanted:
        raise ConfigError(
            f"`scheduler` gives a {type(schedule).__name__}, whose `step` needs `{wanted[0]}`: give one that counts "
            "epochs alone, such as CosineAnnealingLR or LambdaLR"
        )
    return made, schedule, {**names, "schedule": f"own {type(schedule).__name__}"}


def _sgd(parameters: list[nn.Parameter], config: TrainConfig) -> Optimizer:
    return SGD(
        parameters,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=_on_gpu(parameters) or None,
    )


def _adamw(parameters: list[nn.Parameter], config: TrainConfig) -> Optimizer:
    on_gpu = _on_gpu(parameters)
    return AdamW(
        parameters,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=on_gpu or None,
        capturable=on_gpu,  # for CUDA graphs
    )


def _on_gpu(parameters: list[nn.Parameter]) -> bool:
    """Whether an update can be one kernel; on a CPU it gains nothing (measured)."""
    return all(parameter.is_cuda for parameter in parameters)


# name -> function of the parameters and the run's config.
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], TrainConfig], Optimizer]] = {"sgd": _sgd, "adamw": _adamw}


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
SCHEDULES: dict[str, Callable[[float], float]] = {
    "step": _step,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
    "constant": lambda _done: 1.0,
}
