"""Optimisers and schedules of the user's own: what cannot be stepped as these are is refused in a sentence."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, ReduceLROnPlateau

from demkd.pipeline.arguments import ArgumentError
from demkd.pipeline.optimizers import OwnTraining
from demkd.pipeline.recipe import TrainingOptions


def made_of(scheduler: "type[LRScheduler]", **options: object) -> str:
    """What a run calls the schedule."""
    own = OwnTraining(
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        scheduler=lambda optimizer: scheduler(optimizer, **options),
    )
    settings = TrainingOptions(data="x", network="x", optimizer="own")
    return own.make([nn.Parameter(torch.zeros(1))], settings)[2].schedule  # type: ignore[arg-type]


def test_a_schedule_that_wants_a_figure_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`scheduler` gives a ReduceLROnPlateau, which wants `metrics` of every"):
        made_of(ReduceLROnPlateau)


def test_schedules_that_count_epochs_are_taken() -> None:
    assert made_of(CosineAnnealingLR, T_max=3) == "own CosineAnnealingLR"
    assert made_of(LambdaLR, lr_lambda=lambda epoch: 0.9**epoch) == "own LambdaLR"
