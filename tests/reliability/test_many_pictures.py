"""Ten times the pictures take no more memory than the bytes a picture that docs/performance.md lists."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demkd.pipeline.child_process import child_environment
from tests.conftest import CHECKOUT

BYTES_A_PICTURE = 1_000  # what both stages hold at most, all temporary arrays included


def write_pictures(folder: Path, count: int) -> None:
    """So many JPEG files of 72 x 66 pixels; a comment makes every file another one."""
    generator = np.random.default_rng(0)
    contents = []
    for _ in range(100):
        picture = Image.fromarray(generator.integers(0, 256, (9, 8, 3), dtype=np.uint8)).resize((66, 72))
        stream = io.BytesIO()
        picture.save(stream, "JPEG")
        contents.append(stream.getvalue())
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for number in range(count // 10):
            body = contents[(number + label) % 100]
            comment = f"{label} {number}".encode()
            segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            (folder / str(label) / f"{number:06}.jpg").write_bytes(body[:2] + segment + body[2:])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    peaks = {}
    for count in (10_000, 100_000):
        data = tmp_path / str(count)
        write_pictures(data / "train", count)
        write_pictures(data / "test", 100)
        module = "demkd.tests.reliability.photo_stages"
        command = [sys.executable, "-m", module, str(data), str(tmp_path / f"out-{count}")]
        environment = {**child_environment(), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        printed = subprocess.run(
            command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False, timeout=1000
        )
        assert printed.returncode == 0, printed.stderr
        peaks[count] = json.loads(printed.stdout)
    grown = {stage: (peaks[100_000][stage] - peaks[10_000][stage]) / 90_000 for stage in ("cache_teachers", "distill")}
    print(f"bytes a picture: {grown}; of 100,000 in all: {peaks[100_000]}")  # noqa: T201 - for docs/performance.md
    assert max(grown.values()) < BYTES_A_PICTURE
    assert (tmp_path / "out-100000" / "cache" / "a.h5").stat().st_size > 100_000 * 20
