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
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median

from demkd.benchmarks.timing import Measurement, compare
from demkd.pipeline.distributed import child_environment, python_module
from demkd.pipeline.progress import Progress


class _FirstStep(Progress):
    """Exits the process after the first training step."""

    def advance(self, count: int) -> None:  # noqa: ARG002
        os._exit(0)


def measure_start(data: str, *, repetitions: int) -> Measurement:
    """11: the second time that a command reads these images, as every time after the first."""
    from demkd.benchmarks.synthetic import write_cache
    from demkd.dataset import ArrayDataset, load_images

    images = load_images(data, split="train")
    if not isinstance(images, ArrayDataset):
        raise SystemExit(f"{data} has images that are read when they are needed: give small ones (--data)")
    with tempfile.TemporaryDirectory(prefix="demkd-start-") as folder:
        write_cache(Path(folder) / "cache", images, teachers=3, views=4)

        processor: dict[str, list[float]] = {}

        def process(name: str, *command: str) -> Callable[[], object]:
            def run() -> None:
                before = getrusage(RUSAGE_CHILDREN)
                subprocess.run(command, check=True, env=child_environment(), cwd=folder)
                after = getrusage(RUSAGE_CHILDREN)
                used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                processor.setdefault(name, []).append(used)

            return run

        measured = compare(
            "11",
            f"seconds from `distill` on {len(images):,} images to the first step, above import torch, torchvision",
            "<= 2",
            process("distill", *python_module("demkd.benchmarks.start"), str(Path(data).resolve()), f"{folder}/cache"),
            process("imports", sys.executable, "-c", "import torch, torchvision"),
            repetitions=repetitions,
        )
    # On a busy machine the clock says little: what processors did is told beside it (threads that wait count).
    used = {f"{name}_processor_s": median(times[1:]) for name, times in processor.items()}
    ratios = tuple(first - second for first, second in measured.times)
    return replace(measured, ratios=ratios, times=(), facts={**measured.facts, **used})


def main() -> None:
    """Train until the first step is done, as the command line does."""
    import cli
    import demkd

    assert "distill" in cli.main.commands  # what the command imports counts too
    with tempfile.TemporaryDirectory() as out:
        demkd.distill(
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
