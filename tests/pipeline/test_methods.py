"""Every preset is its closed form, written out teacher by teacher in float64; so are the options of the weights."""

import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from demkd.losses import UNCERTAINTIES, WEIGHT_FORMS, CoupledTargets
from demkd.pipeline.logit_losses import LOSSES, LogitLoss, TeacherLogits, fuse, loss_temperatures
from demkd.pipeline.methods import CHOICES, CONTROLS, METHODS, Method, MethodError, choose_method, require_teacher_count
from demkd.pipeline.objective import Labels, Objective
from demkd.pipeline.target_source import BatchTargets
from demkd.pipeline.weighing import (
    NOT_ABOUT_WEIGHTS,
    Shuffle,
    TeacherWeights,
    for_both_losses,
    is_default,
    measure_uncertainty,
    weigh,
)

K, B, C = 3, 8, 6
WORDS = {**CHOICES, **CONTROLS}
NUMBERS: dict[str, tuple[Any, ...]] = {
    "kd_weight": (0.0, 2.0),
    "temperature": (2.0,),
    "tckd_weight": (0.0, 2.0),
    "nckd_weight": (0.0, 2.0),
    "batch_weight": (0.0, 2.0),
    "target_power": (1.0, 2.0),
    "standardise": (True, False),
    "hint_weight": (0.0, 7.0),
    "warmup": (0.0, 0.5),
    "weight_tau": (0.5,),
    "entropy_temperature": (4.0, "kd"),
}


_WEIGHTS = {
    "ebkd": "share",
    "ca-mkd": "label",
    "de-mkd": "entropy",
    "de-mkd-logits": "entropy",
    "dist-entropy": "sharp",
}

# DIST's authors add 1e-8 to the lengths of a class's column, which the plain correlation does not.
NEAR = {
    name: {"rtol": 1e-6, "atol": 1e-6} if name in ("dist", "dist-entropy") else {"rtol": 1e-11, "atol": 1e-12}
    for name in METHODS
}


OF = {"batch_weight": "dist", "target_power": "ofa"}  # options that DE-MKD does not read


@pytest.fixture
def scene() -> dict[str, Any]:
    """Logits of three teachers and a student, labels, features of the teachers and adapted ones of the student."""
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return 2 * torch.randn(*shape, generator=draw, dtype=torch.float64)

    labels = torch.randint(0, C, (B,), generator=draw)
    teachers = [normal(B, C) for _ in range(K)]
    for k, every in ((0, 2), (1, 3)):  # right about every other sample, and every third; so both about some
        teachers[k][torch.arange(0, B, every), labels[::every]] += 9
    return {
        "teachers": teachers,
        "student": normal(B, C),
        "labels": labels,
        "hints": [normal(B, 5) for _ in range(K)],
        "adapted": [normal(B, 5) for _ in range(K)],
    }


def weights_of(scene: dict[str, Any], method: Method, shuffle: Shuffle | None = None) -> TeacherWeights:
    predictions = torch.stack([z.argmax(1) for z in scene["teachers"]])
    uncertainty = measure_uncertainty(scene["teachers"], scene["labels"], method)
    return weigh(uncertainty, predictions, scene["labels"], method, shuffle=shuffle)


def loss_of(scene: dict[str, Any], method: Method, *, epoch: int = 240) -> dict[str, Tensor]:
    """The pipeline's own way: weigh, fuse, one loss."""
    shuffle = Shuffle.draw(method, seed=1, slot=0, teachers=len(scene["teachers"]), samples=B)
    weights = weights_of(scene, method, shuffle)
    at_all = dict.fromkeys(loss_temperatures(method), scene["teachers"])
    batch_targets = BatchTargets(
        targets=fuse(at_all, scene["labels"], method, weights) if method.needs_teachers else None,
        hints=scene["hints"],
        hint_weights=weights.hint,
    )
    adapted = scene["adapted"] if method.needs_features else []
    objective = Objective(method, epochs=240, teachers=K)
    terms = objective.terms(scene["student"], Labels(own=scene["labels"]), batch_targets, adapted)
    return {**dict(zip(objective.names, terms, strict=True)), "loss": terms @ objective.factors(epoch=epoch)}


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(1)


