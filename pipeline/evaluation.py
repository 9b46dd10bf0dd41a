"""How often a network is right about pictures as they are."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from demkd.dataset import Normalisation, ViewCutter
from demkd.pipeline.compute import Compute
from demkd.pipeline.loading import load_network, load_split
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
    cutter: ViewCutter,
    labels: Tensor,
    prepare: Callable[[Tensor], Tensor],
    compute: Compute,
    task: Task | None = None,
) -> Accuracy:
    """Top-1 and top-5 of a network on every sample of a cutter, without augmentation.

    Args:
        prepare: turns views (B, 3, H, W), uint8, into the network's input.
        task: where to tell how far it is, in samples.
    """
    started = time.perf_counter()
    network.eval()
    labels = labels.to(compute.device)
    right = torch.zeros(2, dtype=torch.int64, device=compute.device)
    for indices in torch.split(torch.arange(len(cutter), device=compute.device), _BATCH):
        with compute.autocast():
            logits: Tensor = network(prepare(cutter.cut_plain(indices)))
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[indices][:, None]  # (B, 5)
        right += torch.stack((hits[:, 0].sum(), hits.sum()))
        if task:
            task.advance(len(indices))
    top1, top5 = (right.double() / len(cutter)).tolist()
    return Accuracy(top1=top1, top5=top5, seconds=time.perf_counter() - started)


def evaluate_run(
    path: Path,
    *,
    data: str,
    network: str | None,
    normalisation: Normalisation | None,
    input_size: int | None = None,
    compute: Compute,
    progress: Progress,
) -> EvaluationReport:
    """`evaluate`: a finished run, or any checkpoint of a known network, on the test split.

    Raises:
        CheckpointError: if there is nothing to evaluate, or it was trained on other classes.
    """
    progress.note(f"reading the test pictures of {data}")
    test = load_split(data, "test")
    loaded = load_network(path, name=network, pictures=test, normalisation=normalisation, input_size=input_size)
    cutter = ViewCutter(test.pixels, test.policy, device=compute.device)
    with progress.task(f"evaluating {loaded.name}", total=len(test), unit="pictures") as task:
        accuracy = evaluate(compute.place(loaded.network), cutter, test.labels, loaded.prepare, compute, task)
    return EvaluationReport(folder=path, network=loaded.name, samples=len(test), top1=accuracy.top1, top5=accuracy.top5)
