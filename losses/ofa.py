"""OFA: cross-entropy with targets that are larger for the label (Hao et al., NeurIPS 2023).

    - sum_c t_c log p^S_c,   t = sum_k w_k (p^k to the power g, but (p^k_y + 1)^g - 1 for the label y)

There is no squared temperature. The targets are no probabilities, so no constant makes a divergence of the
cross-entropy. With g = 1 the targets are p^k.
"""

import torch
from torch import Tensor

from demkd.config import MethodConfig
from demkd.losses.base import Loss, TeacherLogits, check_class_numbers, mix, seen_teachers, working_precision
from demkd.losses.kd import KD, CoupledTargets


@torch.no_grad()
def _fuse(logits: TeacherLogits, labels: Tensor, weights: Tensor, method: MethodConfig) -> CoupledTargets:
    power, enhanced = method.target_power, []
    for z in seen_teachers(logits, method):
        check_class_numbers(z, labels)
        p = torch.softmax(working_precision(z) / method.temperature, dim=1)
        # expm1 and log1p: 1 + p_y would lose what there is of a small p_y
        of_label = torch.expm1(power * torch.log1p(p.gather(1, labels[:, None])))
        enhanced.append(p.pow(power).scatter_(1, labels[:, None], of_label))
    return CoupledTargets(soft_targets=mix(enhanced, weights), entropy=torch.zeros_like(enhanced[0][:, 0]))


# `kd_loss` has the squared temperature, which OFA's publication has not.
OFA = Loss(fuse=_fuse, terms=KD.terms, factors=lambda method: {"kd_loss": method.temperature**-2})
