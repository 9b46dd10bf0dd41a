"""`DistillationLoss` is its terms times their factors, and refuses targets of another method."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import demkd
from demkd.config import METHODS, ConfigError
from demkd.losses import PartnerLabels, Targets, fuse, loss_temperatures, uniform_weights
from demkd.losses.weights import TeacherWeights

K, B, C = 3, 8, 5


def batch_of(name: str, *, epoch: int = 0, partner: PartnerLabels | None = None, **options: Any) -> Any:
    """A batch of random teachers and labels; the student's logits and features beside it."""
    method = replace(METHODS[name], **options)
    draw = torch.Generator().manual_seed(0)
    teachers = [torch.randn(B, C, generator=draw) for _ in range(K)]
    labels, weights = torch.randint(0, C, (B,), generator=draw), uniform_weights(torch.zeros(K, B))
    both = TeacherWeights(logits=weights, hint=weights)
    soft = fuse(dict.fromkeys(loss_temperatures(method), teachers), labels, method, both) if name != "ce" else None
    hints = [torch.randn(B, 4, generator=draw) for _ in range(K)] if method.needs_features else []
    return SimpleNamespace(
        labels=labels,
        partner=partner,
        targets=Targets(soft=soft, hints=hints, hint_weights=weights, method=method if soft else None),
        epoch=epoch,
        logits=torch.randn(B, C, generator=draw),
        features=[torch.randn(B, 4, generator=draw) for _ in hints],
    )


@pytest.mark.parametrize("name", ["ce", "kd", "dist", "mlkd", "de-mkd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_loss_is_its_terms_times_their_factors(name: str, dtype: torch.dtype) -> None:
    """In float32, or float64; K is counted in the batch, and the first of 24 epochs has half of the warm-up of two."""
    batch = batch_of(name, warmup=2 / 24)
    criterion = demkd.DistillationLoss(replace(METHODS[name], warmup=2 / 24), epochs=24)
    logits = batch.logits.to(dtype).requires_grad_()
    loss = criterion(logits, batch, batch.features)
    method = criterion.method
    half = 0.5 * {"dist": 2 * C / 25, "mlkd": 9 * (C / 100) ** 2}.get(name, 1.0)  # fewer classes than at full weight
    factors = {"label_loss": 1.0, "kd_loss": half, "hint_loss": 50 / K, "inter_class_loss": half}
    factors |= {"intra_class_loss": half, "target_class_kd": half, "non_target_class_kd": 8 * half}
    factors |= {"sample_gram_loss": half / 2, "class_gram_loss": half / 2}
    terms = criterion.terms(logits, batch.labels, batch.targets, batch.features)
    expected = sum(factors[term] * value for term, value in zip(criterion.names, terms, strict=True))
    torch.testing.assert_close(loss, expected)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    first, last = (criterion.factors(epoch, teachers=K, classes=C).tolist() for epoch in (1, 23))
    assert first == last
    assert criterion.names[0] == "label_loss"
    assert ("hint_loss" in criterion.names) == method.needs_features


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_is_float32_under_autocast_too(name: str, dtype: torch.dtype) -> None:
    batch = batch_of(name)
    criterion, outside = demkd.DistillationLoss(name, epochs=24), batch.logits.clone().requires_grad_()
    inside = outside.detach().clone().requires_grad_()
    expected = criterion(outside, batch, batch.features)
    with torch.autocast("cpu", dtype=dtype):
        loss = criterion(inside, batch, batch.features)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, z) for x, z in ((loss, inside), (expected, outside))))


def test_labels_of_mixed_images_count_by_their_shares() -> None:
    partner = PartnerLabels(labels=torch.arange(B) % C, share=torch.linspace(0.5, 1, B))
    batch = batch_of("ce", partner=partner)
    loss = demkd.DistillationLoss("ce", epochs=1, label_smoothing=0.1)(batch.logits, batch)
    one_hot = partner.share[:, None] * F.one_hot(batch.labels, C)
    one_hot = one_hot + (1 - partner.share)[:, None] * F.one_hot(partner.labels, C)
    torch.testing.assert_close(loss, F.cross_entropy(batch.logits, one_hot, label_smoothing=0.1))


@pytest.mark.parametrize(
    ("given", "in_loss", "why"),
    [
        ("kd", {"method": "dkd"}, "`loss` is 'kd' in the targets, 'dkd' in the loss"),
        ("kd", {"method": "kd", "temperature": 2.0}, "`temperature` is 4.0 in the targets, 2.0 in the loss"),
        ("de-mkd", {"method": "de-mkd-logits"}, "`needs_features` is True in the targets, False in the loss"),
        ("ce", {"method": "kd"}, "the method kd needs soft targets"),
        ("de-mkd", {"method": "de-mkd"}, "give features for 3 teachers, not 0"),
    ],
)
def test_targets_of_another_method_are_refused(given: str, in_loss: dict[str, Any], why: str) -> None:
    batch = batch_of(given)
    with pytest.raises(ValueError, match=why):
        demkd.DistillationLoss(epochs=1, **in_loss)(batch.logits, batch)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "ce"])
def test_another_number_of_classes_is_refused(name: str) -> None:
    batch = batch_of(name)
    criterion = demkd.DistillationLoss(name, epochs=1)
    with pytest.raises(ValueError, match="4 logits, but 5 classes"):
        criterion(batch.logits[:, 1:], batch, batch.features)


def test_a_method_is_a_name_with_options_or_complete() -> None:
    assert demkd.DistillationLoss("kd", epochs=1, temperature=2.0).method == replace(METHODS["kd"], temperature=2.0)
    with pytest.raises(ConfigError, match="`method` is a MethodConfig already: change temperature there"):
        demkd.DistillationLoss(METHODS["kd"], epochs=1, temperature=2.0)
