"""The ranking loss, in float64, against its formula written out pair by pair."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from demkd.config import METHODS
from demkd.losses import TeacherWeights, fuse, logit_terms, rank
from demkd.losses.rank import kendall, pair_distances


def z_scored(row: Tensor) -> Tensor:
    return (row - row.mean()) / row.std()


def naive_kendall(s: Tensor, t: Tensor) -> Tensor:
    """Of two rows of standardized logits."""
    pairs = list(combinations(range(len(s)), 2))
    agreement = torch.zeros((), dtype=s.dtype)
    for i, j in pairs:
        agreement = agreement + torch.tanh(0.5 * (t[i] - t[j]) * (s[i] - s[j]) / 2)
    return agreement / len(pairs)


def naive_terms(student: Tensor, teachers: list[Tensor], weights: Tensor) -> dict[str, Tensor]:
    """Pearson's over the classes teacher by teacher; the others against the weighted means."""
    samples, classes = range(len(student)), range(student.shape[1])

    def pearson(x: Tensor, y: Tensor) -> Tensor:
        return torch.corrcoef(torch.stack((x, y)))[0, 1]

    mean = sum(w[:, None] * t for w, t in zip(weights, teachers, strict=True))
    inter, intra, inter_rank, intra_rank = [], [], [], []
    for i in samples:
        each = [(w[i], t[i]) for w, t in zip(weights, teachers, strict=True)]
        inter.append(1 - torch.stack([w * pearson(student[i], t) for w, t in each]).sum())
        inter_rank.append(
            1 - naive_kendall(z_scored(student[i]), torch.stack([w * z_scored(t) for w, t in each]).sum(0))
        )
    for c in classes:
        s, t = student[:, c], mean[:, c]
        intra.append(1 - pearson(s, t))
        intra_rank.append(1 - naive_kendall(z_scored(s), z_scored(t)))
    return {
        "inter_class_loss": torch.stack(inter).mean(),
        "intra_class_loss": torch.stack(intra).mean(),
        "inter_class_rank_loss": torch.stack(inter_rank).mean(),
        "intra_class_rank_loss": torch.stack(intra_rank).mean(),
    }


@pytest.mark.parametrize("teachers", [1, 3])
@pytest.mark.parametrize(("samples", "classes"), [(4, 7), (5, 6), (2, 3), (3, 2)])
def test_every_term_is_its_formula_in_value_and_gradient(teachers: int, samples: int, classes: int) -> None:
    """Even and odd numbers of samples and classes; with two classes, those over the classes have no gradient."""
    draw = torch.Generator().manual_seed(samples)
    student, *others = (
        2 * torch.randn(samples, classes, generator=draw, dtype=torch.float64) for _ in range(1 + teachers)
    )
    weights = torch.softmax(torch.randn(teachers, samples, generator=draw, dtype=torch.float64), dim=0)
    labels, method = torch.zeros(samples, dtype=torch.int64), METHODS["rank"]
    targets = fuse({method.temperature: others}, labels, method, TeacherWeights(logits=weights, hint=weights))
    student.requires_grad_()
    found = logit_terms(student, labels, targets, method)
    for name, expected in naive_terms(student, others, weights).items():
        value = found[name].mean()
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
        gradients = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (value, expected)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
        if classes == 2 and name.startswith("inter"):
            torch.testing.assert_close(gradients[0], torch.zeros_like(student), rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [9, 12, 30])
def test_too_many_pairs_are_sampled_evenly(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Different pairs, every element in as many as any other; the loss is their mean, and so is its gradient."""
    assert [sum(map(len, pair_distances(64, classes))) for classes in (100, 1000, 100_000)] == [99, 2 * 65, 2]
    monkeypatch.setattr(rank, "_MOST_PAIRS", 2 * 3 * length)  # three distances in each of two rows
    monkeypatch.setattr(rank, "_BLOCK", 1)  # row by row
    distances = [d for part in pair_distances(2, length) for d in part]
    pairs = {frozenset((i, (i + d) % length)) for d in distances for i in range(length)}
    assert len(pairs) == 3 * length
    assert all(sum(i in pair for pair in pairs) == 6 for i in range(length))
    assert 1 in distances
    s, t = torch.randn(2, 2, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s.requires_grad_()
    expected = torch.stack(
        [
            torch.stack([torch.tanh((length - 1) / 4 * (x[i] - x[j]) * (y[i] - y[j])) for i, j in pairs]).mean()
            for x, y in zip(s, t, strict=True)
        ]
    )
    torch.testing.assert_close(kendall(s, t), expected, rtol=0, atol=1e-12)
    weighted = [torch.autograd.grad(value @ t[:, 0], s)[0] for value in (kendall(s, t), expected)]
    torch.testing.assert_close(*weighted, rtol=0, atol=1e-12)


def test_a_sample_alone_has_no_pairs_and_no_gradient() -> None:
    alone = torch.randn(1, 1, dtype=torch.float64, requires_grad=True)
    value = kendall(alone, torch.ones(1, 1, dtype=torch.float64))
    assert value.item() == 0
    assert torch.autograd.grad(value.sum(), alone)[0].item() == 0
