"""How often a network is right about pictures as they are."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from demkd.dataset import ImageSource, no_records, resting_after, tasks_of
from demkd.pipeline.compute import Compute
from demkd.pipeline.loading import InputChoice, NetworkInput, class_name, load_network, wrapped
from demkd.pipeline.progress import Progress, Task
from demkd.pipeline.results import EvaluationReport
from demkd.pipeline.turns import Steps, to_the_end

_BATCH = {"cpu": 500, "cuda": 2500}  # of pictures in memory
_STREAMED_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Shares in 0..1, and how long it took to find out."""

    top1: float
    top5: float
    seconds: float


def evaluate(
    network: nn.Module, source: ImageSource, expected: NetworkInput, compute: Compute, task: Task | None = None
) -> Accuracy:
    """Top-1 and top-5 of a network on every sample; see `evaluate_in_steps`."""
    return to_the_end(evaluate_in_steps(network, source, expected, compute, task))


@torch.no_grad()
def evaluate_in_steps(
    network: nn.Module, source: ImageSource, expected: NetworkInput, compute: Compute, task: Task | None = None
) -> Steps[Accuracy]:
    """Top-1 and top-5 of a network on every sample of a source, without augmentation; each process looks at its part.

    Args:
        expected: what the network takes as input.
        task: where to tell how far it is, in samples.
    """
    started = time.perf_counter()
    network.eval()
    labels = source.labels.to(compute.device)
    in_memory = source.is_resident(expected.evaluation_views())
    mine = compute.world.part(torch.arange(len(source)))
    batches = torch.split(mine, _BATCH[compute.device.type] if in_memory else _STREAMED_BATCH) if len(mine) else ()
    right = torch.zeros(2, dtype=torch.int64, device=compute.device)
    stream = evaluation_views(source, expected, batches, compute.device)
    yield None  # as in training
    for indices, views in zip(batches, stream, strict=True):
        with compute.autocast():
            logits: Tensor = network(expected.prepare(views))
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[indices.to(labels.device)][:, None]  # (B, 5)
        right += torch.stack((hits[:, 0].sum(), hits.sum()))
        if task:
            task.advance(len(indices))
        yield None
    top1, top5 = (compute.world.total(right).double() / len(source)).tolist()
    return Accuracy(top1=top1, top5=top5, seconds=time.perf_counter() - started)


def evaluation_views(
    source: ImageSource, expected: NetworkInput, batches: Sequence[Tensor], device: torch.device
) -> Iterator[Tensor]:
    """What a network is shown of some batches of samples: (B, 3, H, W), uint8, each.

    Raises:
        ViewsError: if pictures of different sizes would be shown as they are.
    """
    policy = expected.evaluation_views()
    policy.require_pictures(source.sizes)
    size = policy.view_size
    made = source.views(policy, tasks_of(batches, no_records(len(source)), (size,)), device)
    return (views[size][0] for views in made)


def evaluate_network(
    what: Path | nn.Module,
    *,
    test: ImageSource,
    network: str | None,
    choice: InputChoice,
    compute: Compute,
    progress: Progress,
) -> EvaluationReport:
    """A finished run, any checkpoint of a known network, or a module, on a test split.

    Raises:
        CheckpointError: if there is nothing to evaluate, or it was trained on other classes.
    """
    if isinstance(what, nn.Module):
        loaded = wrapped(what, class_name(what), "the network", test, choice)
    else:
        loaded = load_network(what, name=network, source=test, choice=choice)
    was_training = loaded.network.training
    evaluating = progress.task(f"evaluating {loaded.name}", total=len(test), unit="pictures")
    with resting_after(test), evaluating as task:
        accuracy = evaluate(compute.place(loaded.network), test, loaded.input, compute, task)
    loaded.network.train(was_training)
    return EvaluationReport(
        folder=Path() if isinstance(what, nn.Module) else what,
        network=loaded.name,
        samples=len(test),
        top1=accuracy.top1,
        top5=accuracy.top5,
    )
