"""Every preset is its closed form, written out teacher by teacher in float64; so are the options of the weights."""

import math
import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from demkd.config import METHODS, ConfigError, MethodConfig, check_teacher_count, choose_method
from demkd.losses import (
    LOSSES,
    UNCERTAINTIES,
    WEIGHT_FORMS,
    Targets,
    TeacherWeights,
    fuse,
    loss_temperatures,
    measure_uncertainty,
    weigh,
)
from demkd.losses.criterion import DistillationLoss
from demkd.losses.weights import NOT_ABOUT_WEIGHTS, for_both_losses, weighting_changes
from demkd.pipeline.teacher_targets import draw_shuffle
from tests.losses.test_crld import naive_crld
from tests.losses.test_rank import naive_terms

K, B, C = 3, 8, 6
Scene = dict[str, Any]
WORDS: dict[str, tuple[str, ...]] = {
    field.name: tuple(word for word in field.metadata["choices"] if word != "none" or field.name == "shuffle")
    for field in fields(MethodConfig)
    if field.metadata["choices"]
}
NUMBERS: dict[str, tuple[Any, ...]] = {
    "kd_weight": (0.0, 2.0),
    "temperature": (2.0,),
    "tckd_weight": (0.0, 2.0),
    "nckd_weight": (0.0, 2.0),
    "batch_weight": (0.0, 2.0),
    "target_power": (1.0, 2.0),
    "standardize": (True, False),
    "hint_weight": (0.0, 7.0),
    "warmup": (0.0, 0.5),
    "weight_tau": (0.5,),
    "entropy_temperature": (4.0,),
}
OF = {"batch_weight": "dist", "target_power": "ofa"}  # options that DE-MKD does not read


@pytest.fixture
def scene() -> Scene:
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


def weights_of(scene: Scene, method: MethodConfig, shuffle: Tensor | None = None) -> TeacherWeights:
    predictions = torch.stack([z.argmax(1) for z in scene["teachers"]])
    uncertainty = measure_uncertainty(scene["teachers"], scene["labels"], method)
    return weigh(uncertainty, predictions, scene["labels"], method, shuffle=shuffle)


def loss_of(
    scene: Scene, method: MethodConfig, *, epoch: int = 239, weights: TeacherWeights | None = None
) -> dict[str, Tensor]:
    """As a run computes it: weigh, unless `weights` are given, fuse, terms and factors."""
    count = len(scene["teachers"])
    if weights is None:
        weights = weights_of(scene, method, draw_shuffle(method, seed=1, view_index=0, shape=(count, B)))
    at_all = dict.fromkeys(loss_temperatures(method), scene["teachers"])
    targets = Targets(
        soft=fuse(at_all, scene["labels"], method, weights) if method.needs_teachers else None,
        hints=scene["hints"],
        hint_weights=weights.hint,
    )
    criterion = DistillationLoss(method, epochs=240)
    adapted = scene["adapted"] if method.needs_features else []
    terms = criterion.terms(scene["student"], scene["labels"], targets, adapted)
    return {
        **dict(zip(criterion.names, terms, strict=True)),
        "loss": terms @ criterion.factors(epoch, teachers=count, classes=C),
    }


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(1)


