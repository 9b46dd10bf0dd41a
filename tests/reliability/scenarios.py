"""What is killed and what is spoilt: every stage, on every kind of data, and every kind of file that is read again.

The tests run a few cases of each scenario, the slow tests many, the campaign (`campaign.py`) as many as you choose. To
add a scenario, add one entry to `kill_scenarios` or `mutation_scenarios`.
"""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demkd.cache import open_cache, write_weights
from tests.cache.counting import SAMPLES, fill_shards, shape
from tests.reliability import mutations as m
from tests.reliability.fork_server import ForkServer

PHOTO_VIEWS = ("--view", "resized-crop+randaugment", "--size", 24, "--mix", "cutmix")
KILLED, SPOILT = (
    ("cache", "growing cache", "cache of photos", "student", "student of photos", "packed copy"),
    ("dense cache", "shards", "params and top-k", "run", "manifest"),
)
RUN_FILES = ("checkpoint.pt", "metrics.jsonl", "recipe.toml", "student.safetensors")


def teacher_options(folder: Path, names: str = "ab") -> list[str]:
    """`--teacher` for some of the small teachers."""
    return [part for name in names for part in ("--teacher", f"{name}=resnet8@{folder / name}.safetensors")]


def caching(
    data: Path, teachers: Path, out: Path, *, views: int, features: str = "last", names: str = "ab"
) -> list[object]:
    return [
        *("cache-teachers", "--quiet", "--precision", "float32", "--data", data, "--out", out),
        *("--views", views, "--features", features, *teacher_options(teachers, names)),
    ]


def distilling(data: Path, cache: Path, out: Path, *, epochs: int) -> list[object]:
    """A `distill` command, whose student learns from logits, features and precomputed weights."""
    return [
        *("distill", "--quiet", "--precision", "float32", "--data", data, "--cache", cache, "--out", out),
        *("--student", "resnet8", "--method", "de-mkd", "--epochs", epochs, "--batch-size", 16, "--seed", 3),
    ]


def caching_photos(data: Path, teachers: Path, out: Path, *, workers: int = 0) -> list[object]:
    """A `cache-teachers` command with kept logits and mixed views."""
    return [
        *("cache-teachers", "--quiet", "--precision", "float32", "--data", data, "--out", out, "--views", 4),
        *("--top-k", 2, "--batch-size", 8, "--workers", workers, *PHOTO_VIEWS, *teacher_options(teachers)),
    ]


def distilling_photos(data: Path, cache: Path, out: Path, *, workers: int = 0) -> list[object]:
    return [
        *("distill", "--quiet", "--precision", "float32", "--data", data, "--cache", cache, "--out", out),
        *("--student", "resnet8", "--method", "ebkd", "--epochs", 3, "--batch-size", 8, "--size", 16),
        *("--workers", workers),
    ]


def packing(cache: Path, out: Path) -> list[object]:
    return ["pack", cache, "--to", out, "--views", 3, "--top-k", 2, "--features", "none", "--quiet"]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a cache, without locks."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".lock"}


def outcome_of_run(folder: Path) -> tuple[bytes, list[dict[str, object]]]:
    """The student's bytes, and its metrics without times and digests."""
    times = ("seconds", "data_seconds", "test_seconds", "sha256")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "student.safetensors").read_bytes(), [
        {name: value for name, value in line.items() if name not in times} for line in lines
    ]


@dataclass(frozen=True)
class KillScenario:
    """A command that is killed.

    Attributes:
        commands: the commands that fill a folder; all but the last run before the kills.
        outcome: what must equal that of an uninterrupted run.
    """

    name: str
    commands: Callable[[Path], Sequence[Sequence[object]]]
    outcome: Callable[[Path], Any]


def kill_scenarios(images: Path, photos: Path, teachers: Path, cache: Path, photo_cache: Path) -> list[KillScenario]:
    """All scenarios of one process; `KILLED` has their names."""

    def photos_of_its_own(out: Path) -> Path:
        """A copy whose manifest is made anew, so that a kill may hit that too."""
        copied = out.with_name(f"{out.name}-data") / "photos"  # the folder's name is in the cache
        return copied if copied.exists() else Path(shutil.copytree(photos, copied))

    def growing(out: Path) -> Sequence[Sequence[object]]:
        return [caching(images, teachers, out, views=3, features="none"), caching(images, teachers, out, views=6)]

    commands: list[tuple[Callable[[Path], Sequence[Sequence[object]]], Callable[[Path], Any]]] = [
        (lambda out: [caching(images, teachers, out, views=6, features="none")], contents),
        (growing, contents),
        (lambda out: [caching_photos(photos_of_its_own(out), teachers, out, workers=1)], contents),
        (lambda out: [distilling(images, cache, out, epochs=4)], outcome_of_run),
        (lambda out: [distilling_photos(photos, photo_cache, out)], outcome_of_run),
        (lambda out: [packing(cache, out)], contents),
    ]
    return [KillScenario(name, *entry) for name, entry in zip(KILLED, commands, strict=True)]