def parts(z: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    p = torch.softmax(z / temperature, dim=1)
    chosen = F.one_hot(labels, C).bool()
    b = torch.stack((p[chosen], p[~chosen].view(-1, C - 1).sum(1)), dim=1)
    return b, torch.softmax((z / temperature)[~chosen].view(-1, C - 1), dim=1)


def entropies(scene: dict[str, Any], temperature: float = 1.0) -> Tensor:
    p = [torch.softmax(z / temperature, dim=1) for z in scene["teachers"]]
    return torch.stack([-(q * q.log()).sum(1) for q in p])


def closed_form(scene: dict[str, Any], name: str) -> Tensor:
    """The formulas of docs/methods.md, teacher by teacher."""
    student, labels, teachers = scene["student"], scene["labels"], scene["teachers"]
    h = entropies(scene)
    ce = torch.stack([F.cross_entropy(z, labels, reduction="none") for z in teachers])
    weights = {
        "entropy": (1 - torch.softmax(h, dim=0)) / (K - 1),
        "share": (1 - h / h.sum(0)) / (K - 1),
        "label": (1 - torch.softmax(ce, dim=0)) / (K - 1),
        "sharp": torch.softmax(-h, dim=0),
        "uniform": torch.full_like(h, 1 / K),
    }[_WEIGHTS.get(name, "uniform")]
    loss = F.cross_entropy(student, labels)
    if name != "ce":
        loss = loss + logit_loss(name, student, teachers, labels, weights)
    for k in range(K):
        if name in ("ca-mkd", "de-mkd"):
            distance = (scene["adapted"][k] - scene["hints"][k]).square().mean(1)
            loss = loss + 50 / K * (weights[k] * distance).mean()
    return loss


def logit_loss(name: str, student: Tensor, teachers: list[Tensor], labels: Tensor, weights: Tensor) -> Tensor:
    """Each paper's loss, with the weights (K, B) over teachers, written out one by one."""
    if name in ("kd-ls", "dkd-ls"):
        plain = "kd" if name == "kd-ls" else "dkd"
        return 9 * divergences(plain, z_scored(student), [z_scored(z) for z in teachers], labels, weights, 2.0)
    if name in ("dist", "dist-entropy"):
        return (8 if name == "dist-entropy" else 2) * correlations(student, teachers, weights, 4.0)
    if name in ("mlkd", "mlkd-ls"):
        return levels(name, student, teachers, weights)
    if name == "ofa":
        own = F.one_hot(labels, C)
        enhanced = [(torch.softmax(z, 1) + own) ** 1.5 - own for z in teachers]
        crosses = [-(t * F.log_softmax(student, 1)).sum(1) for t in enhanced]
        return (weights * torch.stack(crosses)).sum(0).mean()
    if name in ("ttm", "wttm"):
        temperature, factor = (10.0, 45) if name == "ttm" else (5.0, 4)
        powers = [torch.softmax(z, 1) ** (1 / temperature) for z in teachers]
        sums = [p.sum(1) if name == "wttm" else torch.ones(B) for p in powers]
        return factor * sum(
            (weights[k] * sums[k] * kl(p / p.sum(1, keepdim=True), torch.softmax(student, 1))).mean()
            for k, p in enumerate(powers)
        )
    coupled = name in ("kd", "ebkd", "ca-mkd")
    return divergences("kd" if coupled else "dkd", student, teachers, labels, weights, 4.0)


def divergences(
    name: str, student: Tensor, teachers: list[Tensor], labels: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    b_s, q_s = parts(student, labels, temperature)
    for k, z in enumerate(teachers):
        if name == "kd":
            of_teacher = kl(torch.softmax(z / temperature, dim=1), torch.softmax(student / temperature, dim=1))
        else:
            b_t, q_t = parts(z, labels, temperature)
            of_teacher = kl(b_t, b_s) + 8 * kl(q_t, q_s)
        total = total + (weights[k] * temperature**2 * of_teacher).mean()
    return total


def z_scored(logits: Tensor) -> Tensor:
    return torch.stack([(z - z.mean()) / (z.std() + 1e-7) for z in logits])


def pearson(x: Tensor, y: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack((x, y)))[0, 1]


def correlations(student: Tensor, teachers: list[Tensor], weights: Tensor, temperature: float) -> Tensor:
    """K terms within a sample; within a class one, against the weighted mean."""
    s, t = torch.softmax(student / temperature, 1), [torch.softmax(z / temperature, 1) for z in teachers]
    inter = sum((weights[k] * torch.stack([1 - pearson(s[i], p[i]) for i in range(B)])).mean() for k, p in enumerate(t))
    mean = sum(weights[k][:, None] * p for k, p in enumerate(t))
    assert isinstance(mean, Tensor)
    intra = torch.stack([1 - pearson(s[:, c], mean[:, c]) for c in range(C)]).mean()
    return temperature**2 * (inter + intra)


def levels(name: str, student: Tensor, teachers: list[Tensor], weights: Tensor) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for temperature in (2.0 if name == "mlkd-ls" else 4.0, 2.0, 3.0, 5.0, 6.0):
        shown = z_scored if name == "mlkd-ls" else lambda z: z
        p_s = torch.softmax(shown(student) / temperature, 1)
        for k, z in enumerate(teachers):
            total = total + 9 * temperature**2 * (weights[k] * kl(torch.softmax(shown(z) / temperature, 1), p_s)).mean()
        p = torch.softmax(student / temperature, 1)
        q = sum(weights[k][:, None] * torch.softmax(z / temperature, 1) for k, z in enumerate(teachers))
        assert isinstance(q, Tensor)
        total = total + 4.5 * ((p @ p.T - q @ q.T) ** 2).sum() / B + 4.5 * ((p.T @ p - q.T @ q) ** 2).sum() / C
    return total


@pytest.mark.parametrize("name", METHODS)
def test_a_preset_is_its_closed_form(scene: dict[str, Any], name: str) -> None:
    torch.testing.assert_close(loss_of(scene, METHODS[name])["loss"], closed_form(scene, name), **NEAR[name])


def test_one_teacher_makes_de_mkd_dkd(scene: dict[str, Any]) -> None:
    single = {**scene, "teachers": scene["teachers"][:1]}
    one, other = (loss_of(single, METHODS[name])["loss"] for name in ("de-mkd-logits", "dkd"))
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_through_fused_targets_has_the_closed_forms_gradient(scene: dict[str, Any], name: str) -> None:
    student = scene["student"].clone().requires_grad_()
    moving = {**scene, "student": student}
    (fused,) = torch.autograd.grad(loss_of(moving, METHODS[name])["loss"], student)
    (naive,) = torch.autograd.grad(closed_form(moving, name), student)
    torch.testing.assert_close(fused, naive, **NEAR[name])


def test_the_weight_options_are_their_formulas(scene: dict[str, Any]) -> None:
    h = entropies(scene)
    predictions = torch.stack([z.argmax(1) for z in scene["teachers"]])
    tau = choose_method("de-mkd", weight_form="softmax", weight_tau=0.5)
    torch.testing.assert_close(weights_of(scene, tau).logits, torch.softmax(-h / 0.5, dim=0))
    inverse = choose_method("de-mkd", weight_form="inverse")
    torch.testing.assert_close(weights_of(scene, inverse).logits, (1 / (h + 0.01)) / (1 / (h + 0.01)).sum(0))
    warm = choose_method("de-mkd", entropy_temperature=4.0)
    torch.testing.assert_close(weights_of(scene, warm).logits, (1 - torch.softmax(entropies(scene, 4.0), dim=0)) / 2)
    assert choose_method("de-mkd", entropy_temperature="kd", temperature=2.0).entropy_temperature == 2.0
    assert choose_method("de-mkd", entropy_temperature="kd") == warm
    level = choose_method("de-mkd", weight_level="dataset")
    mean = (1 - torch.softmax(h.mean(1, keepdim=True), dim=0)) / 2
    torch.testing.assert_close(weights_of(scene, level).logits, mean.expand(K, B))
    fixed = choose_method("de-mkd", weight_source="fixed", fixed_weights=(0.5, 0.3, 0.2))
    assert weights_of(scene, fixed).hint[:, 4].tolist() == pytest.approx([0.5, 0.3, 0.2])
    masked = weights_of(scene, choose_method("de-mkd", wrong_teacher="mask")).logits
    some_right = (predictions == scene["labels"]).any(0)
    assert (masked[:, some_right] * (predictions != scene["labels"])[:, some_right]).abs().max() == 0
    torch.testing.assert_close(masked.sum(0), torch.ones(B, dtype=masked.dtype))


def test_a_weighting_of_ones_own_is_a_function_and_a_line(
    scene: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `losses` has is known to the pipeline, with nothing said twice, and may read tau and a temperature."""
    assert set(CHOICES["weight_form"]) <= set(WEIGHT_FORMS), "every word of --help works"
    monkeypatch.setitem(WEIGHT_FORMS, "winner", lambda h, _tau: F.one_hot(h.argmin(0), K).T.double())
    monkeypatch.setitem(
        UNCERTAINTIES,
        "loudness",
        lambda many, _labels, temperature: torch.stack([-z.amax(1) / temperature for z in many]),
    )
    own = choose_method("de-mkd", weight_source="loudness", weight_form="winner")
    loudest = torch.stack([z.amax(1) for z in scene["teachers"]]).argmax(0)
    assert torch.equal(weights_of(scene, own).logits, F.one_hot(loudest, K).T.double())
    with pytest.raises(MethodError, match=r"`weight_form` cannot be 'loser': choose one of .*, inverse, winner"):
        choose_method("de-mkd", weight_form="loser")
    tempered = choose_method("de-mkd", weight_source="loudness", weight_form="one_minus_softmax", entropy_temperature=2)
    assert not torch.equal(
        weights_of(scene, tempered).logits, weights_of(scene, choose_method("de-mkd", weight_source="loudness")).logits
    )
    assert choose_method("de-mkd", weight_form="winner", weight_tau=0.5).weight_tau == 0.5


def test_a_loss_of_ones_own_is_a_function_and_a_line(scene: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean square of the student's logits less the teachers' weighted ones: known to every stage by its word."""
    assert set(CHOICES["loss"]) == LOSSES.keys(), "every word of --help works"

    def fuse_logits(logits: TeacherLogits, _labels: Tensor, weights: TeacherWeights, _method: Method) -> CoupledTargets:
        mean = torch.einsum("kb,kbc->bc", weights.logits, torch.stack(list(logits[1.0])))
        return CoupledTargets(soft_targets=mean, entropy=torch.zeros(len(mean)))

    own = LogitLoss(
        factors=lambda method: {"logit_distance": 2 * method.batch_weight},
        fuse=fuse_logits,
        terms=lambda z, _labels, targets, _method: ((z - targets.soft_targets).square().mean(1),),
        temperatures=lambda _method: (1.0,),
    )
    monkeypatch.setitem(LOSSES, "distance", own)
    method = choose_method("kd", loss="distance", kd_weight=3.0, batch_weight=0.5)
    found = loss_of(scene, method)
    expected = (scene["student"] - torch.stack(scene["teachers"]).mean(0)).square().mean()
    torch.testing.assert_close(found["logit_distance"], expected)
    torch.testing.assert_close(found["loss"], found["label_loss"] + 3 * 2 * 0.5 * expected)
    with pytest.raises(MethodError, match=r"`loss` cannot be 'nearness': choose one of dkd, kd, .*, ofa, distance"):
        choose_method("kd", loss="nearness")


@pytest.mark.parametrize("name", [field.name for field in fields(Method)])
def test_precomputed_weights_are_for_methods_that_differ_in_nothing_that_moves_weights(
    scene: dict[str, Any], name: str
) -> None:
    """For every field, also one of tomorrow: either a change makes weights be computed, or it does not change them."""
    default = METHODS["de-mkd"]
    before = getattr(default, name)
    another = {str: "another", float: 0.5, bool: True, int: 2, tuple: (0.5, 0.3, 0.2)}[type(before)]
    if name not in NOT_ABOUT_WEIGHTS:
        assert not is_default(replace(default, **{name: another}))
        return
    for value in WORDS.get(name, (another,)):
        method = replace(default, **{name: value})
        assert is_default(method)
        weights = weights_of(scene, default).logits
        shared = for_both_losses(weights, method)
        torch.testing.assert_close(asdict(weights_of(scene, method)), asdict(shared), rtol=0, atol=0)


def test_hints_can_be_weighted_uniformly(scene: dict[str, Any]) -> None:
    uniform = weights_of(scene, choose_method("de-mkd", feature_weighting="uniform"))
    torch.testing.assert_close(uniform.hint, torch.full((K, B), 1 / K, dtype=torch.float64))
    assert not torch.allclose(uniform.logits, uniform.hint)


def test_shuffles_move_weights_and_nothing_else(scene: dict[str, Any]) -> None:
    plain = weights_of(scene, METHODS["de-mkd"]).logits
    for shuffle in ("samples", "teachers"):
        method = choose_method("de-mkd", shuffle=shuffle)
        moved = weights_of(scene, method, Shuffle.draw(method, seed=1, slot=0, teachers=K, samples=B)).logits
        assert not torch.equal(moved, plain)
        torch.testing.assert_close(moved.flatten().sort().values, plain.flatten().sort().values)
        if shuffle == "samples":
            columns = {tuple(column) for column in plain.T.tolist()}
            assert {tuple(column) for column in moved.T.tolist()} == columns, "whole weight vectors change places"
        else:
            torch.testing.assert_close(moved.sort(0).values, plain.sort(0).values)


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in {**WORDS, **NUMBERS}.items() for value in values]
)
@pytest.mark.parametrize("name", METHODS)
def test_every_option_gives_a_finite_loss_or_a_reason(scene: dict[str, Any], name: str, key: str, value: Any) -> None:
    """With DE-MKD, or the method that an option is of, it also changes the loss of the first or the last epoch."""
    fixed = {"fixed_weights": (0.5, 0.3, 0.2)} if value == "fixed" else {}
    try:
        method = choose_method(name, **{key: value}, **fixed)
    except MethodError:
        return
    losses = [float(loss_of(scene, method, epoch=epoch)["loss"]) for epoch in (1, 240)]
    assert all(map(math.isfinite, losses))
    if name == OF.get(key, "de-mkd") and method != METHODS[name]:
        preset = [float(loss_of(scene, METHODS[name], epoch=epoch)["loss"]) for epoch in (1, 240)]
        assert losses != pytest.approx(preset, rel=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_a_preset_with_all_its_options_spelled_out_is_itself(name: str) -> None:
    """As in a run's recipe, which holds loss = "none" for ce; nobody else can choose that."""
    options = asdict(METHODS[name])
    assert choose_method(options.pop("name"), **options) == METHODS[name]
    if name != "ce":
        with pytest.raises(MethodError, match="`loss` cannot be 'none': choose one of dkd, kd, ttm, "):
            choose_method(name, loss="none")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"foo": 1}, "a method has no option foo: choose among loss, standardise, kd_weight, "),
        ({"foo": None}, "a method has no option foo: choose among loss, standardise, kd_weight, "),
        ({"nckd_weight": "8"}, "`nckd_weight` cannot be '8': it must be a number"),
        ({"weight_source": "fixed", "fixed_weights": ("1",)}, "`fixed_weights` cannot be "),
        ({"weight_source": "fixed", "fixed_weights": 1.0}, "`fixed_weights` cannot be "),
    ],
)
def test_options_of_the_wrong_kind_are_named(options: dict[str, Any], why: str) -> None:
    with pytest.raises(MethodError, match=why):
        choose_method("kd", **options)


def test_options_that_do_not_fit_the_number_of_teachers_are_refused() -> None:
    with pytest.raises(MethodError, match=r"`fixed_weights` has 1 numbers for 2 teachers \(a, b\)"):
        require_teacher_count(choose_method("kd", weight_source="fixed", fixed_weights=(1.0,)), ("a", "b"))
