"""The student's intermediate features against a teacher's (FitNets, Romero et al. 2015)."""

from torch import Tensor

from demkd.losses.base import working_precision


def hint_loss(adapted: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features (B, ...), the student's adapted to the teacher's shape: (B,)."""
    return (working_precision(adapted) - working_precision(teacher)).square().flatten(1).mean(1)
