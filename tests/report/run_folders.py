"""Run folders whose every number follows from method, seed and epoch."""

import json
from pathlib import Path
from typing import Any

import tomli_w

EPOCHS = 4
TEACHERS = ["ada", "bob", "cleo"]
TERMS = {
    "ce": ("label_loss",),
    "kd": ("label_loss", "kd_loss"),
    "de-mkd": ("label_loss", "target_class_kd", "non_target_class_kd", "hint_loss"),
}
SEEDS = {"ce": 1, "kd": 2, "de-mkd": 3}


def top1(method: str, seed: int, epoch: int) -> float:
    place = list(TERMS).index(method)
    return 0.2 + 0.1 * place + 0.05 * epoch + 0.01 * seed * (seed + place) - 0.003 * seed * epoch


def weights(method: str, seed: int, epoch: int) -> list[float]:
    return [1 / 3] * 3 if method == "kd" else [0.2 + 0.01 * seed, 0.3, 0.5 - 0.01 * seed]


def line(method: str, seed: int, epoch: int) -> dict[str, Any]:
    losses = {term: (2 + place + 0.1 * seed) / epoch for place, term in enumerate((*TERMS[method], "loss"))}
    teachers = {"names": TEACHERS, "mean_weight": weights(method, seed, epoch), "effective_teachers": 2.5 + 0.1 * seed}
    return {
        "epoch": epoch,
        "epochs": EPOCHS,
        "losses": losses,
        "train_top1": top1(method, seed, epoch) - 0.1,
        "test_top1": top1(method, seed, epoch),
        "teachers": None if method == "ce" else teachers,
    }


def write_run(folder: Path, *, method: str, seed: int, **choices: Any) -> Path:
    folder.mkdir(parents=True)
    recipe = {"seed": seed, "epochs": EPOCHS, "method": method, "student": "resnet8", **choices}
    (folder / "recipe.toml").write_text(tomli_w.dumps({"warmup": 0.0 if method == "ce" else 0.25, **recipe}))
    lines = [json.dumps(line(method, seed, epoch)) for epoch in range(1, EPOCHS + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_runs(folder: Path) -> list[Path]:
    """One run of `ce`, two of `kd` (all teachers alike) and three of `de-mkd`."""
    return [
        write_run(folder / f"{method}-{seed}", method=method, seed=seed)
        for method, seeds in SEEDS.items()
        for seed in range(seeds)
    ]
