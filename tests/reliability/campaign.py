"""Kills and spoilt files by the hundred, over everything that is kept: `python -m tests.reliability.campaign`.

    python -m tests.reliability.campaign --kills 200 --mutations 10000 [--only WORD ...] [--seed N]

`scenarios.py` has what is killed and what is spoilt. The exit code is 1 if a case failed, and the cases are printed: a
case's number and the seed repeat it.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.conftest import write_picture_folder
from tests.dataset.photos import write_photos
from tests.reliability import scenarios as s
from tests.reliability.conftest import write_teacher
from tests.reliability.fork_server import ForkServer
from tests.reliability.test_kill_processes import kill_some, to_the_end, training
from tests.reliability.test_sharing import KillsOfTwo, write_blocks

Case = Callable[[Path, random.Random], tuple[str, int]]  # an empty folder, chance -> a result, and how many of them
EPOCHS_OF_RANKS = 16


def make_cases(
    place: Path, server: ForkServer, chosen: Callable[[str], bool], environment: dict[str, str]
) -> tuple[dict[str, Case], dict[str, Case]]:
    """The chosen scenarios by name: what is killed, and what is spoilt."""
    images, photos = write_picture_folder(place / "images"), write_photos(place / "photos", per_class=8)
    for seed, name in enumerate("ab"):
        write_teacher(place / f"{name}.safetensors", seed=seed)
    cache, photo_cache, trained = place / "cache", place / "photo-cache", place / "trained"
    server.run(*s.caching(images, place, cache, views=4), code=0)
    server.run(*s.caching_photos(photos, place, photo_cache), code=0)
    server.run(*s.distilling(images, cache, trained, epochs=3), code=0)

    def one_process(kills: s.Kills, folder: Path, chance: random.Random) -> tuple[str, int]:
        return "byte-identical", kills.kill(folder / "out", kills.random_moments(chance, 3))

    def two_processes(kills: KillsOfTwo, folder: Path, chance: random.Random) -> tuple[str, int]:
        return "byte-identical", kills.kill(folder / "out", chance)

    def ranks(expected: object, folder: Path, chance: random.Random) -> tuple[str, int]:
        command = training(images, cache, folder, epochs=EPOCHS_OF_RANKS)
        killed = kill_some(command, folder, chance, kills=3, epochs=EPOCHS_OF_RANKS, **environment)
        assert s.outcome_of_run(folder) == expected, "another student than that of ranks that nobody killed"
        return "byte-identical", killed

    def spoilt(scenario: s.MutationScenario, folder: Path, chance: random.Random) -> tuple[str, int]:
        return s.mutate(scenario, server, folder, chance.choice(scenario.ways), chance), 1

    killed: dict[str, Case] = {
        one.name: partial(one_process, s.Kills(one, server, place / f"whole {one.name}"))
        for one in s.kill_scenarios(images, photos, place, cache, photo_cache)
        if chosen(one.name)
    }
    if chosen("shards by two processes"):
        kills = KillsOfTwo(server, write_blocks(place / "blocks"), place / "whole shards")
        killed["shards by two processes"] = partial(two_processes, kills)
    if chosen("torchrun: a rank of two"):
        whole = place / "whole ranks"
        to_the_end(training(images, cache, whole, epochs=EPOCHS_OF_RANKS), **environment)
        killed["torchrun: a rank of two"] = partial(ranks, s.outcome_of_run(whole))
    mutations = s.mutation_scenarios(place / "pristine", server, photos, photo_cache, trained)
    return killed, {one.name: partial(spoilt, one) for one in mutations if chosen(one.name)}


def run_cases(what: str, cases: dict[str, Case], place: Path, count: int, seed: int) -> list[str]:
    """Cases of all scenarios in turn, each once at least, until there were so many results; prints them.

    Returns:
        The failed cases.
    """
    results: dict[str, Counter[str]] = {name: Counter() for name in cases}
    failures: list[str] = []
    number = 0
    while number < len(cases) or (cases and sum(counter.total() for counter in results.values()) < count):
        name = list(cases)[number % len(cases)]
        with tempfile.TemporaryDirectory(dir=place) as folder:
            try:
                result, times = cases[name](Path(folder), random.Random(f"{seed} {what} {number}"))
            except (AssertionError, subprocess.TimeoutExpired) as error:
                result, times = "FAILED", 1
                failures.append(f"{what} case {number}, {name}, seed {seed}: {error}")
        results[name][result] += times
        number += 1
    for name, counter in results.items():
        say(f"| {what} | {name} | {', '.join(f'{times} {result}' for result, times in sorted(counter.items()))} |")
    return failures


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="scenarios whose name has this word")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    started = time.monotonic()
    say("| what | scenario | results |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        environment = {"XDG_CACHE_HOME": str(place / "kept")}
        with ForkServer(**environment) as server:
            killed, spoilt = make_cases(place, server, lambda name: any(w in name for w in given.only), environment)
            failures = run_cases("SIGKILL", killed, place, given.kills, given.seed)
            failures += run_cases("spoilt", spoilt, place, given.mutations, given.seed)
    say("\n".join(("", f"{len(failures)} failures, {time.monotonic() - started:.0f} s", *failures)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
