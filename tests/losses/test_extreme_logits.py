"""Every loss is finite and right for logits of any size: value and gradient in float32 against float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from demkd.config import METHODS, MethodConfig
from demkd.losses import UNCERTAINTIES, TeacherWeights, fuse, logit_terms, loss_temperatures, uniform_weights
from demkd.losses.base import standardized

TOLD = {name: method for name, method in METHODS.items() if method.needs_teachers and method.hint_weight == 0}
B, K = 8, 2


def drawn(classes: int, *, scale: float = 3.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(B, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def huge(classes: int, *, seed: int = 0) -> Tensor:
    """10,000 on one class, -10,000 on another, and ordinary logits on the others."""
    logits = drawn(classes, seed=seed)
    rows = torch.arange(B)
    logits[rows, (rows + seed) % classes] = 1e4
    logits[rows, (rows + seed + 1) % classes] = -1e4
    return logits


def impossible(classes: int, *, seed: int = 0) -> Tensor:
    """A class that cannot be, and is nobody's label."""
    logits = drawn(classes, seed=seed)
    logits[:, classes - 1] = -torch.inf
    return logits


def equal(classes: int, *, seed: int = 0) -> Tensor:
    return torch.full((B, classes), 1e4 / 3 + seed, dtype=torch.float64)


def rounded(classes: int, *, seed: int = 0) -> Tensor:
    return drawn(classes, seed=seed).half().double()


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], int]] = {
    "both huge": (huge, huge, 10),
    "a huge teacher": (huge, drawn, 10),
    "a huge student": (drawn, huge, 10),
    "an impossible class": (impossible, drawn, 10),
    "equal logits of the teacher": (equal, drawn, 10),
    "equal logits of the student": (drawn, equal, 10),
    "rounded to float16": (rounded, rounded, 100),
    "two classes": (drawn, drawn, 2),
    "a hundred thousand classes": (drawn, drawn, 100_000),
}


def loss_and_gradient(
    method: MethodConfig, teachers: list[Tensor], student: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    z = student.clone().requires_grad_()
    one = uniform_weights(torch.zeros(K, B, dtype=student.dtype))
    at_all = dict.fromkeys(loss_temperatures(method), teachers)
    targets = fuse(at_all, labels, method, TeacherWeights(logits=one, hint=one))
    total = torch.stack([term.mean() for term in logit_terms(z, labels, targets, method).values()]).sum()
    return total.detach(), torch.autograd.grad(total, z)[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TOLD)
def test_float32_gives_what_float64_does(name: str, case: str) -> None:
    """Relative to the largest gradient; two standardised classes have next to none, which is rounding in float32."""
    of_teacher, of_student, classes = CASES[case]
    method = TOLD[name]
    teachers, student = [of_teacher(classes, seed=k) for k in range(K)], of_student(classes, seed=7)
    labels = torch.arange(B) % max(classes - 1, 1)
    exact_loss, exact = loss_and_gradient(method, teachers, student, labels)
    loss, gradient = loss_and_gradient(method, [z.float() for z in teachers], student.float(), labels)
    for value in (loss, gradient, exact_loss, exact):
        assert torch.isfinite(value).all()
    torch.testing.assert_close(loss.double(), exact_loss, rtol=2e-4, atol=2e-5)
    scale = exact.abs().max().clamp_min(1e-4 if classes == 2 else 1e-12)
    torch.testing.assert_close(gradient.double() / scale, exact / scale, rtol=0, atol=2e-3)


@pytest.mark.parametrize("source", UNCERTAINTIES)
@pytest.mark.parametrize("case", CASES)
def test_uncertainties_are_finite_and_right(source: str, case: str) -> None:
    make, _, classes = CASES[case]
    teachers, labels = [make(classes, seed=k) for k in range(3)], torch.arange(B) % max(classes - 1, 1)
    exact = UNCERTAINTIES[source](teachers, labels, 1.0)
    found = UNCERTAINTIES[source]([z.float() for z in teachers], labels, 1.0)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def test_teachers_who_find_each_others_answers_impossible_are_uncertain_and_no_infinity() -> None:
    sure = torch.full((3, 1, 3), -torch.inf).diagonal_scatter(torch.zeros(1, 3), dim1=0, dim2=2)
    assert torch.equal(UNCERTAINTIES["agreement"](list(sure), torch.zeros(1), 1.0), torch.full((3, 1), 1e6))


def test_equal_logits_are_standardised_to_0_and_pass_no_gradient() -> None:
    """Also where their mean would be rounded; the formula's gradient would be ten million times as large as others."""
    logits = torch.full((2, 7), 1e4 / 3).requires_grad_()
    found = standardized(logits)
    assert torch.equal(found, torch.zeros(2, 7))
    (gradient,) = torch.autograd.grad((found * torch.randn(2, 7)).sum(), logits)
    assert torch.equal(gradient, torch.zeros(2, 7))


def test_a_student_of_equal_logits_takes_no_step_of_a_correlations_size() -> None:
    """A class that all samples give the same probability correlates with nothing, and has no gradient of 1 / 0."""
    student = torch.zeros(B, 10, dtype=torch.float64)
    _, gradient = loss_and_gradient(METHODS["dist"], [drawn(10)] * K, student, torch.arange(B))
    assert torch.equal(gradient, torch.zeros(B, 10).double())


def test_an_impossible_class_stays_impossible_and_moves_no_other() -> None:
    possible = drawn(6)
    with_one = torch.cat((possible, torch.full((B, 1), -torch.inf, dtype=torch.float64)), dim=1)
    found = standardized(with_one)
    torch.testing.assert_close(found[:, :6], standardized(possible), rtol=0, atol=1e-12)
    assert (found[:, 6] == -torch.inf).all()


def test_standardised_logits_forget_size_and_place() -> None:
    z = drawn(50)
    torch.testing.assert_close(standardized(7 * z + 3), standardized(z), rtol=0, atol=1e-6)
    torch.testing.assert_close(standardized(z).std(1), torch.ones(B, dtype=torch.float64), rtol=0, atol=1e-6)


def test_disagreement_is_its_definition() -> None:
    """-log of the mean chance that another teacher's answer is the same; a single teacher has nobody to differ from."""
    teachers = [drawn(6, seed=k) for k in range(3)]
    p = [torch.softmax(z, 1) for z in teachers]
    pairs = [[(p[k] * p[j]).sum(1) for j in range(3) if j != k] for k in range(3)]
    expected = torch.stack([-torch.stack(others).mean(0).log() for others in pairs])
    torch.testing.assert_close(UNCERTAINTIES["agreement"](teachers, torch.zeros(B), 1.0), expected, rtol=0, atol=1e-12)
    assert torch.equal(UNCERTAINTIES["agreement"](teachers[:1], torch.zeros(B), 1.0), torch.zeros(1, B).double())


def test_a_confidently_wrong_teacher_disagrees_and_is_not_unsure() -> None:
    """Two who say 0 and one who is as sure of 1: entropy trusts all alike, agreement the two."""
    sure = torch.zeros(3, 1, 10)
    sure[:2, 0, 0] = sure[2, 0, 1] = 9.0
    entropy, disagreement = (
        UNCERTAINTIES[name](list(sure), torch.zeros(1), 1.0)[:, 0] for name in ("entropy", "agreement")
    )
    assert entropy[2] == pytest.approx(entropy[0].item())
    assert disagreement[2] > disagreement[0] + 3
