"""How often a network is right about pictures as they are."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from demkd.dataset import ImageSource, Normalisation
from demkd.pipeline.compute import Compute
from demkd.pipeline.loading import LoadedNetwork, class_name, load_network, usual_normalisation, wrap
from demkd.pipeline.progress import Progress, Task
from demkd.pipeline.results import EvaluationReport

_BATCH = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Shares in 0..1, and how long it took to find out."""

    top1: float
    top5: float
    seconds: float


@torch.no_grad()
def evaluate(
    network: nn.Module,
    source: ImageSource,
    prepare: Callable[[Tensor], Tensor],
    compute: Compute,
    task: Task | None = None,
) -> Accuracy:
    """Top-1 and top-5 of a network on every sample of a source, without augmentation.

    Args:
        prepare: turns pictures (B, 3, H, W), uint8, into the network's input.
        task: where to tell how far it is, in samples.
    """
    started = time.perf_counter()
    network.eval()
    plain, labels = source.plain(compute.device), source.labels.to(compute.device)
    right = torch.zeros(2, dtype=torch.int64, device=compute.device)
    for indices in torch.split(torch.arange(len(source), device=compute.device), _BATCH):
        with compute.autocast():
            logits: Tensor = network(prepare(plain(indices)))
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[indices][:, None]  # (B, 5)
        right += torch.stack((hits[:, 0].sum(), hits.sum()))
        if task:
            task.advance(len(indices))
    top1, top5 = (right.double() / len(source)).tolist()
    return Accuracy(top1=top1, top5=top5, seconds=time.perf_counter() - started)


def evaluate_network(
    what: Path | nn.Module,
    *,
    test: ImageSource,
    network: str | None,
    normalisation: Normalisation | None,
    input_size: int | None = None,
    compute: Compute,
    progress: Progress,
) -> EvaluationReport:
    """A finished run, any checkpoint of a known network, or a module, on a test split.

    Raises:
        CheckpointError: if there is nothing to evaluate, or it was trained on other classes.
    """
    if isinstance(what, nn.Module):
        loaded = LoadedNetwork(
            network=wrap(what, test, name="the network", input_size=input_size),
            name=class_name(what),
            normalisation=normalisation or usual_normalisation(test),
            input_size=input_size,
        )
    else:
        loaded = load_network(what, name=network, source=test, normalisation=normalisation, input_size=input_size)
    was_training = loaded.network.training
    with progress.task(f"evaluating {loaded.name}", total=len(test), unit="pictures") as task:
        accuracy = evaluate(compute.place(loaded.network), test, loaded.prepare, compute, task)
    loaded.network.train(was_training)
    return EvaluationReport(
        folder=Path() if isinstance(what, nn.Module) else what,
        network=loaded.name,
        samples=len(test),
        top1=accuracy.top1,
        top5=accuracy.top5,
    )
