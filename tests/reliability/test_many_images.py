"""Ten times the images take no more memory than the bytes per image that docs/performance.md lists.

As a program, `python -m demkd.tests.reliability.test_many_images DATA OUT` runs both stages on a folder of photos, and
prints the most anonymous bytes of each, without those of workers.
"""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import demkd
from demkd.benchmarks.timing import PeakMemory
from demkd.pipeline.distributed import child_environment
from tests.conftest import CHECKOUT

BYTES_PER_IMAGE = 1_000  # what both stages hold at most, all temporary arrays included
FEW, MANY = 5_000, 50_000


def write_images(folder: Path, count: int) -> None:
    """JPEG files of 72 x 66 pixels; a comment makes every file different."""
    generator = np.random.default_rng(0)
    contents = []
    for _ in range(100):
        stream = io.BytesIO()
        image = Image.fromarray(generator.integers(0, 256, (9, 8, 3), dtype=np.uint8)).resize((66, 72))
        image.save(stream, "JPEG")
        contents.append(stream.getvalue())
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for number in range(count // 10):
            body = contents[(number + label) % 100]
            comment = f"{label} {number}".encode()
            segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            (folder / str(label) / f"{number:06}.jpg").write_bytes(body[:2] + segment + body[2:])


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def measure(data: str, out: Path) -> dict[str, int]:
    settings: dict[str, Any] = {"device": "cpu", "precision": "float32", "progress": False}
    view = demkd.ResizedCrop(size=16)
    peaks = {}
    peak = PeakMemory()
    peak.start()
    teachers = {name: network(seed) for seed, name in enumerate("ab")}
    demkd.cache_teachers(teachers, data, out=out / "cache", views=1, augment=view, features=(), **settings)
    peaks["cache_teachers"] = peak.stop()
    peak = PeakMemory()
    peak.start()
    demkd.distill(network(9), train=data, test=data, cache=out / "cache", method="kd", out=out / "run", epochs=1,
                  batch_size=256, **settings)  # fmt: skip
    peaks["distill"] = peak.stop()
    return peaks


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    peaks = {}
    for count in (FEW, MANY):
        data = tmp_path / str(count)
        write_images(data / "train", count)
        write_images(data / "test", 100)
        module = "demkd.tests.reliability.test_many_images"
        command = [sys.executable, "-m", module, str(data), str(tmp_path / f"out-{count}")]
        environment = {**child_environment(), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        printed = subprocess.run(
            command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False, timeout=1000
        )
        assert printed.returncode == 0, printed.stderr
        peaks[count] = json.loads(printed.stdout)
    grown = {stage: (peaks[MANY][stage] - peaks[FEW][stage]) / (MANY - FEW) for stage in ("cache_teachers", "distill")}
    print(f"bytes per image: {grown}; in all: {peaks[MANY]}")  # noqa: T201 - for docs/performance.md
    assert max(grown.values()) < BYTES_PER_IMAGE
    assert (tmp_path / f"out-{MANY}" / "cache" / "a.00001-of-00001.h5").stat().st_size > MANY * 20


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))  # noqa: T201 - read by the test
