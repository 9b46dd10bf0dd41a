"""`python -m benchmarks`: print measured ratios beside their targets, and write them with what they were measured on.

python -m benchmarks --quick                      # 5 minutes on two cores
python -m benchmarks --data cifar100              # all of it, 162 views: 15 minutes, 8 GB of disk
python -m benchmarks --photos --data FOLDER       # the cost of photos at 128 pixels: 15 minutes
python -m benchmarks --start --data FOLDER        # from `distill` to the first step, on small images: 2 minutes
python -m benchmarks --imagenet                   # inspect and distill at ImageNet's shape: 2 minutes, 2.5 GB of disk
python -m benchmarks --processes                  # two processes against one, in both stages: 10 minutes
python -m benchmarks --gpu                       # both stages on one GPU
python -m benchmarks --peer                       # torchdistill's loop beside ours, where that is installed: 10 minutes
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from demkd.benchmarks.bench import FULL, QUICK, Scale
from demkd.benchmarks.gpu import measure_gpu
from demkd.benchmarks.imagenet import SAMPLES, measure_imagenet
from demkd.benchmarks.measures import measure_all
from demkd.benchmarks.peer import measure_peer
from demkd.benchmarks.photos import measure_photos
from demkd.benchmarks.processes import measure_processes
from demkd.benchmarks.start import measure_start
from demkd.benchmarks.timing import Measurement, count_processor_time
from demkd.dataset import ArrayDataset, load_images
from demkd.pipeline.distributed import choose_compute
from demkd.pipeline.preparation import device_name

RESULTS = Path(__file__).parent / "results"
_OF_NOISE = ("quick", "gpu", "processes", "imagenet", "peer")


def main() -> None:
    started = time.perf_counter()
    arguments = _arguments()
    scale = QUICK if arguments.quick else FULL
    scale = replace(
        scale,
        repetitions=arguments.repetitions or scale.repetitions,
        batch_size=arguments.batch_size or scale.batch_size,
    )
    compute = choose_compute(device=arguments.device)
    if arguments.processor_time:
        count_processor_time()
    kinds = ("gpu", "processes", "imagenet", "peer", "start", "photos", "quick")
    kind = next((name for name in kinds if getattr(arguments, name)), "full")
    rows = []
    print("  #   median  (lowest to highest)  target")
    for measured in _measure(kind, arguments, scale):
        rows.append({**asdict(measured), "value": measured.value})
        spread = f"({min(measured.ratios):.3f} to {max(measured.ratios):.3f})"
        print(
            f"{measured.number:>3}  {measured.value:7.3f}  {spread:<19}  {measured.target:<14} {measured.what}",
            flush=True,
        )
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    commit = ["git", "describe", "--always", "--dirty"]
    result = {
        "kind": kind,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "seconds": round(time.perf_counter() - started),
        "scale": asdict(scale),
        "data": "noise" if kind in _OF_NOISE else Path(arguments.data).name,
        "device": device_name(compute),
        "processor": next(models, platform.processor()),
        "precision": compute.precision,
        "clock": "processor" if arguments.processor_time else "wall",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "commit": subprocess.run(commit, cwd=RESULTS.parent, capture_output=True, text=True).stdout.strip(),
        "rows": rows,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def _measure(kind: str, arguments: argparse.Namespace, scale: Scale) -> Iterator[Measurement]:
    """The rows of a kind of table, as they come."""
    device, samples, repetitions = arguments.device, arguments.samples, arguments.repetitions or 5
    if kind == "gpu":
        return measure_gpu(choose_compute(device=device), samples=samples or 50_000)
    if kind == "processes":
        return measure_processes(samples=samples or 9_600, repetitions=repetitions)
    if kind == "imagenet":
        return measure_imagenet(samples=samples or SAMPLES, repetitions=repetitions)
    if kind == "peer":
        return measure_peer(device=device, samples=samples or 6_400, repetitions=repetitions)
    if kind == "start":
        return iter([measure_start(arguments.data, repetitions=repetitions)])
    if kind == "photos":
        return measure_photos(
            arguments.data,
            device=device,
            repetitions=repetitions,
            workers=arguments.workers,
            samples=samples or 1_000,
            only=arguments.only,
        )
    noise = arguments.quick or arguments.data == "noise"
    images = None if noise else load_images(arguments.data, split="train")
    if not isinstance(images, ArrayDataset | None):
        sys.exit("these lines need small images of one size, such as CIFAR's (--data)")
    return measure_all(scale, device, images=images, only=arguments.only)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    for name, text in (
        ("quick", "3,200 samples of noise and 4 views instead of 50,000 and 162"),
        ("photos", "measure photos instead"),
        ("start", "measure the start of `distill` on small images instead"),
        ("imagenet", "measure a cache of ImageNet's shape instead: 2.5 GB of disk"),
        ("processes", "measure two processes against one instead"),
        ("gpu", "measure one GPU with noise of CIFAR's size instead"),
        ("peer", "measure torchdistill's loop against ours instead"),
        ("processor-time", "processor time instead of wall time, on a busy machine; one thread"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--only", nargs="+", default=[], help="some lines of the table alone")
    parser.add_argument("--repetitions", type=int, help="of every ratio; 13 with --quick, else 5")
    parser.add_argument("--batch-size", type=int, help="of students; 64")
    parser.add_argument("--samples", type=int, help="images of --photos (1,000), of --gpu (50,000)")
    parser.add_argument("--workers", type=int, help="processes that decode, of --photos")
    parser.add_argument("--data", default="cifar100")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help=f"write JSON there, e.g. {RESULTS.name}/NAME.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
