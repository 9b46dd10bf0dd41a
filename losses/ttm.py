"""TTM and WTTM: KL(p^k at T || p^S at temperature 1), no squared temperature (Zheng, Yang, ICLR 2024).

WTTM multiplies each sample's divergence by sum_c p^k(c)^(1/T), p^k at temperature 1. That is a constant of the teacher,
so it multiplies the teacher's weight, and K teachers are fused as for `kd`.
"""

import torch
from torch import Tensor

from demkd.config import MethodConfig
from demkd.losses.base import Loss, TeacherLogits, seen, seen_teachers, working_precision
from demkd.losses.kd import KD, CoupledTargets, fuse_coupled, kd_loss


def power_sums(logits: Tensor, tempered: Tensor, *, temperature: float) -> Tensor:
    """sum_c p_c^(1/T), p = softmax(z), z (B, C) as read at temperatures 1 and T: (B,), 1 (certain) to C^(1 - 1/T)."""
    whole = torch.logsumexp(working_precision(logits), dim=1)
    return (torch.logsumexp(working_precision(tempered) / temperature, dim=1) - whole / temperature).exp()


def _fuse_wttm(logits: TeacherLogits, _labels: Tensor, weights: Tensor, method: MethodConfig) -> CoupledTargets:
    temperature = method.temperature
    plain, tempered = seen_teachers(logits, method, temperature=1.0), seen_teachers(logits, method)
    sums = [power_sums(z, at, temperature=temperature) for z, at in zip(plain, tempered, strict=True)]
    return fuse_coupled(tempered, weights=weights * torch.stack(sums), temperature=temperature)


def _terms(z: Tensor, _labels: Tensor, targets: CoupledTargets, method: MethodConfig) -> dict[str, Tensor]:
    return {"kd_loss": kd_loss(seen(z, method), targets, temperature=1.0)}


TTM = Loss(fuse=KD.fuse, terms=_terms)
WTTM = Loss(fuse=_fuse_wttm, terms=_terms, temperatures=lambda method: (method.temperature, 1.0))
