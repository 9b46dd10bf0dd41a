"""Top-1 and top-5 of a network on images without augmentation."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from demkd.dataset import ImageDataset, tasks_of
from demkd.pipeline.distributed import Compute
from demkd.pipeline.progress import Task
from demkd.teachers.load import NetworkInput

_BATCH = {"cpu": 500, "cuda": 2500}  # of images in memory
_STREAMED_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Fractions in 0..1, how many classes were predicted at all, and the seconds of the evaluation."""

    top1: float
    top5: float
    predicted_classes: int
    seconds: float


@torch.no_grad()
def evaluate(
    network: nn.Module,
    source: ImageDataset,
    expected: NetworkInput,
    compute: Compute,
    *,
    samples: Tensor | None = None,
    task: Task | None = None,
) -> Accuracy:
    """Top-1 and top-5 of a network on images without augmentation; each process evaluates its part.

    `samples` are the numbers of the images, on the CPU; all by default. The task counts images.
    """
    started = time.perf_counter()
    network.eval()
    labels = source.labels.to(compute.device)
    in_memory = source.is_resident(expected.evaluation_views())
    everything = torch.arange(len(source)) if samples is None else samples
    mine = compute.world.shard_batch(everything)
    batches = torch.split(mine, _BATCH[compute.device.type] if in_memory else _STREAMED_BATCH) if len(mine) else ()
    counts = torch.zeros(2 + source.classes, dtype=torch.int64, device=compute.device)  # top-1, top-5, by prediction
    stream = evaluation_views(source, expected, batches, compute.device)
    for indices, views in zip(batches, stream, strict=True):
        with compute.autocast():
            logits: Tensor = network(expected.prepare(views))
        largest = logits.topk(min(5, logits.shape[1])).indices  # (B, 5)
        hits = largest == labels[indices.to(labels.device)][:, None]
        counts[:2] += torch.stack((hits[:, 0].sum(), hits.sum()))
        counts.index_add_(0, 2 + largest[:, 0], torch.ones_like(largest[:, 0]))
        if task:
            task.advance(len(indices))
    counts = compute.world.all_reduce(counts).cpu()
    top1, top5 = (counts[:2].double() / len(everything)).tolist()
    predicted, seconds = int((counts[2:] > 0).sum()), time.perf_counter() - started
    return Accuracy(top1=top1, top5=top5, predicted_classes=predicted, seconds=seconds)


def evaluation_views(
    source: ImageDataset, expected: NetworkInput, batches: Sequence[Tensor], device: torch.device
) -> Iterator[Tensor]:
    """The evaluation views of batches of samples: (B, 3, H, W), uint8, each."""
    policy = expected.evaluation_views()
    policy.check_images(source.sizes)
    size = policy.view_size
    params = torch.zeros(len(source), policy.num_params, dtype=torch.int32)  # the only view that there is
    made = source.views(policy, tasks_of(batches, params, (size,)), device)
    return (views[size][0] for views in made)
