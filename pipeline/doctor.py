"""What this machine has for demkd: versions, cores, devices, the precision that is chosen, free disk, decoding."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import torch

from demkd.dataset.decode_rate import photos_per_second
from demkd.pipeline.compute import choose_compute
from demkd.pipeline.results import DeviceReport, DoctorReport
from demkd.untrusted import real_path

_NEEDED = ("torch", "torchvision", "numpy", "h5py", "safetensors")
_EXTRAS = ("scikit-learn", "scipy", "matplotlib", "jinja2", "timm", "tensorboard", "onnx", "onnxruntime")
_SECONDS = 0.5  # of decoding


def examine(folder: Path) -> DoctorReport:
    """Look at this machine, and at the disk of a folder that need not exist yet."""
    found = real_path(folder)
    existing = next(parent for parent in (found, *found.parents) if parent.is_dir())
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return DoctorReport(
        versions={"python": platform.python_version(), **{name: _version(name) for name in ("demkd", *_NEEDED)}},
        extras={name: _version(name) for name in _EXTRAS},
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        devices=tuple(map(_device, names)),
        device=str(choose_compute().device),
        folder=existing,
        free_bytes=shutil.disk_usage(existing).free,
        photos_per_second=photos_per_second(seconds=_SECONDS),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device(name: str) -> DeviceReport:
    precision = choose_compute(device=name).precision
    if name == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        has = "has" if precision == "bfloat16" else "has no"
        reason = f"the processor {has} bfloat16 instructions (AVX512-BF16 or AMX)"
        return DeviceReport(
            name=name, model=torch.backends.cpu.get_cpu_capability(), memory=memory, precision=precision, reason=reason
        )
    facts = torch.cuda.get_device_properties(name)
    reason = f"compute capability {facts.major}.{facts.minor}, and bfloat16 units came with 8.0"
    return DeviceReport(name=name, model=facts.name, memory=facts.total_memory, precision=precision, reason=reason)
