"""Kills and hostile files by the hundred, over everything that is kept: `python -m tests.reliability.campaign`.

    python -m tests.reliability.campaign --kills 200 --mutations 10000 [--only WORD ...] [--seed N]

A kill scenario is a command and what it leaves: SIGKILL at random moments, or at the n-th call that changes a file, up
to three times; then the same command must end with the bytes of an uninterrupted run. A mutation scenario is a folder,
a file in it, ways to spoil it, and what a reader must get: exactly what was written, or one sentence. To add either is
one entry of the lists in `kill_scenarios` and `mutation_scenarios`. Ends with 1 and the cases if any failed; a case's
number and the seed make it again.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.conftest import counting_picture
from tests.dataset.photos import write_photos
from tests.reliability import mutations as m
from tests.reliability import test_kill_photos as of_photos
from tests.reliability import test_kill_processes as of_ranks
from tests.reliability.conftest import (
    Run,
    Together,
    caching,
    contents,
    distilling,
    examiner,
    one_by_one,
    outcome_of_run,
    stage_runners,
    write_teacher,
)
from tests.reliability.examiner import DIGESTS
from tests.reliability.sharing import files, kill_either, sharded
from tests.reliability.sharing import write_pictures as write_blocks
from tests.reliability.sharing import write_teachers as write_tiny_teachers
from tests.reliability.test_hostile_files import judge, spoil_bytes, write_pristine

_KILLS_A_CASE = 3
_EPOCHS_OF_RANKS = 20
_VERIFIED = 0.02


KillCase = Callable[[Path, random.Random], int]  # a folder, chance -> how many kills it was


@dataclass(frozen=True, kw_only=True, slots=True)
class KillScenario:
    """What is killed.

    Attributes:
        commands: what makes a folder; all but the last are run before the kills.
        outcome: what must be as if nothing had happened.
        data: their pictures; `copied` for each case, so that the first look at them is killed as well.
    """

    name: str
    commands: Callable[[Path, Path], Sequence[Sequence[object]]]
    outcome: Callable[[Path], Any]
    data: Path
    copied: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class MutationScenario:
    """What is spoilt.

    Attributes:
        kind: how the examiner reads it; `expected` is the digest of what it must get.
        files: of which one is spoilt each time, below the folder.
        ways: to spoil it.
    """

    name: str
    pristine: Path
    kind: str
    expected: str
    files: Sequence[str]
    ways: Sequence[m.Mutation]


def kill_scenarios(place: Path, run: Run) -> list[KillScenario]:
    """Every stage on every kind of data; what others need is made here, uninterrupted."""
    pictures, photos, teachers = place / "pictures", place / "data" / "photos", place / "teachers"
    blocks, tiny = place / "blocks", place / "tiny-teachers"
    _write_pictures(pictures)
    write_photos(photos, per_class=8)
    teachers.mkdir()
    for seed, name in enumerate("ab"):
        write_teacher(teachers / f"{name}.safetensors", seed=seed)
    write_blocks(blocks)
    tiny.mkdir()
    write_tiny_teachers(tiny)
    cache, of_records = place / "cache", place / "photo-cache"
    run(*caching(pictures, teachers, cache, views=4, features="last"), code=0)
    run(*of_photos.caching(photos, teachers, of_records), code=0)

    def small(data: Path, out: Path, views: int, features: str) -> list[object]:
        return caching(data, teachers, out, views=views, features=features)

    return [
        KillScenario(
            name="cache",
            commands=lambda data, out: [small(data, out, 6, "none")],
            outcome=contents,
            data=pictures,
        ),
        KillScenario(
            name="growing cache",
            commands=lambda data, out: [small(data, out, 6, "none"), small(data, out, 20, "last")],
            outcome=contents,
            data=pictures,
        ),
        KillScenario(
            name="photos: manifest, records, top-k",
            commands=lambda data, out: [of_photos.caching(data, teachers, out, workers=1)],
            outcome=contents,
            data=photos,
            copied=True,  # a place of its own, so that its manifest is made anew
        ),
        KillScenario(
            name="student",
            commands=lambda data, out: [distilling(data, cache, out, epochs=6)],
            outcome=outcome_of_run,
            data=pictures,
        ),
        KillScenario(
            name="student of photos",
            commands=lambda data, out: [of_photos.distilling(data, of_records, out)],
            outcome=outcome_of_run,
            data=photos,
        ),
        KillScenario(
            name="merge of shards",
            commands=lambda data, out: [sharded(data, tiny, out, "--shards", 3), ["merge", "--quiet", out]],
            outcome=files,
            data=blocks,
        ),
    ]


def kill_cases(place: Path, together: Together, environment: Mapping[str, str]) -> dict[str, KillCase]:
    """What makes a case of each scenario, those of several processes among them."""
    run = one_by_one(together)
    known: dict[str, Any] = {}
    cases: dict[str, KillCase] = {one.name: partial(kill, one, run, known=known) for one in kill_scenarios(place, run)}

    def either_of_two(folder: Path, chance: random.Random) -> int:
        def command(out: Path) -> list[object]:
            return sharded(place / "blocks", place / "tiny-teachers", out, "--shards", 3)

        if "shards" not in known:
            whole = together([{"arguments": command(folder / "whole")}] * 2)
            known["shards"] = (files(folder / "whole"), whole)
        expected, whole = known["shards"]
        killed = kill_either(together, command(folder / "out"), folder / "out", chance, whole)
        assert files(folder / "out") == expected, "other bytes than of two that nobody killed"
        return killed

    def a_rank(folder: Path, chance: random.Random) -> int:
        def command(out: Path) -> list[object]:
            return of_ranks.distilling(place / "pictures", place / "cache", out, epochs=_EPOCHS_OF_RANKS)

        if "ranks" not in known:
            of_ranks.to_the_end(command(folder / "whole"), **environment)
            known["ranks"] = outcome_of_run(folder / "whole")
        out = folder / "out"
        killed = of_ranks.kill_some(
            command(out), out, chance, kills=_KILLS_A_CASE, epochs=_EPOCHS_OF_RANKS, **environment
        )
        assert outcome_of_run(out) == known["ranks"], "another student than that of ranks that nobody killed"
        return killed

    return {**cases, "shards by two processes": either_of_two, "torchrun: a rank of two": a_rank}


def mutation_scenarios(place: Path, made: Path) -> list[MutationScenario]:
    """Everything that is kept and read again; `made` is where the kill scenarios' data are."""
    dense, shards, run, photos = place / "dense", place / "shards", place / "run", place / "looked-at"
    dense.mkdir()
    write_pristine(dense)
    shards.mkdir()
    write_pristine(shards, shards=2)
    run.mkdir()
    shutil.copy(made / "trained" / "checkpoint.pt", run)
    photos.mkdir()
    (photos / "photos").symlink_to(made / "data" / "photos")
    seen = DIGESTS["photos"](photos)
    manifest = next(photos.rglob("*.npz"))
    records = made / "photo-cache"
    of_files = [
        *(m.flip_bits, m.flip_a_bit_of_the_header, m.overwrite_bytes, m.move_bytes, m.truncate, m.extend),
        *(m.randomise, m.make_foreign, m.replace_contents, m.spoil_provenance, m.spoil_hdf5),
    ]
    return [
        MutationScenario(
            name="dense cache",
            pristine=dense,
            kind="counting",
            expected="",
            files=("a.h5", "a.h5", "weights.h5"),
            ways=[*of_files, m.spoil_contents],
        ),
        MutationScenario(
            name="shards",
            pristine=shards,
            kind="counting",
            expected="",
            files=tuple(sorted(file.name for file in shards.glob("*.h5"))),
            ways=[*of_files, m.spoil_contents],
        ),
        MutationScenario(
            name="records and top-k",
            pristine=records,
            kind="cache",
            expected=DIGESTS["cache"](records),
            files=("a.h5", "b.h5", "weights.h5"),
            # Contents that a forger sealed may name other places: what is read there follows no digest of ours.
            ways=[way for way in of_files if way not in (m.spoil_provenance, m.make_foreign)],
        ),
        MutationScenario(
            name="checkpoint",
            pristine=run,
            kind="run",
            expected=DIGESTS["run"](run),
            files=("checkpoint.pt",),
            ways=[_spoil_bytes, m.truncate, m.extend],
        ),
        MutationScenario(
            name="manifest",
            pristine=photos,
            kind="photos",
            expected=seen,
            files=(str(manifest.relative_to(photos)),),
            ways=[_spoil_bytes, m.extend],
        ),
    ]


