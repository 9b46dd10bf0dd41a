"""The user's own optimizers and schedules: those that need a figure in every step are refused in a sentence."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, ReduceLROnPlateau

from demkd.config import ConfigError, TrainConfig
from demkd.pipeline.optim import make_optimizer


def name_of(scheduler: "type[LRScheduler]", **options: object) -> object:
    """What a run calls the schedule."""
    _, _, names = make_optimizer(
        [nn.Parameter(torch.zeros(1))],
        TrainConfig(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lambda optimizer: scheduler(optimizer, **options),
    )
    return names["schedule"]


def test_a_schedule_that_needs_a_figure_is_refused() -> None:
    with pytest.raises(ConfigError, match="`scheduler` gives a ReduceLROnPlateau, whose `step` needs `metrics`"):
        name_of(ReduceLROnPlateau)  # type: ignore[arg-type]


def test_schedules_that_count_epochs_are_taken() -> None:
    assert name_of(CosineAnnealingLR, T_max=3) == "own CosineAnnealingLR"
    assert name_of(LambdaLR, lr_lambda=lambda epoch: 0.9**epoch) == "own LambdaLR"
