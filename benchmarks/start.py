"""How long `distill` takes to its first step, in a process of its own, against the imports that it cannot do without:
`python -m demkd.benchmarks.start DATA CACHE` ends when the first step is done.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from demkd.benchmarks.timing import Measurement, compare
from demkd.pipeline.child_process import child_environment, python_module
from demkd.pipeline.progress import SilentProgress


class _FirstStep(SilentProgress):
    """Ends the process, without a word to anybody, once a step is done."""

    def advance(self, count: int) -> None:  # noqa: ARG002
        os._exit(0)


def measure_start(data: str, *, repetitions: int) -> Measurement:
    """11: the second time that a command reads these pictures, as every time after the first."""
    from demkd.benchmarks.synthetic import write_cache
    from demkd.dataset import MemoryImages, load_images

    pictures = load_images(data, split="train")
    if not isinstance(pictures, MemoryImages):
        raise SystemExit(f"{data} has pictures that are read when they are needed: give small ones (--data)")
    with tempfile.TemporaryDirectory(prefix="demkd-start-") as folder:
        write_cache(Path(folder) / "cache", pictures, teachers=3, views=4)

        def process(*command: str) -> Callable[[], object]:
            return lambda: subprocess.run(command, check=True, env=child_environment(), cwd=folder)

        measured = compare(
            "11",
            f"seconds from `distill` on {len(pictures):,} pictures to the first step, above import torch, torchvision",
            "<= 2",
            process(*python_module("demkd.benchmarks.start"), str(Path(data).resolve()), f"{folder}/cache"),
            process(sys.executable, "-c", "import torch, torchvision"),
            repetitions=repetitions,
        )
    return replace(measured, ratios=tuple(first - second for first, second in measured.times), times=())


def main() -> None:
    """Distil until the first step is done, as the command line does."""
    from demkd import api, cli

    assert cli.distill.name == "distill"  # what the command imports counts too
    with tempfile.TemporaryDirectory() as out:
        api.distill(
            "resnet8",
            train=sys.argv[1],
            cache=sys.argv[2],
            out=out,
            method="de-mkd-logits",
            epochs=1,
            progress=_FirstStep(),
        )


if __name__ == "__main__":
    main()
