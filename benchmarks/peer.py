"""torchdistill's loop (Matsubara, 2021) beside ours: the same images, networks, batch size and optimiser.

Its public classes (`pip install torchdistill`) are configured as in its own samples: teachers run in every step.

It has one teacher at a time: three are one module that gives their mean logits.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, RandomSampler
from torchvision import transforms

from demkd.benchmarks.bench import Bench, Scale, epoch_of
from demkd.benchmarks.synthetic import NORMALIZATION
from demkd.benchmarks.timing import Measurement, Work
from demkd.dataset import ArrayDataset
from demkd.dataset.workers import default_workers
from demkd.networks import build_network
from demkd.pipeline.distributed import choose_compute

_TEACHERS = ("resnet20", "wrn_16_2", "vgg8")


def measure_peer(*, samples: int, repetitions: int, device: str) -> Iterator[Measurement]:
    """An epoch of resnet8 with plain distillation: its time / ours, with one and three teachers, in both precisions.

    Raises:
        ImportError: without torchdistill.
    """
    for teachers, precision in ((1, "float32"), (1, "bfloat16"), (3, "float32"), (3, "bfloat16")):
        with tempfile.TemporaryDirectory(prefix="demkd-benchmark-") as folder:
            scale = Scale(samples=samples, views=4, repetitions=repetitions)
            bench = Bench(scale, Path(folder), choose_compute(device=device, precision=precision))
            yield bench.compare(
                f"T{teachers}",
                f"torchdistill's epoch / distill epoch in {precision}, kd, K = {teachers}, resnet8",
                ">= 12" if (teachers, precision) == (3, "bfloat16") else "",
                _their_epoch(bench, _TEACHERS[:teachers]),
                epoch_of(bench.student(teachers=teachers, method="kd")),
            )


class _Ensemble(nn.Module):
    """The mean logits of some networks."""

    def __init__(self, networks: tuple[str, ...], classes: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(build_network(name, classes=classes) for name in networks)

    def forward(self, views: Tensor) -> Tensor:
        return torch.stack([member(views) for member in self.members]).mean(0)


class _Images(Dataset[tuple[Tensor, int]]):
    """What torchvision's CIFAR100 gives with the usual transforms."""

    def __init__(self, images: ArrayDataset) -> None:
        self.pixels, self.labels = images.pixels.numpy(), images.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.pixels.shape[1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(NORMALIZATION.mean, NORMALIZATION.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def _their_epoch(bench: Bench, teachers: tuple[str, ...]) -> Work:
    """One epoch after the other of its `DistillationBox`, as its example scripts call it."""
    from torchdistill.core.distillation import get_distillation_box

    classes, device = bench.images.classes, bench.compute.device
    box = get_distillation_box(
        _Ensemble(teachers, classes).to(device),
        build_network("resnet8", classes=classes).to(device),
        {"train": _Images(bench.images)},
        _configuration(bench.scale.batch_size),
        device,
        device_ids=None,
        distributed=False,
        lr_factor=1.0,
    )
    epochs = iter(range(1_000_000))

    def epoch() -> None:
        box.pre_epoch_process(epoch=next(epochs))
        for views, labels, more in box.train_data_loader:
            box.pre_forward_process()
            box.post_forward_process(loss=box.forward_process(views.to(device), labels.to(device), more))
        bench.compute.wait()

    return epoch


def _configuration(batch_size: int) -> dict[str, Any]:
    """What its YAML files say, of one stage."""
    logits = {
        f"{who}_module_{what}": how for who in ("student", "teacher") for what, how in (("path", "."), ("io", "output"))
    }
    loss = {"key": "KDLoss", "kwargs": {**logits, "temperature": 4.0, "alpha": 0.5}}
    return {
        "num_epochs": 1_000_000,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": batch_size, "num_workers": default_workers(), "persistent_workers": True},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}},
    }
