"""What stage one's precision does to the answers: against float32, on real pictures and teachers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demkd.benchmarks.timing import seconds
from demkd.dataset import as_normalisation, load_images
from demkd.losses import entropy
from demkd.losses.weights import entropy_weights
from demkd.pipeline.compute import PRECISIONS, choose_compute
from demkd.pipeline.evaluation import evaluation_views
from demkd.pipeline.loading import InputChoice, load_teacher, teacher_specs
from demkd.teachers import Teacher


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionEffect:
    """One teacher in one precision beside itself in float32; entropies in nats."""

    teacher: str
    precision: str
    speedup: float
    mean_entropy_change: float
    largest_entropy_change: float
    top1_agreement: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsEffect:
    """What a precision changes in the teachers' weights."""

    precision: str
    mean_weight_change: float
    largest_weight_change: float


_BATCH = 250


def measure_precision(
    data: str, teachers: Sequence[str], normalise: Sequence[str], *, device: str, samples: int = 5_000
) -> list[PrecisionEffect | WeightsEffect]:
    """Ask every teacher about evenly spread test pictures in every precision."""
    pictures = load_images(data, split="test")
    indices = torch.arange(0, len(pictures), max(len(pictures) // samples, 1))[:samples]
    answers: dict[tuple[str, str], tuple[Tensor, float]] = {}
    specs = teacher_specs(teachers)
    normalisation = as_normalisation(normalise[0]) if normalise else None
    for precision in PRECISIONS:
        compute = choose_compute(device=device, precision=precision)
        for spec in specs:
            choice = InputChoice(normalisation=normalisation)
            teacher, network = load_teacher(spec, source=pictures, compute=compute, choice=choice)
            views = list(evaluation_views(pictures, network.input, torch.split(indices, _BATCH), compute.device))
            answers[precision, spec.name] = _ask(teacher, views)
    effects: list[PrecisionEffect | WeightsEffect] = []
    for precision in [name for name in PRECISIONS if name != "float32"]:
        effects.extend(
            _effect(spec.name, precision, answers["float32", spec.name], answers[precision, spec.name])
            for spec in specs
        )
        exact, rough = (
            entropy_weights(torch.stack([entropy(answers[name, spec.name][0]) for spec in specs]))
            for name in ("float32", precision)
        )
        change = (exact - rough).abs()
        effects.append(
            WeightsEffect(
                precision=precision,
                mean_weight_change=change.mean().item(),
                largest_weight_change=change.max().item(),
            )
        )
    return effects


def _ask(teacher: Teacher, views: Sequence[Tensor]) -> tuple[Tensor, float]:
    """Logits (N, C) and the seconds that a second pass took."""

    def once() -> Tensor:
        return torch.cat([teacher.answer(some).logits for some in views]).cpu()

    logits = once()
    return logits, seconds(once)


def _effect(name: str, precision: str, exact: tuple[Tensor, float], rough: tuple[Tensor, float]) -> PrecisionEffect:
    change = (entropy(exact[0]) - entropy(rough[0])).abs()
    return PrecisionEffect(
        teacher=name,
        precision=precision,
        speedup=exact[1] / rough[1],
        mean_entropy_change=change.mean().item(),
        largest_entropy_change=change.max().item(),
        top1_agreement=(exact[0].argmax(1) == rough[0].argmax(1)).float().mean().item(),
    )
