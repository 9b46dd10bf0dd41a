"""CRLD's loss, in float64, against its formula written out sample by sample."""

import pytest
import torch
from torch import Tensor

from demkd.config import METHODS
from demkd.losses import TeacherWeights, fuse, logit_terms, loss_temperatures


def naive_crld(student: Tensor, teachers: list[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms of a batch whose second half is the first half's samples in their strong view."""
    half, within, across = len(student) // 2, [], []

    def kd(of_student: int, of_teachers: int) -> Tensor:
        log_s = torch.log_softmax(student[of_student] / 4, 0)
        each = [
            w[of_teachers] * (torch.softmax(t[of_teachers] / 4, 0) * (torch.log_softmax(t[of_teachers] / 4, 0) - log_s))
            for w, t in zip(weights, teachers, strict=True)
        ]
        return 16 * torch.stack(each).sum()

    def confidence(row: int) -> float:
        mean = [w[row] * torch.softmax(t[row], 0) for w, t in zip(weights, teachers, strict=True)]
        return float(torch.stack(mean).sum(0).max())

    for weak in range(half):
        strong = weak + half
        within.append((kd(weak, weak) + kd(strong, strong)) / 2 * (confidence(weak) >= 0.9))
        across.append((kd(strong, weak) + kd(weak, strong)) / 2 * (confidence(strong) >= 0.2))
    return torch.stack(within).mean(), torch.stack(across).mean()


@pytest.mark.parametrize("count", [1, 3])
def test_both_terms_are_their_formula_in_value_and_gradient(count: int) -> None:
    """With teachers just above and below the thresholds on the weak view, the strong one, both, and neither."""
    draw = torch.Generator().manual_seed(1)
    student, *teachers = (torch.randn(8, 7, generator=draw, dtype=torch.float64) for _ in range(1 + count))
    largest = torch.tensor([0.91, 0.91, 0.89, 0.89, 0.21, 0.19, 0.21, 0.19], dtype=torch.float64)  # rows 4 on: strong
    for teacher in teachers:
        teacher *= 0.1
        others = torch.cat([teacher[:, :2], teacher[:, 3:]], dim=1)
        teacher[:, 2] = torch.logsumexp(others, dim=1) + torch.logit(largest)
    weights = torch.softmax(torch.randn(count, 8, generator=draw, dtype=torch.float64), dim=0)
    method = METHODS["crld"]
    at_all = dict.fromkeys(loss_temperatures(method), teachers)
    labels = torch.zeros(8, dtype=torch.int64)
    targets = fuse(at_all, labels, method, TeacherWeights(logits=weights, hint=weights))
    student.requires_grad_()
    found = logit_terms(student, labels, targets, method)
    assert (found["kd_loss"] > 0).tolist() == [True, True, False, False] * 2
    assert (found["cross_view_kd_loss"] > 0).tolist() == [True, False, True, False] * 2
    for value, expected in zip(found.values(), naive_crld(student, teachers, weights), strict=True):
        torch.testing.assert_close(value.mean(), expected, rtol=0, atol=1e-12)
        gradients = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (value.mean(), expected)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
