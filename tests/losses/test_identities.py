"""The identities of the method (docs/methods.md), in float64, against formulas written out naively."""

import pytest
import torch
from torch import Tensor

from demkd.losses import (
    WEIGHT_FORMS,
    decoupled_kd_loss,
    entropy,
    fuse_coupled,
    fuse_decoupled,
    kd_loss,
    label_loss,
    mask_wrong_teachers,
    uniform_weights,
    wrong_above_uniform,
)
from demkd.losses.weights import entropy_weights

K, B, C, T = 3, 16, 10, 4.0


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def draw(generator: torch.Generator, *shape: int, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def draw_labels(generator: torch.Generator) -> Tensor:
    return torch.randint(0, C, (B,), generator=generator)


def test_decoupled_parts_add_up_to_the_coupled_divergence(generator: torch.Generator) -> None:
    """T^2 KL(p^T || p^S) = T^2 [TCKD + (1 - p_y^T) NCKD], per sample."""
    teacher, student, labels = draw(generator, B, C), draw(generator, B, C), draw_labels(generator)
    one = torch.ones(1, B, dtype=torch.float64)
    decoupled = fuse_decoupled([teacher], labels, weights=one, temperature=T)
    tckd, nckd = decoupled_kd_loss(student, labels, decoupled, temperature=T)
    coupled = kd_loss(student, fuse_coupled([teacher], weights=one, temperature=T), temperature=T)
    p_label = torch.softmax(teacher / T, dim=1)[torch.arange(B), labels]
    torch.testing.assert_close(coupled, tckd + (1 - p_label) * nckd, rtol=0, atol=1e-12)


@pytest.mark.parametrize("classes", [2, C])
def test_the_gradient_written_by_hand_is_the_losses(classes: int, generator: torch.Generator) -> None:
    """Numerically, for targets that do not sum to 1 too, and another weight on every sample's losses."""
    teachers, student = [draw(generator, B, classes) for _ in range(K)], draw(generator, B, classes).requires_grad_()
    labels = torch.randint(0, classes, (B,), generator=generator)
    targets = fuse_decoupled(teachers, labels, weights=draw(generator, K, B).abs(), temperature=T)
    assert torch.autograd.gradcheck(
        lambda z: torch.stack(decoupled_kd_loss(z, labels, targets, temperature=T)), student, atol=1e-8
    )


def test_targets_are_constants_and_impossible_classes_count_nothing(generator: torch.Generator) -> None:
    """Teachers that still learn pass no gradient on; a logit of -inf is a probability of 0, and 0 log 0 is 0."""
    teacher, student, labels = draw(generator, B, C), draw(generator, B, C), torch.zeros(B, dtype=torch.int64)
    one = torch.ones(1, B, dtype=torch.float64)
    fused = fuse_decoupled([teacher.requires_grad_()], labels, weights=one, temperature=T)
    assert not torch.stack(decoupled_kd_loss(student, labels, fused, temperature=T)).requires_grad
    assert not fuse_coupled([teacher], weights=one, temperature=T).entropy.requires_grad
    possible, impossible = teacher.detach()[:, :-1], teacher.detach().clone()
    impossible[:, -1] = -torch.inf
    torch.testing.assert_close(entropy(impossible), entropy(possible), rtol=0, atol=1e-12)
    pair = [fuse_decoupled([z], labels, weights=one, temperature=T) for z in (impossible, possible)]
    torch.testing.assert_close(pair[0].others_entropy, pair[1].others_entropy, rtol=0, atol=1e-12)


def test_soft_labels_and_unknown_forms_are_refused(generator: torch.Generator) -> None:
    logits, soft = draw(generator, B, C), torch.softmax(draw(generator, B, C), dim=1)
    one = torch.ones(1, B, dtype=torch.float64)
    for attempt in (
        lambda: label_loss(logits, soft),
        lambda: fuse_decoupled([logits], soft, weights=one, temperature=T),
        lambda: label_loss(logits, draw_labels(generator)[:-1]),
    ):
        with pytest.raises(ValueError, match=r"labels must be class numbers, int64 and \(16,\) for logits"):
            attempt()
    with pytest.raises(ValueError, match="no weight form 'sofmax': choose one of softmax, one_minus_softmax"):
        entropy_weights(torch.rand(K, B), form="sofmax")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_have_the_logits_precision_and_losses_float32(dtype: torch.dtype, generator: torch.Generator) -> None:
    labels, one = draw_labels(generator), torch.ones(1, B)
    targets = fuse_decoupled([draw(generator, B, C).float()], labels, weights=one, temperature=T)
    student = draw(generator, B, C).to(dtype).requires_grad_()
    exact = student.detach().float().requires_grad_()
    tckd, nckd = decoupled_kd_loss(student, labels, targets, temperature=T)
    assert tckd.dtype == nckd.dtype == torch.float32
    (gradient,) = torch.autograd.grad(nckd.sum(), student)  # and nothing asked of the other
    (expected,) = torch.autograd.grad(decoupled_kd_loss(exact, labels, targets, temperature=T)[1].sum(), exact)
    assert torch.equal(gradient, expected.to(dtype))


@pytest.mark.parametrize("form", WEIGHT_FORMS)
def test_identical_teachers_are_one_teacher(form: str, generator: torch.Generator) -> None:
    """K copies give the loss of one, whatever the form: equal entropies weigh 1 / K."""
    teacher, student, labels = draw(generator, B, C), draw(generator, B, C), draw_labels(generator)
    weights = entropy_weights(entropy(teacher).expand(K, B), form=form)
    torch.testing.assert_close(weights, torch.full((K, B), 1 / K, dtype=torch.float64), rtol=0, atol=1e-12)
    one = torch.ones(1, B, dtype=torch.float64)
    many = fuse_decoupled([teacher] * K, labels, weights=weights, temperature=T)
    single = fuse_decoupled([teacher], labels, weights=one, temperature=T)
    for a, b in zip(
        decoupled_kd_loss(student, labels, many, temperature=T),
        decoupled_kd_loss(student, labels, single, temperature=T),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", WEIGHT_FORMS)
def test_weights_sum_to_one_and_a_surer_teacher_weighs_more(form: str, generator: torch.Generator) -> None:
    uncertainty = draw(generator, K, B).abs()
    weights = entropy_weights(uncertainty, form=form)
    torch.testing.assert_close(weights.sum(0), torch.ones(B, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (weights >= 0).all()
    assert torch.equal(weights.argsort(0), uncertainty.argsort(0, descending=True))
    assert torch.equal(entropy_weights(torch.rand(1, B), form=form), torch.ones(1, B)), "1 / (K - 1) is not computed"
    torch.testing.assert_close(entropy_weights(torch.zeros(K, B), form=form), torch.full((K, B), 1 / K))  # no 0 / 0


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(generator: torch.Generator) -> None:
    teacher, labels = draw(generator, B, C), draw_labels(generator)
    one = torch.ones(1, B, dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    targets = fuse_decoupled([teacher], labels, weights=one, temperature=T)
    tckd, nckd = decoupled_kd_loss(student, labels, targets, temperature=T)
    (gradient,) = torch.autograd.grad((tckd + nckd).sum(), student)
    for value in (tckd, nckd, gradient):
        torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-12)


@pytest.mark.parametrize("over_confident", ["teacher", "student", "both"])
def test_over_confident_logits_stay_finite(over_confident: str, generator: torch.Generator) -> None:
    """800 on the label and 0 elsewhere, in float32: loss and gradient are finite."""
    labels = draw_labels(generator)
    extreme = torch.zeros(B, C).scatter_(1, labels[:, None], 800.0)
    ordinary = draw(generator, B, C).float()
    teacher = ordinary if over_confident == "student" else extreme
    student = (ordinary if over_confident == "teacher" else extreme).clone().requires_grad_()
    one = torch.ones(1, B)
    targets = fuse_decoupled([teacher], labels, weights=one, temperature=1.0)
    tckd, nckd = decoupled_kd_loss(student, labels, targets, temperature=1.0)
    (gradient,) = torch.autograd.grad((tckd + nckd).sum(), student)
    assert torch.isfinite(tckd).all()
    assert torch.isfinite(nckd).all()
    assert torch.isfinite(gradient).all()
    for measure in (entropy(teacher), targets.binary_entropy, targets.others_entropy):
        assert torch.isfinite(measure).all()


def test_two_classes_have_no_other_classes_to_learn(generator: torch.Generator) -> None:
    """C = 2: NCKD is identically 0."""
    teacher, student = draw(generator, B, 2), draw(generator, B, 2)
    labels = torch.randint(0, 2, (B,), generator=generator)
    one = torch.ones(1, B, dtype=torch.float64)
    targets = fuse_decoupled([teacher], labels, weights=one, temperature=T)
    _, nckd = decoupled_kd_loss(student, labels, targets, temperature=T)
    torch.testing.assert_close(nckd, torch.zeros_like(nckd), rtol=0, atol=1e-12)


def test_entropies_are_those_of_the_definition(generator: torch.Generator) -> None:
    """-sum p log p of the whole, of b and of q; the chain rule ties them together."""
    logits, labels = draw(generator, B, C), draw_labels(generator)
    p = torch.softmax(logits, dim=1)
    torch.testing.assert_close(entropy(logits), -(p * p.log()).sum(1), rtol=0, atol=1e-12)
    rest = 1 - p[torch.arange(B), labels]
    of_parts = fuse_decoupled([logits], labels, weights=torch.ones(1, B, dtype=torch.float64), temperature=1.0)
    chained = of_parts.binary_entropy + rest * of_parts.others_entropy
    torch.testing.assert_close(entropy(logits), chained, rtol=0, atol=1e-12)


def test_entropies_crowd_at_distillations_temperature() -> None:
    """Margins of 4 to 8 over 99 equal classes spread the entropy by 3 nats at T = 1, and by less than 0.1 at T = 4."""
    logits = torch.zeros(2, 100, dtype=torch.float64)
    logits[:, 0] = torch.tensor([4.0, 8.0])
    assert entropy(logits).diff().abs().item() > 3
    assert entropy(logits, temperature=4.0).diff().abs().item() < 0.1


def test_wrong_teachers_can_be_masked() -> None:
    """w = 0 where argmax is not the label, renormalised; all wrong: uniform."""
    weights = torch.tensor([[0.5, 0.2], [0.3, 0.3], [0.2, 0.5]])
    predictions, labels = torch.tensor([[1, 0], [1, 0], [2, 0]]), torch.tensor([1, 9])
    masked = mask_wrong_teachers(weights, predictions, labels)
    torch.testing.assert_close(masked, torch.tensor([[0.625, 1 / 3], [0.375, 1 / 3], [0.0, 1 / 3]]))


def test_uniform_weights_trust_no_wrong_teacher_more_than_others() -> None:
    weights = uniform_weights(torch.zeros(K, B))
    assert not wrong_above_uniform(
        weights, torch.zeros(K, B, dtype=torch.int64), torch.ones(B, dtype=torch.int64)
    ).any()


def test_entropy_trusts_a_certain_wrong_teacher_and_cross_entropy_does_not() -> None:
    """Wrong at 0.99 beside right at 0.60, C = 100: weights 0.92 and 0.0002 (docs/methods.md)."""
    wrong = torch.full((1, 100), 0.01 / 99, dtype=torch.float64)
    wrong[0, 1] = 0.99
    right = torch.full((1, 100), 0.40 / 99, dtype=torch.float64)
    right[0, 0] = 0.60
    logits, label = [wrong.log(), right.log()], torch.tensor([0])
    form = "one_minus_softmax"
    by_entropy = entropy_weights(torch.stack([entropy(z) for z in logits]), form=form)
    by_label = entropy_weights(
        torch.stack([torch.nn.functional.cross_entropy(z, label, reduction="none") for z in logits]), form=form
    )
    assert by_entropy[0, 0].item() == pytest.approx(0.92, abs=0.005)
    assert by_label[0, 0].item() == pytest.approx(0.0002, abs=0.00005)
