"""Trains one student after another, and notes what every step saw: started alone, or several times by torchrun.

python -m tests.pipeline.parallel_program FOLDER DEVICE        writes FOLDER/<case>-<processes>-<rank>.pt
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import demkd
from demkd.pipeline.teacher_targets import TARGET_BYTES, CachedTeachers
from tests.pipeline.stages import Recorder

SAMPLES = 58  # 3 batches of 15 and a rest of 13, which 2 processes share unevenly
BATCH = 15
# name -> how the student is trained; without batch normalization, which sees a rank's part of the batch alone.
CASES: dict[str, dict[str, Any]] = {
    "features": {"method": "de-mkd", "hint_layer": "2", "student_layer": "0"},
    "shuffled": {"method": "de-mkd-logits", "shuffle": "samples", "label_noise": 0.3},
    "dataset": {"method": "ebkd", "weight_level": "dataset", "wrong_teacher": "mask"},
    "mixed": {"method": "ebkd", "cache": "mixed"},
    "largest": {"method": "kd", "cache": "largest", "temperature": 2.0},
    "live": {"method": "ca-mkd", "hint_weight": 0.0, "cache": None, "views": 3},
    "by-batch": {"method": "dkd"},  # whose targets are fused batch by batch, as where those of a view do not fit
    "standardized": {"method": "wttm", "standardize": True, "weight_source": "agreement"},
    "labels": {"method": "ce"},
}


def images(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % 5
    pixels = torch.randint(0, 150, (count, 16, 16, 3), dtype=torch.uint8, generator=torch.manual_seed(seed))
    pixels[torch.arange(count), :, :, labels % 3] += 100
    return pixels, labels


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip


TRAIN, TEST = images(SAMPLES, seed=0), images(23, seed=1)
TEACHERS = {"a": network(1), "b": network(2)}
QUIET: dict[str, Any] = {"progress": False, "precision": "float32", "device": "cpu"}


def make_caches(folder: Path, *, device: str = "cpu") -> None:
    quiet = {**QUIET, "device": device}
    demkd.cache_teachers(TEACHERS, TRAIN, out=folder / "all", views=3, features=("2", "last"), **quiet)
    demkd.cache_teachers(TEACHERS, TRAIN, out=folder / "largest", views=3, top_k=2, **quiet)
    policy = demkd.MixUp(base=demkd.CropFlip(padding=2, flip=True))
    demkd.cache_teachers(TEACHERS, TRAIN, out=folder / "mixed", views=3, augment=policy, **quiet)


class Notes:
    """What every step of a student saw: its images, and the gradients and learning rate that it ended with."""

    def __init__(self) -> None:
        self.views: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.rates: list[float] = []

    def watch(self, student: nn.Module) -> None:
        student.register_forward_pre_hook(self._note_views)

    def _note_views(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            self.views.append(inputs[0].detach().clone())

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        made = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
        made.register_step_pre_hook(self._note_gradients)
        return made

    def _note_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        group = optimizer.param_groups[0]
        self.gradients.append(torch.cat([one.grad.flatten().clone() for one in group["params"]]))
        self.rates.append(group["lr"])


def train_student(case: str, folder: Path, out: Path, *, device: str) -> dict[str, Any]:
    options = dict(CASES[case])
    cache = options.pop("cache", "all")
    defaults = CachedTeachers.__init__.__kwdefaults__ or {}
    defaults["target_bytes"] = 0 if case == "by-batch" else TARGET_BYTES
    student, notes, told = network(3), Notes(), Recorder()
    notes.watch(student)
    report = demkd.distill(
        student,
        train=TRAIN,
        test=TEST,
        out=out,
        **({"live_teachers": TEACHERS} if cache is None else {"cache": folder / cache}),
        optimizer=notes.optimizer,
        epochs=2,
        batch_size=BATCH,
        **{**QUIET, "progress": told, "device": device},
        **options,
    )
    return {
        "views": notes.views,
        "gradients": notes.gradients,
        "rates": notes.rates,
        "reports": told.reports,
        "test_top1": report.test_top1,
        "state": student.state_dict(),
    }


def main(folder: Path, device: str) -> None:
    rank, size = (os.environ.get(name, "0") for name in ("RANK", "WORLD_SIZE"))
    torch.set_num_threads(1)
    for case in CASES:
        noted = train_student(case, folder, folder / f"run-{case}-{size}", device=device)
        torch.save(noted, folder / f"{case}-{size}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
