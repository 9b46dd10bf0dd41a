"""Logit standardisation: a student need not match how large its teacher's logits are (Sun et al., CVPR 2024).

Every logit vector becomes (z - mean) / (deviation + 1e-7) over its classes, before the softmax at a temperature; the
deviation is the sample's (C - 1), as in the authors' code. A modifier of any loss of softmaxes.
"""

import torch
from torch import Tensor

from demkd.losses.decoupling import working_precision

_EPSILON = 1e-7


def standardised(logits: Tensor) -> Tensor:
    """Logits (..., C) of mean 0 and deviation 1.

    A logit of -inf stays one, and the others are standardised among themselves. Equal logits have no direction: they
    become 0, and carry no gradient, where the formula's would be ten million times as large as any other.
    """
    z = working_precision(logits)
    possible = z > -torch.inf
    count = possible.sum(-1, keepdim=True)
    # Less the largest first: equal logits are exactly 0 then, however large; a rounded mean would leave a rest.
    shifted = torch.where(possible, z - z.detach().amax(-1, keepdim=True), 0.0)
    centred = torch.where(possible, shifted - shifted.sum(-1, keepdim=True) / count, 0.0)
    variance = centred.square().sum(-1, keepdim=True) / (count - 1).clamp_min(1)
    differ = variance > 0
    deviation = torch.where(differ, variance, 1.0).sqrt()
    scaled = torch.where(differ, centred, 0.0) / (deviation + _EPSILON)
    return torch.where(possible, scaled, -torch.inf)
