"""`python -m benchmarks`: print measured ratios beside their targets, and write them with what they were measured on.

python -m benchmarks --quick                      # 5 minutes on two cores
python -m benchmarks --data cifar100              # all of it, 162 views: 15 minutes, 8 GB of disk
python -m benchmarks --photos --data FOLDER       # what photos cost, at 128 pixels: 15 minutes
python -m benchmarks --start --data FOLDER        # from `distill` to the first step, on small pictures: 2 minutes
python -m benchmarks --imagenet                   # inspect and distill at ImageNet's shape: 2 minutes, 2.5 GB of disk
python -m benchmarks --processes                  # two processes against one, in both stages: 10 minutes
python -m benchmarks --peer                       # torchdistill's loop beside ours, where that is installed: 10 minutes
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
from demkd.benchmarks.timing import count_processor_time
from demkd.dataset import MemoryImages, load_images
from demkd.pipeline.compute import choose_compute
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
    kind, rows = _measure(arguments, scale)
    result = {
        "kind": kind,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "seconds": round(time.perf_counter() - started),
        "scale": asdict(scale),
        "data": "noise" if kind in _OF_NOISE else Path(arguments.data).name,
        "device": device_name(compute),
        "processor": _processor(),
        "precision": compute.precision,
        "clock": "processor" if arguments.processor_time else "wall",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "commit": _commit(),
        "rows": rows,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def _measure(arguments: argparse.Namespace, scale: Scale) -> tuple[str, list[dict[str, Any]]]:
    """What kind of table was asked for, and its rows, which are printed as they come."""
    if arguments.gpu or arguments.processes or arguments.imagenet or arguments.start or arguments.peer:
        return _measure_machine(arguments)
    if arguments.photos:
        asked = {"device": arguments.device, "workers": arguments.workers, "samples": arguments.samples or 1_000}
        asked["only"] = arguments.only
        return "photos", _targets(measure_photos(arguments.data, repetitions=arguments.repetitions or 5, **asked))
    noise = arguments.quick or arguments.data == "noise"
    pictures = None if noise else load_images(arguments.data, split="train")
    if not isinstance(pictures, MemoryImages | None):
        sys.exit("the ten lines are of small pictures of one size, such as CIFAR's: give those (--data)")
    measured = measure_all(scale, arguments.device, pictures=pictures, only=arguments.only)
    return "quick" if arguments.quick else "full", _targets(measured)


def _measure_machine(arguments: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """What a GPU, or two processes, are worth; what a start, and a cache of ImageNet's shape, cost."""
    if arguments.gpu:
        return "gpu", _plain(measure_gpu(choose_compute(device=arguments.device), samples=arguments.samples or 50_000))
    if arguments.start:
        return "start", _targets([measure_start(arguments.data, repetitions=arguments.repetitions or 5)])
    if arguments.imagenet:
        size = arguments.samples or SAMPLES
        return "imagenet", _targets(measure_imagenet(samples=size, repetitions=arguments.repetitions or 5))
    if arguments.peer:
        asked = {"samples": arguments.samples or 6_400, "repetitions": arguments.repetitions or 5}
        return "peer", _targets(measure_peer(device=arguments.device, **asked))
    measured = measure_processes(samples=arguments.samples or 9_600, repetitions=arguments.repetitions or 5)
    return "processes", _targets(measured)


def _plain(effects: Iterable[Any]) -> list[dict[str, Any]]:
    rows = []
    for effect in effects:
        rows.append(effect if isinstance(effect, dict) else asdict(effect))
        print("  ".join(f"{key} {_short(value)}" for key, value in rows[-1].items()), flush=True)
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="3,200 samples of noise and 4 views instead of 50,000 and 162"
    )
    parser.add_argument("--only", nargs="+", default=[], help="some lines of the table alone")
    parser.add_argument("--repetitions", type=int, help="of every ratio; 13 with --quick, else 5")
    parser.add_argument("--batch-size", type=int, help="of students; 64")
    parser.add_argument("--photos", action="store_true", help="what photos cost instead")
    parser.add_argument("--start", action="store_true", help="the start of `distill` on small pictures instead")
    parser.add_argument("--imagenet", action="store_true", help="a cache of ImageNet's shape instead: 2.5 GB of disk")
    parser.add_argument("--processes", action="store_true", help="two processes against one instead")
    parser.add_argument("--gpu", action="store_true", help="what one GPU does with noise of CIFAR's size instead")
    parser.add_argument("--peer", action="store_true", help="torchdistill's loop against ours instead")
    parser.add_argument("--processor-time", action="store_true", help="not the clock's, on a busy machine; one thread")
    parser.add_argument("--samples", type=int, help="pictures of --photos (1,000), of --gpu (50,000)")
    parser.add_argument("--workers", type=int, help="processes that decode, of --photos")
    parser.add_argument("--data", default="cifar100")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help=f"write JSON there, e.g. {RESULTS.name}/NAME.json")
    return parser.parse_args()


def _targets(measurements: Iterable[Any]) -> list[dict[str, Any]]:
    rows = []
    print("  #   median  (lowest to highest)  of medians, of the shortest   target")
    for measured in measurements:
        low, high = min(measured.ratios), max(measured.ratios)
        spread = f"({low:.3f} to {high:.3f})"
        others = "".join(
            f"{'' if ratio is None else f'{ratio:.3f}':>7}" for ratio in (measured.of_medians, measured.fastest)
        )
        print(
            f"{measured.number:>3}  {measured.value:7.3f}  {spread:<18}{others}  {measured.target:<14} {measured.what}",
            flush=True,
        )
        derived = {name: getattr(measured, name) for name in ("value", "of_medians", "fastest")}
        rows.append({**asdict(measured), **derived})
    return rows


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor()
    lines = information.read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _commit() -> str:
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=RESULTS.parent, capture_output=True, text=True
    )
    return asked.stdout.strip()


if __name__ == "__main__":
    main()