def kill(scenario: KillScenario, run: Run, folder: Path, chance: random.Random, known: dict[str, Any]) -> int:
    """One case; how many kills it was. Raises AssertionError if it did not end as an uninterrupted run."""
    if scenario.name not in known:
        *_, last = [run(*command, code=0) for command in scenario.commands(scenario.data, folder / "whole")]
        known[scenario.name] = (scenario.outcome(folder / "whole"), last.calls, last.seconds)
    expected, calls, seconds = known[scenario.name]
    data = Path(shutil.copytree(scenario.data, folder / "photos")) if scenario.copied else scenario.data
    *before, command = scenario.commands(data, folder / "out")
    for earlier in before:
        run(*earlier, code=0)
    killed = 0
    for _ in range(_KILLS_A_CASE):
        how = {"kill_at": chance.randint(1, max(calls, 1))} if chance.random() < 0.5 else {}
        outcome = run(*command, **(how or {"kill_after": chance.uniform(0, seconds)}))
        assert outcome.code in (0, -9), f"exit code {outcome.code}: {outcome.stderr}"
        killed += outcome.code == -9
    run(*command, code=0)
    assert scenario.outcome(folder / "out") == expected, "other bytes than of an uninterrupted run"
    return killed


def mutate(scenario: MutationScenario, examine: Callable[..., str], folder: Path, chance: random.Random) -> str:
    """One case: "correct" or "refused". Raises AssertionError if it was anything else."""
    for file in scenario.files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
    for found in scenario.pristine.rglob("*"):
        if found.is_symlink() and not (folder / found.name).exists():
            (folder / found.name).symlink_to(found.resolve())
        elif found.is_file() and found.suffix != ".lock":
            shutil.copyfile(found, folder / found.relative_to(scenario.pristine))
    name, way = chance.choice(scenario.files), chance.choice(scenario.ways)
    way(folder / name, chance)
    verify = scenario.kind == "counting" and (way is m.spoil_hdf5 or chance.random() < _VERIFIED)
    verdict = examine(folder, kind=scenario.kind, expected=scenario.expected, verify=verify)
    return judge(verdict, f"{way.__name__} of {name}")


