"""Opens caches that may be hostile, each in a forked process with little memory and little time, after one import.

A program: a line of JSON in names a folder, a line of JSON out is the verdict:

    correct   it opened, and every value of it is the counting cache's
    refused   a `UserError`, with its text
    anything else is a failure: another exception, another value, a signal, too much time or memory
"""

import hashlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from demkd.cache import open_cache
from demkd.cache.integrity import verify_cache
from demkd.dataset import Reading, load_images
from demkd.errors import UserError
from demkd.pipeline.runs import RunFolder
from demkd.report.single_sample import summarise_sample
from demkd.report.statistics import read_statistics
from demkd.report.summary import summarise
from tests.cache.counting import LABELS, SAMPLES, answers, shape

assert Image.init  # what decoding would import in every fork
assert h5py, "verify asks it in a process of its own, and finds it in the page cache"

_SECONDS = 20
_MEMORY = 128 << 20
_FEATURES = shape(stage3=(4,))
_ALL = slice(0, SAMPLES)


def examine(folder: Path, *, verify: bool) -> str:
    """Use everything that reads a cache."""
    with open_cache(folder) as cache:
        for number, teacher in enumerate(cache.teachers):
            assert teacher.name == "ab"[number]
            for slot in range(teacher.shape.num_views):
                truth = answers(_FEATURES.answers(), slot, _ALL, teacher=number, features=_FEATURES)
                for name, expected in truth.items():
                    assert np.array_equal(teacher.read(name, slot), expected), f"{name} differs"
        assert np.array_equal(cache.labels, LABELS), "labels differ"
        for slot in range(cache.num_views):
            weights = cache.read_slot(slot).teacher_weights
            assert weights is None or (weights == 0.5).all(), "weights differ"
        json.dumps(str(summarise(read_statistics(cache))).encode().decode())
        summarise_sample(cache, 7, slot=1)
    if verify:
        verify_cache(folder)
    return "correct"


def digest_of_cache(folder: Path) -> str:
    """Of everything that a reader gives of any cache: records, answers, logits, labels, weights."""
    found = hashlib.sha256()
    with open_cache(folder) as cache:
        found.update(repr((cache.names, cache.class_names, cache.num_views)).encode() + cache.labels.tobytes())
        for slot in range(cache.num_views):
            said = cache.read_slot(slot)
            cache.require_logits(slot, temperatures=())
            temperature = cache.teachers[0].provenance.rest_temperatures or (1.0,)
            logits = cache.logits(slot, slice(0, cache.samples), temperature=temperature[0])
            for values in (said.entropy, said.prediction, said.view, said.teacher_weights, *logits):
                found.update(b"none" if values is None else np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def digest_of_run(folder: Path) -> str:
    """Of what a run would go on from."""
    checkpoint = RunFolder(folder).load_checkpoint()
    assert checkpoint is not None
    found = hashlib.sha256(repr(checkpoint["epoch"]).encode())
    for name, tensor in sorted(checkpoint["student"].items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def digest_of_photos(folder: Path) -> str:
    """Of pictures whose manifest is kept in the folder."""
    os.environ["XDG_CACHE_HOME"] = str(folder)
    source = load_images(str(folder / "photos"), split="train", reading=Reading(workers=0))
    found = hashlib.sha256(repr(source.sizes.tolist()).encode())
    for index in range(0, len(source), 5):
        found.update(source.read(index).numpy().tobytes())
    return found.hexdigest()


DIGESTS = {"cache": digest_of_cache, "run": digest_of_run, "photos": digest_of_photos}


def _verdict(command: dict[str, Any], folder: Path) -> str:
    """What a reader makes of it: of a counting cache by its values, of anything else by a digest of them."""
    if command["kind"] == "counting":
        return examine(folder, verify=False)
    found = DIGESTS[command["kind"]](folder)
    return "correct" if found == command["expected"] else f"failure: read as {found}"


def _child(command: dict[str, Any], answer: int) -> None:
    signal.alarm(_SECONDS)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, hard))
    folder = Path(command["folder"])
    try:
        verdict = _verdict(command, folder)
        # HDF5's own process needs the address space of an interpreter.
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        if command["verify"]:
            verify_cache(folder)
    except UserError as error:
        verdict = f"refused {error}"
    except BaseException:
        verdict = f"failure {traceback.format_exc()}"
    os.write(answer, verdict.encode(errors="replace")[:60_000])
    os._exit(0)


def _examine_in_fork(command: dict[str, Any]) -> str:
    receiving, sending = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(command, sending)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        verdict = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if status:
        return f"failure: ended with {os.waitstatus_to_exitcode(status)} after {time.monotonic() - started:.1f} s"
    return verdict


if __name__ == "__main__":
    while (command := json.loads(sys.stdin.readline() or "null")) is not None:
        print(json.dumps(_examine_in_fork(command)), flush=True)  # noqa: T201 - that is its answer
