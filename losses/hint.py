"""A student's intermediate features against a teacher's (FitNets, Romero et al. 2015)."""

from torch import Tensor

from demkd.losses.decoupling import working_precision


def hint_loss(adapted: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of features (B, ...), the student's being adapted to the teacher's shape: (B,)."""
    return (working_precision(adapted) - working_precision(teacher)).square().flatten(1).mean(1)