class Kills:
    """Kills a scenario's command, and compares what it ends with.

    Attributes:
        calls: that change a file, in an uninterrupted run.
        seconds: of an uninterrupted run.
    """

    def __init__(self, scenario: KillScenario, server: ForkServer, folder: Path) -> None:
        self._scenario, self._run = scenario, server.run
        *_, last = [self._run(*command, code=0) for command in scenario.commands(folder)]
        self.calls, self.seconds = last.calls, last.seconds
        self.expected = scenario.outcome(folder)

    def kill(self, folder: Path, moments: Sequence[dict[str, float]], *, check: Callable[[Path], object] = bool) -> int:
        """Kill the command at all moments, one after the other, then let it end; how many kills there were.

        Args:
            moments: `{"kill_at": call}` or `{"kill_after": seconds}`.
            check: what is called after every kill.

        Raises:
            AssertionError: if the outcome is not that of an uninterrupted run.
        """
        *before, command = self._scenario.commands(folder)
        for earlier in before:
            self._run(*earlier, code=0)
        killed = 0
        for moment in moments:
            outcome = self._run(*command, **moment)
            assert outcome.code in (0, -9), f"exit code {outcome.code}: {outcome.stderr}"
            killed += outcome.code == -9
            check(folder)
        self._run(*command, code=0)
        assert self._scenario.outcome(folder) == self.expected, f"other bytes than of an uninterrupted run: {moments}"
        return killed

    def random_moments(self, chance: random.Random, count: int) -> list[dict[str, float]]:
        """Half of them calls, half of them times."""
        kinds = [
            lambda: {"kill_at": chance.randint(1, max(self.calls, 1))},
            lambda: {"kill_after": chance.uniform(0, self.seconds)},
        ]
        return [chance.choice(kinds)() for _ in range(count)]


@dataclass(frozen=True)
class MutationScenario:
    """A file that is spoilt.

    Attributes:
        kind: how `ForkServer.examine` reads the folder; `expected` is the digest that it must find.
        files: of which one is spoilt each time.
        ways: to spoil it.
    """

    name: str
    pristine: Path
    kind: str
    expected: str
    files: Sequence[str]
    ways: Sequence[m.Mutation]


def mutation_scenarios(
    place: Path, server: ForkServer, photos: Path, photo_cache: Path, trained: Path
) -> list[MutationScenario]:
    """All scenarios; `SPOILT` has their names. `place` is an empty folder, `trained` a run folder."""
    dense, shards, run, seen = (place / name for name in ("dense", "shards", "run", "seen"))
    for folder in (run, seen):
        folder.mkdir(parents=True)
    write_pristine(dense)
    write_pristine(shards, shards=2)
    for name in RUN_FILES:
        shutil.copy(trained / name, run)
    (seen / "photos").symlink_to(photos)
    digest_of_photos = server.digest(seen, "photos")
    (manifest,) = seen.rglob("*.npz")
    # Contents that a forger sealed may name other places: what is read there follows no digest of ours.
    sealed = [m.spoil_provenance, m.make_foreign]
    common = [
        *(m.flip_bits, m.flip_a_bit_of_the_header, m.overwrite_bytes, m.move_bytes, m.truncate, m.extend),
        *(m.randomize, m.replace_contents, m.spoil_hdf5),
    ]
    names = [sorted(file.name for file in folder.glob("*.h5")) for folder in (dense, shards, photo_cache)]
    entries: list[tuple[Path, str, str, Sequence[str], Sequence[m.Mutation]]] = [
        (dense, "counting", "", names[0], [*common, *sealed, m.spoil_contents]),
        (shards, "counting", "", names[1], [*common, *sealed, m.spoil_contents]),
        (photo_cache, "cache", server.digest(photo_cache, "cache"), names[2], common),
        (run, "run", server.digest(run, "run"), RUN_FILES, [m.flip_bits, m.overwrite_bytes, m.truncate, m.extend]),
        (
            seen,
            "photos",
            digest_of_photos,
            [str(manifest.relative_to(seen))],
            [m.flip_bits, m.overwrite_bytes, m.truncate, m.extend],
        ),
    ]
    return [MutationScenario(name, *entry) for name, entry in zip(SPOILT, entries, strict=True)]


def write_pristine(folder: Path, *, shards: int = 1) -> Path:
    """Two counting teachers with weights."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate("ab"):
        fill_shards(folder, shape(stage3=(4,)), count=shards, teacher=name, number=number)
    halves = np.full((2, 3, SAMPLES), 0.5, np.float32)
    write_weights(folder, open_cache(folder).teachers, halves, weighting="halves")
    return folder


def mutate(scenario: MutationScenario, server: ForkServer, folder: Path, way: m.Mutation, chance: random.Random) -> str:
    """Spoil one file of a copy, and read it: "correct" or "refused".

    Raises:
        AssertionError: if it was anything else.
    """
    for path in scenario.pristine.rglob("*"):
        copied = folder / path.relative_to(scenario.pristine)
        copied.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() and not copied.exists():
            copied.symlink_to(path.resolve())
        elif path.is_file() and path.suffix != ".lock":
            shutil.copyfile(path, copied)
    name = chance.choice(scenario.files)
    way(folder / name, chance)
    # Of the others `verify` reads one in fifty, because it starts a process for HDF5.
    verify = scenario.kind == "counting" and (way is m.spoil_hdf5 or chance.random() < 0.02)
    verdict = server.examine(folder, kind=scenario.kind, expected=scenario.expected, verify=verify)
    kind, _, text = verdict.partition(" ")
    case = f"{way.__name__} of {name}: {verdict[:2000]}"
    assert kind in ("correct", "refused"), case
    assert "\n" not in text.strip(), case
    assert len(text) < 1500, case
    return kind
