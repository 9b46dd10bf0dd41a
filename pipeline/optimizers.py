"""Optimisers and learning-rate schedules, of this project's choice or the user's own."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from inspect import signature
from math import cos, pi

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from demkd.pipeline.arguments import ArgumentError
from demkd.pipeline.recipe import Training, TrainingOptions

Parameters = Iterable[nn.Parameter]


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnTraining:
    """What the user brings instead of a name.

    Attributes:
        optimizer: makes the optimiser of the parameters it is given.
        scheduler: makes the schedule of an optimiser; it is stepped once an epoch.
    """

    optimizer: Callable[[Parameters], Optimizer] | None = None
    scheduler: Callable[[Optimizer], LRScheduler] | None = None

    def make(
        self, parameters: list[nn.Parameter], settings: Training
    ) -> tuple[Optimizer, LRScheduler | None, Training]:
        """The optimiser and, if it is the user's own, the schedule; and the settings with what those are called.

        Raises:
            ArgumentError: if the schedule wants to be told something.
        """
        if self.optimizer:
            optimizer = self.optimizer(parameters)
            named = f"own {type(optimizer).__name__}"
            rate = float(optimizer.param_groups[0]["lr"])
            settings = replace(settings, optimizer=named, schedule="constant", learning_rate=rate)
        else:
            optimizer = OPTIMIZERS[settings.optimizer](parameters, settings)
        if self.scheduler is None:
            return optimizer, None, settings
        scheduler = self.scheduler(optimizer)
        _require_plain_steps(scheduler)
        return optimizer, scheduler, replace(settings, schedule=f"own {type(scheduler).__name__}")


def _require_plain_steps(scheduler: LRScheduler) -> None:
    wanted = [
        one.name
        for one in signature(scheduler.step).parameters.values()
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if wanted:
        raise ArgumentError(
            f"`scheduler` gives a {type(scheduler).__name__}, which wants `{wanted[0]}` of every step, and nothing is "
            "told to it: give one that counts epochs alone, such as CosineAnnealingLR or LambdaLR"
        )


def _sgd(parameters: list[nn.Parameter], options: TrainingOptions) -> Optimizer:
    return SGD(
        parameters,
        lr=options.learning_rate,
        momentum=options.momentum,
        nesterov=options.nesterov and options.momentum > 0,
        weight_decay=options.weight_decay,
        fused=_on_gpu(parameters) or None,
    )


def _adamw(parameters: list[nn.Parameter], options: TrainingOptions) -> Optimizer:
    on_gpu = _on_gpu(parameters)
    return AdamW(
        parameters,
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        fused=on_gpu or None,
        capturable=on_gpu,  # a recorded step counts on the GPU
    )


def _on_gpu(parameters: list[nn.Parameter]) -> bool:
    """Whether an update can be one kernel; on a CPU it gains nothing (measured)."""
    return all(parameter.is_cuda for parameter in parameters)


# name -> function of the parameters and the run's options.
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], TrainingOptions], Optimizer]] = {"sgd": _sgd, "adamw": _adamw}


def _constant(_done: float) -> float:
    return 1.0


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
    "constant": _constant,
}
