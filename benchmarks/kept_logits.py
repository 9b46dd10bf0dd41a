"""What keeping only the k largest logits changes: bytes, the teachers' soft targets, a student's gradient.

From a cache with all logits: each answer is cut down as stage one would, and what a student would learn from it is
compared with what it would learn from all. The student's logits are those of the cache's first teacher, its teachers
the others: an untrained one would say nothing of where a student goes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demkd.cache import Cache, CacheShape, open_cache
from demkd.dataset import load_images, records_on, tasks_of
from demkd.losses import decoupled_kd_loss, fuse_coupled, fuse_decoupled, kd_loss, uniform_weights
from demkd.pipeline.answering import kept_logits
from demkd.pipeline.loading import load_network
from demkd.pipeline.taught import cached_policy

TEMPERATURES = (1.0, 2.0, 4.0)
NCKD_WEIGHT = 8.0  # DKD's beta, as the presets have it


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptEffect:
    """What k kept logits change at one temperature.

    Attributes:
        bytes_a_view: of one teacher's answer to one view, features left out; and of an answer with all logits.
        total_variation: mean over samples of half the summed difference of the teachers' mean soft targets, 0 to 1.
        kd_angle, dkd_angle: mean angle, in degrees, between the gradients of Hinton's and of DKD's loss.
    """

    keep: int
    temperature: float
    bytes_a_view: int
    bytes_of_all: int
    total_variation: float
    kd_angle: float
    dkd_angle: float


def measure_kept_logits(cache: Path, keeps: Sequence[int]) -> Iterator[KeptEffect]:
    """Each k at each temperature, over all slots of a cache with all logits of at least two teachers."""
    opened = open_cache(cache)
    labels = torch.from_numpy(np.array(opened.labels))
    for keep in keeps:
        for temperature in TEMPERATURES:
            parts = [_effect(opened, labels, slot, keep, temperature) for slot in range(opened.num_views)]
            variation, kd, dkd = (torch.cat(column).mean().item() for column in zip(*parts, strict=True))
            whole = replace(opened.teachers[0].shape, features={})
            yield KeptEffect(
                keep=keep,
                temperature=temperature,
                bytes_a_view=_kept_shape(opened, keep).row_bytes(),
                bytes_of_all=whole.row_bytes(),
                total_variation=variation,
                kd_angle=kd,
                dkd_angle=dkd,
            )


def _kept_shape(cache: Cache, keep: int) -> CacheShape:
    return replace(cache.teachers[0].shape, features={}, keep=keep, rest_temperatures=TEMPERATURES)


def _effect(cache: Cache, labels: Tensor, slot: int, keep: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of every sample (N,): the soft targets' total variation, and the angles of both losses' gradients."""
    found = cache.logits(slot, slice(None), temperature=temperature)
    student, *exact = (torch.from_numpy(z.astype(np.float32)) for z in found)
    cut = [_spread(z, labels, _kept_shape(cache, keep), temperature) for z in exact]
    p, q = (torch.stack([torch.softmax(z / temperature, 1) for z in logits]).mean(0) for logits in (exact, cut))
    (kd, dkd), (kd_cut, dkd_cut) = (_gradients(student, labels, logits, temperature) for logits in (exact, cut))
    return (p - q).abs().sum(1) / 2, _degrees(kd, kd_cut), _degrees(dkd, dkd_cut)


def _spread(logits: Tensor, labels: Tensor, shape: CacheShape, temperature: float) -> Tensor:
    """Logits (N, C) as they are read from a file that kept the largest."""
    kept = kept_logits(logits, labels, shape)
    is_kept = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, kept["classes"], value=True)
    is_kept.scatter_(1, labels[:, None], value=True)
    others = (~is_kept).sum(1).clamp_min(1)
    rest = kept["rest"][:, TEMPERATURES.index(temperature)]
    return torch.where(is_kept, logits, (temperature * (rest - others.log()))[:, None])


def _gradients(student: Tensor, labels: Tensor, logits: Sequence[Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    weights = uniform_weights(torch.zeros(len(logits), len(labels)))
    variable = student.clone().requires_grad_(True)
    coupled = fuse_coupled(logits, weights=weights, temperature=temperature)
    (of_kd,) = torch.autograd.grad(kd_loss(variable, coupled, temperature=temperature).sum(), variable)
    targets = fuse_decoupled(logits, labels, tckd_weights=weights, nckd_weights=weights, temperature=temperature)
    tckd, nckd = decoupled_kd_loss(variable, labels, targets, temperature=temperature)
    (of_dkd,) = torch.autograd.grad((tckd + NCKD_WEIGHT * nckd).sum(), variable)
    return of_kd, of_dkd


def _degrees(one: Tensor, other: Tensor) -> Tensor:
    cosine = torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=1)
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))


@torch.no_grad()
def divergence_of(run: Path, cache: Path, data: str, *, temperature: float) -> float:
    """Mean KL, in nats, of the teachers' mean soft targets (all logits) from a run's student, in the cache's last slot.

    A student that was trained on the slots before it (`--views V-1`) saw none of these views.
    """
    opened, source = open_cache(cache), load_images(data, split="train")
    policy, _ = cached_policy(opened.teachers[0])
    student = load_network(run, name=None, source=source)
    size, slot = policy.side_for(student.input.size), opened.num_views - 1
    records = records_on(torch.device("cpu"), opened.view(slot))
    batches = torch.split(torch.arange(len(source)), 50)
    network, found = student.network.eval(), []
    for indices, views in zip(
        batches, source.views(policy, tasks_of(batches, records, (size,)), torch.device("cpu")), strict=True
    ):
        logits = opened.logits(slot, indices.numpy(), temperature=temperature)
        p = torch.stack([torch.softmax(torch.from_numpy(z.astype(np.float32)) / temperature, 1) for z in logits]).mean(
            0
        )
        log_q = torch.log_softmax(network(student.input.prepare(views[size][0])) / temperature, 1)
        found.append((p * (p.clamp_min(1e-30).log() - log_q)).sum(1))
    return float(torch.cat(found).mean())
