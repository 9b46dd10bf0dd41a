"""Both stages on a folder of photos in a process of its own: `python -m ... DATA OUT` prints the most anonymous bytes.

One number for stage one, one for a student's epoch, after the manifest was made; the workers' memory is not counted.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

import demkd
from demkd.benchmarks.memory import PeakMemory


def network(classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def main() -> None:
    data, out = sys.argv[1], Path(sys.argv[2])
    settings = {"device": "cpu", "precision": "float32", "progress": False}
    peaks = {}
    peak = PeakMemory()
    peak.start()
    teachers = {name: network(10, seed) for seed, name in enumerate("ab")}
    demkd.cache_teachers(
        teachers, data, out=out / "cache", views=1, policy=demkd.ResizedCrop(size=16), features=(), **settings
    )
    peaks["cache_teachers"] = peak.stop()
    peak = PeakMemory()
    peak.start()
    demkd.distill(network(10, 9), train=data, test=data, cache=out / "cache", method="kd", out=out / "run", epochs=1,
                  batch_size=256, **settings)  # fmt: skip
    peaks["distill"] = peak.stop()
    print(json.dumps(peaks))  # noqa: T201 - that is its answer


if __name__ == "__main__":
    main()