def run_kills(place: Path, kills: int, seed: int, only: Sequence[str]) -> list[str]:
    """Cases of all scenarios in turn, one of each at least, until there were so many kills; what failed."""
    failures: list[str] = []
    counts: Counter[str] = Counter()
    environment = {"XDG_CACHE_HOME": str(place / "kept")}
    with stage_runners(**environment) as together:
        run = one_by_one(together)
        cases = {name: case for name, case in kill_cases(place, together, environment).items() if _chosen(name, only)}
        shutil.rmtree(place / "trained", ignore_errors=True)
        run(*distilling(place / "pictures", place / "cache", place / "trained", epochs=1), code=0)
        number = 0
        while number < len(cases) or (cases and counts.total() < kills):
            name = list(cases)[number % len(cases)]
            with tempfile.TemporaryDirectory(dir=place) as folder:
                try:
                    chance = random.Random(f"{seed} kill {number}")
                    counts[name] += cases[name](Path(folder), chance)
                except (AssertionError, subprocess.TimeoutExpired) as error:
                    counts[name] += 1
                    failures.append(f"kill case {number}, {name}, seed {seed}: {error}")
            number += 1
    for name, count in sorted(counts.items()):
        _say(f"| SIGKILL | {name} | {count} | byte-identical |")
    return failures


def run_mutations(place: Path, made: Path, mutations: int, seed: int, only: Sequence[str]) -> list[str]:
    """So many spoilt files, of all scenarios in turn; what failed."""
    failures: list[str] = []
    counts: Counter[tuple[str, str]] = Counter()
    scenarios = [one for one in mutation_scenarios(place, made) if _chosen(one.name, only)]
    with examiner() as examine:
        for number in range(mutations if scenarios else 0):
            scenario = scenarios[number % len(scenarios)]
            with tempfile.TemporaryDirectory(dir=place) as folder:
                try:
                    verdict = mutate(scenario, examine, Path(folder), random.Random(f"{seed} mutation {number}"))
                    counts[scenario.name, verdict] += 1
                except AssertionError as error:
                    failures.append(f"mutation case {number}, {scenario.name}, seed {seed}: {error}")
    for scenario in scenarios:
        correct, refused = counts[scenario.name, "correct"], counts[scenario.name, "refused"]
        _say(f"| spoilt | {scenario.name} | {correct + refused} | {refused} refused, {correct} as written |")
    return failures


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _chosen(name: str, only: Sequence[str]) -> bool:
    return not only or any(word in name for word in only)


def _spoil_bytes(path: Path, chance: random.Random) -> None:
    path.write_bytes(spoil_bytes(path.read_bytes(), chance))


def _write_pictures(folder: Path) -> None:
    for split, count in (("train", 20), ("test", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(np.asarray(counting_picture(label, number))).save(
                    folder / split / name / f"{number}.png"
                )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both campaigns, and print a table of what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="scenarios whose name has this word")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    started = time.monotonic()
    _say("| what | scenario | count | result |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        made, place = Path(temporary) / "made", Path(temporary) / "spoilt"
        made.mkdir()
        place.mkdir()
        failures = run_kills(made, chosen.kills, chosen.seed, chosen.only)
        failures += run_mutations(place, made, chosen.mutations, chosen.seed, chosen.only)
    _say("\n".join(("", f"{len(failures)} failures, {time.monotonic() - started:.0f} s", *failures)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