def parts(z: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    p = torch.softmax(z / temperature, dim=1)
    chosen = F.one_hot(labels, C).bool()
    b = torch.stack((p[chosen], p[~chosen].view(-1, C - 1).sum(1)), dim=1)
    return b, torch.softmax((z / temperature)[~chosen].view(-1, C - 1), dim=1)


def entropies(scene: Scene, temperature: float = 1.0) -> Tensor:
    p = [torch.softmax(z / temperature, dim=1) for z in scene["teachers"]]
    return torch.stack([-(q * q.log()).sum(1) for q in p])


def closed_form(scene: Scene, name: str) -> Tensor:
    """The formulas of docs/methods.md, teacher by teacher."""
    student, labels, teachers, h = scene["student"], scene["labels"], scene["teachers"], entropies(scene)
    weights = torch.full_like(h, 1 / K)
    if name in ("de-mkd", "de-mkd-logits", "dist-entropy", "rank-entropy"):
        weights = torch.softmax(-h, dim=0)
    elif name == "ebkd":
        weights = (1 - h / h.sum(0)) / (K - 1)
    elif name == "ca-mkd":
        ce = torch.stack([F.cross_entropy(z, labels, reduction="none") for z in teachers])
        weights = (1 - torch.softmax(ce, dim=0)) / (K - 1)
    loss = F.cross_entropy(student, labels)
    if name != "ce":
        loss = loss + logit_loss(name, student, teachers, labels, weights)
    for k in range(K if name in ("ca-mkd", "de-mkd") else 0):
        distance = (scene["adapted"][k] - scene["hints"][k]).square().mean(1)
        loss = loss + 50 / K * (weights[k] * distance).mean()
    return loss


def logit_loss(name: str, student: Tensor, teachers: list[Tensor], labels: Tensor, weights: Tensor) -> Tensor:
    """Each paper's loss, with the weights (K, B) over teachers, written out one by one."""
    if name in ("kd-ls", "dkd-ls"):
        teachers, plain = [z_scored(z) for z in teachers], name.removesuffix("-ls")
        return (
            9
            * (C / 100 if plain == "dkd" else 1)
            * divergences(plain, z_scored(student), teachers, labels, weights, 2.0)
        )
    if name in ("dist", "dist-entropy"):
        return min(8 if name == "dist-entropy" else 2, 0.08 * C) * correlations(student, teachers, weights, 4.0)
    if name in ("rank", "rank-entropy"):
        inter, intra, inter_rank, intra_rank = naive_terms(student, teachers, weights).values()
        return 16 * (inter + intra) + 32 * (inter_rank + intra_rank)
    if name == "crld":
        within, across = naive_crld(student, teachers, weights)
        return 2 * within + 0.5 * across
    if name in ("mlkd", "mlkd-ls"):
        return (C / 100) ** 2 * levels(name, student, teachers, weights)
    if name == "ofa":
        own = F.one_hot(labels, C)
        crosses = [-((torch.softmax(z, 1) + own) ** 1.5 - own).mul(F.log_softmax(student, 1)).sum(1) for z in teachers]
        return (weights * torch.stack(crosses)).sum(0).mean()
    if name in ("ttm", "wttm"):
        temperature, factor = (10.0, 45) if name == "ttm" else (5.0, 4)
        powers = [torch.softmax(z, 1) ** (1 / temperature) for z in teachers]
        sums = [p.sum(1) if name == "wttm" else torch.ones(B) for p in powers]
        return factor * sum(
            (weights[k] * sums[k] * kl(p / p.sum(1, keepdim=True), torch.softmax(student, 1))).mean()
            for k, p in enumerate(powers)
        )
    return divergences("kd" if name in ("kd", "ebkd", "ca-mkd") else "dkd", student, teachers, labels, weights, 4.0)


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


def mean_of(p: list[Tensor], weights: Tensor) -> Tensor:
    return torch.einsum("kb,kbc->bc", weights, torch.stack(p))


def correlations(student: Tensor, teachers: list[Tensor], weights: Tensor, temperature: float) -> Tensor:
    """K terms within a sample; within a class one, against the weighted mean."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([1 - torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(x, y, strict=True)])

    s, t = torch.softmax(student / temperature, 1), [torch.softmax(z / temperature, 1) for z in teachers]
    inter = torch.stack([(weights[k] * distance(s, p)).mean() for k, p in enumerate(t)]).sum()
    return temperature**2 * (inter + distance(s.T, mean_of(t, weights).T).mean())


def levels(name: str, student: Tensor, teachers: list[Tensor], weights: Tensor) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for temperature in (2.0 if name == "mlkd-ls" else 4.0, 2.0, 3.0, 5.0, 6.0):
        shown = z_scored if name == "mlkd-ls" else lambda z: z
        p_s = torch.softmax(shown(student) / temperature, 1)
        for k, z in enumerate(teachers):
            total = total + 9 * temperature**2 * (weights[k] * kl(torch.softmax(shown(z) / temperature, 1), p_s)).mean()
        p = torch.softmax(student / temperature, 1)
        q = mean_of([torch.softmax(z / temperature, 1) for z in teachers], weights)
        total = total + 4.5 * ((p @ p.T - q @ q.T) ** 2).sum() / B + 4.5 * ((p.T @ p - q.T @ q) ** 2).sum() / C
    return total


@pytest.mark.parametrize("name", METHODS)
def test_a_preset_is_its_closed_form_in_value_and_gradient(scene: Scene, name: str) -> None:
    """DIST's authors add 1e-8 to the lengths of a class's column, which the plain correlation does not."""
    near = {"rtol": 1e-6, "atol": 1e-6} if name.startswith("dist") else {"rtol": 1e-11, "atol": 1e-12}
    student = scene["student"].requires_grad_()
    fused, naive = loss_of(scene, METHODS[name])["loss"], closed_form(scene, name)
    torch.testing.assert_close(fused, naive, **near)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (fused, naive)), **near)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs_teachers])
@pytest.mark.parametrize("count", [1, K])
def test_a_preset_with_any_weights_is_its_closed_form(scene: Scene, name: str, count: int) -> None:
    near = {"rtol": 1e-6, "atol": 1e-6} if name.startswith("dist") else {"rtol": 1e-12, "atol": 1e-12}
    student, scene = scene["student"].requires_grad_(), {**scene, "teachers": scene["teachers"][:count]}
    draw = torch.Generator().manual_seed(4)
    weights = torch.softmax(2 * torch.randn(count, B, generator=draw, dtype=torch.float64), dim=0)
    method = replace(METHODS[name], hint_weight=0.0)
    fused = loss_of(scene, method, weights=TeacherWeights(logits=weights, hint=weights))["loss"]
    naive = F.cross_entropy(student, scene["labels"])
    naive = naive + logit_loss(name, student, scene["teachers"], scene["labels"], weights)
    torch.testing.assert_close(fused, naive, **near)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (fused, naive)), **near)


def test_the_weight_options_are_their_formulas(scene: Scene) -> None:
    h = entropies(scene)
    predictions = torch.stack([z.argmax(1) for z in scene["teachers"]])
    tau = choose_method("de-mkd", weight_tau=0.5)
    torch.testing.assert_close(weights_of(scene, tau).logits, torch.softmax(-h / 0.5, dim=0))
    one_minus = choose_method("de-mkd", weight_form="one_minus_softmax")
    torch.testing.assert_close(weights_of(scene, one_minus).logits, (1 - torch.softmax(h, dim=0)) / (K - 1))
    inverse = choose_method("de-mkd", weight_form="inverse")
    torch.testing.assert_close(weights_of(scene, inverse).logits, (1 / (h + 0.01)) / (1 / (h + 0.01)).sum(0))
    warm = choose_method("de-mkd", entropy_temperature=4.0)
    torch.testing.assert_close(weights_of(scene, warm).logits, torch.softmax(-entropies(scene, 4.0), dim=0))
    level = choose_method("de-mkd", weight_level="dataset")
    mean = torch.softmax(-h.mean(1, keepdim=True), dim=0)
    torch.testing.assert_close(weights_of(scene, level).logits, mean.expand(K, B))
    fixed = choose_method("de-mkd", weight_source="fixed", fixed_weights=(0.5, 0.3, 0.2))
    assert weights_of(scene, fixed).hint[:, 4].tolist() == pytest.approx([0.5, 0.3, 0.2])
    masked = weights_of(scene, choose_method("de-mkd", wrong_teacher="mask")).logits
    some_right = (predictions == scene["labels"]).any(0)
    assert (masked[:, some_right] * (predictions != scene["labels"])[:, some_right]).abs().max() == 0
    torch.testing.assert_close(masked.sum(0), torch.ones(B, dtype=masked.dtype))


def test_a_weighting_of_ones_own_is_a_function_and_a_line(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `losses` has is known to the pipeline, with nothing said twice, and may read tau and a temperature."""
    assert set(WORDS["weight_form"]) <= set(WEIGHT_FORMS), "every word of --help works"
    monkeypatch.setitem(WEIGHT_FORMS, "winner", lambda h, _tau: F.one_hot(h.argmin(0), K).T.double())
    monkeypatch.setitem(
        UNCERTAINTIES,
        "loudness",
        lambda many, _labels, temperature: torch.stack([-z.amax(1) / temperature for z in many]),
    )
    own = choose_method("de-mkd", weight_source="loudness", weight_form="winner")
    loudest = torch.stack([z.amax(1) for z in scene["teachers"]]).argmax(0)
    assert torch.equal(weights_of(scene, own).logits, F.one_hot(loudest, K).T.double())
    with pytest.raises(ConfigError, match=r"`weight_form` is 'loser': give one of .*, inverse, winner"):
        choose_method("de-mkd", weight_form="loser")
    tempered = choose_method("de-mkd", weight_source="loudness", weight_form="one_minus_softmax", entropy_temperature=2)
    assert not torch.equal(
        weights_of(scene, tempered).logits, weights_of(scene, choose_method("de-mkd", weight_source="loudness")).logits
    )
    assert choose_method("de-mkd", weight_form="winner", weight_tau=0.5).weight_tau == 0.5


def test_the_loss_that_the_documentation_adds_is_used(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean square of the student's logits less the teachers' weighted ones."""
    assert set(WORDS["loss"]) <= LOSSES.keys(), "every word of --help works"
    page = (Path(__file__).parents[2] / "docs/methods.md").read_text()
    (code,) = re.findall(r"```python\n(# losses/distance\.py\n.*?)```", page, re.DOTALL)
    module: dict[str, Any] = {}
    exec(code, module)
    monkeypatch.setitem(LOSSES, "distance", module["DISTANCE"])
    losses = loss_of(scene, choose_method("kd", loss="distance", kd_weight=3.0, batch_weight=0.5))
    expected = (scene["student"] - torch.stack(scene["teachers"]).mean(0)).square().mean()
    torch.testing.assert_close(losses["logit_distance"], expected)
    torch.testing.assert_close(losses["loss"], losses["label_loss"] + 3 * 2 * 0.5 * expected)
    with pytest.raises(ConfigError, match=r"`loss` is 'nearness': give one of none, dkd, kd, .*, ofa, distance"):
        choose_method("kd", loss="nearness")


@pytest.mark.parametrize("name", [field.name for field in fields(MethodConfig)])
def test_precomputed_weights_are_for_methods_that_differ_in_nothing_that_moves_weights(scene: Scene, name: str) -> None:
    """For every field, also one of tomorrow: either a change makes weights be computed, or it does not change them."""
    default = METHODS["de-mkd"]
    before = getattr(default, name)
    another = {str: "another", float: 0.5, bool: True, int: 2, tuple: (0.5, 0.3, 0.2)}[type(before)]
    values = [value for value in WORDS.get(name, (another,)) if value != before]
    if name not in NOT_ABOUT_WEIGHTS:
        for value in values:
            fixed = {"weight_source": "fixed", "fixed_weights": (0.5, 0.3, 0.2)} if "fixed" in (name[:5], value) else {}
            assert weighting_changes(replace(default, **{name: value, **fixed}))
        return
    for value in values:
        method = replace(default, **{name: value, **({"views_per_step": 2} if value == "crld" else {})})
        assert not weighting_changes(method)
        weights = weights_of(scene, default).logits
        shared = for_both_losses(weights, method)
        torch.testing.assert_close(asdict(weights_of(scene, method)), asdict(shared), rtol=0, atol=0)


def test_hints_can_be_weighted_uniformly(scene: Scene) -> None:
    uniform = weights_of(scene, choose_method("de-mkd", feature_weighting="uniform"))
    torch.testing.assert_close(uniform.hint, torch.full((K, B), 1 / K, dtype=torch.float64))
    assert not torch.allclose(uniform.logits, uniform.hint)


def test_shuffles_move_weights_and_nothing_else(scene: Scene) -> None:
    plain = weights_of(scene, METHODS["de-mkd"]).logits
    for shuffle in ("samples", "teachers"):
        method = choose_method("de-mkd", shuffle=shuffle)
        moved = weights_of(scene, method, draw_shuffle(method, seed=1, view_index=0, shape=(K, B))).logits
        assert not torch.equal(moved, plain)
        torch.testing.assert_close(moved.flatten().sort().values, plain.flatten().sort().values)
        if shuffle == "samples":
            columns = {tuple(column) for column in plain.T.tolist()}
            assert {tuple(column) for column in moved.T.tolist()} == columns, "whole weight vectors change places"
        else:
            torch.testing.assert_close(moved.sort(0).values, plain.sort(0).values)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_gives_a_finite_loss_or_a_reason(scene: Scene, name: str) -> None:
    """With DE-MKD, or the method that an option is of, it also changes the loss of the first or the last epoch."""
    preset = [float(loss_of(scene, METHODS[name], epoch=epoch)["loss"]) for epoch in (0, 239)]
    for key, value in [(key, value) for key, values in {**WORDS, **NUMBERS}.items() for value in values]:
        fixed = {"fixed_weights": (0.5, 0.3, 0.2)} if value == "fixed" else {}
        try:
            method = choose_method(name, **{key: value}, **fixed)
        except ConfigError:
            continue
        losses = [float(loss_of(scene, method, epoch=epoch)["loss"]) for epoch in (0, 239)]
        assert all(map(math.isfinite, losses)), (key, value)
        if name == OF.get(key, "de-mkd") and method != METHODS[name]:
            assert losses != pytest.approx(preset, rel=1e-9), (key, value)


@pytest.mark.parametrize("name", METHODS)
def test_a_preset_with_all_its_options_spelled_out_is_itself(name: str) -> None:
    """As in a run's recipe, which holds loss = "none" for ce; nobody else can choose that."""
    options = asdict(METHODS[name])
    assert choose_method(options.pop("name"), **options) == METHODS[name]
    if name != "ce":
        with pytest.raises(ConfigError, match="`loss` is 'none', which is the method ce"):
            choose_method(name, loss="none")


FIXED = {"weight_source": "fixed"}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no-such", {}, "choose one of ce, kd, kd-ls, dkd, dkd-ls, ttm, .*, ebkd, ca-mkd, de-mkd-logits, de-mkd"),
    ("kd", {"nckd_wieght": 1}, "there is no option 'nckd_wieght': choose among nckd_weight"),
    ("kd", {"foo": None}, "there is no option 'foo': choose among batch_weight, "),
    ("kd", {"nckd_weight": "8"}, "`nckd_weight` is '8': give a number of at least 0"),
    ("de-mkd", {"kd_weight": -1.0}, "`kd_weight` is -1.0: give a number of at least 0"),
    ("kd", {"temperature": 0}, "`temperature` is 0: give a number of at least 0.01"),
    ("kd", {"standardize": 1}, "`standardize` is 1: give true or false"),
    ("de-mkd", {"weight_form": "hard"}, "give one of softmax, one_minus_softmax"),
    ("kd", {**FIXED, "fixed_weights": ("1",)}, "`fixed_weights` is .*: give a list of numbers"),
    ("kd", {**FIXED, "fixed_weights": (float("nan"), 1.0)}, "give a list of numbers"),
    ("kd", {**FIXED, "fixed_weights": (2.0, -1.0)}, "none may be below 0, their sum is 1"),
    ("de-mkd", FIXED, "go together"),
    ("de-mkd", {"fixed_weights": (0.5, 0.3, 0.2)}, "go together"),
    ("ce", {"hint_weight": 1.0}, "ce has no teachers, so there are no features"),
    ("de-mkd-logits", {"kd_weight": 0.0}, "nothing is learned from the teachers; choose the method ce"),
    ("dkd", {"tckd_weight": 0.0, "nckd_weight": 0.0}, "nothing is learned from the teachers; choose the method ce"),
    ("de-mkd", {"weight_level": "dataset", "shuffle": "samples"}, "`shuffle=samples` changes nothing"),
    ("kd", {"shuffle": "teachers"}, "`weight_source=uniform` gives all teachers the same weights: `shuffle` changes"),
]


@pytest.mark.parametrize(("name", "options", "why"), REFUSED)
def test_unknown_and_contradicting_options_are_refused(name: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        choose_method(name, **options)


def test_options_that_do_not_fit_the_number_of_teachers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"`fixed_weights` has 1 numbers for 2 teachers \(a, b\)"):
        check_teacher_count(choose_method("kd", weight_source="fixed", fixed_weights=(1.0,)), ("a", "b"))
