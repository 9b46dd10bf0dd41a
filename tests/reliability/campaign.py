"""Kills and hostile files by the hundred, over everything that is kept: `python -m tests.reliability.campaign`.

    python -m tests.reliability.campaign --kills 200 --mutations 10000 [--only WORD ...] [--seed N]

`kill_scenarios.py` has what is killed, `mutation_scenarios.py` what is spoilt. Ends with 1 and the cases if any failed;
a case's number and the seed make it again.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.reliability.conftest import distilling, examiner, one_by_one, stage_runners
from tests.reliability.kill_scenarios import kill_cases
from tests.reliability.mutation_scenarios import mutate, mutation_scenarios


def run_kills(place: Path, kills: int, seed: int, only: Sequence[str]) -> list[str]:
    """Cases of all scenarios in turn, one of each at least, until there were so many kills; what failed."""
    failures: list[str] = []
    counts: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    environment = {"XDG_CACHE_HOME": str(place / "kept")}
    with stage_runners(**environment) as together:
        run = one_by_one(together)
        cases = {name: case for name, case in kill_cases(place, together, environment).items() if _chosen(name, only)}
        shutil.rmtree(place / "trained", ignore_errors=True)
        run(*distilling(place / "pictures", place / "cache", place / "trained", epochs=1), code=0)
        number = 0
        while number < len(cases) or (cases and counts.total() + failed.total() < kills):
            name = list(cases)[number % len(cases)]
            with tempfile.TemporaryDirectory(dir=place) as folder:
                try:
                    chance = random.Random(f"{seed} kill {number}")
                    counts[name] += cases[name](Path(folder), chance)
                except (AssertionError, subprocess.TimeoutExpired) as error:
                    failed[name] += 1
                    failures.append(f"kill case {number}, {name}, seed {seed}: {error}")
            number += 1
    for name in sorted(counts | failed):
        _say(f"| SIGKILL | {name} | {counts[name]} | byte-identical{_failed(failed[name])} |")
    return failures


def run_mutations(place: Path, made: Path, mutations: int, seed: int, only: Sequence[str]) -> list[str]:
    """So many spoilt files, of all scenarios in turn; what failed."""
    failures: list[str] = []
    counts: Counter[tuple[str, str]] = Counter()
    failed: Counter[str] = Counter()
    scenarios = [one for one in mutation_scenarios(place, made) if _chosen(one.name, only)]
    with examiner() as examine:
        for number in range(mutations if scenarios else 0):
            scenario = scenarios[number % len(scenarios)]
            with tempfile.TemporaryDirectory(dir=place) as folder:
                try:
                    verdict = mutate(scenario, examine, Path(folder), random.Random(f"{seed} mutation {number}"))
                    counts[scenario.name, verdict] += 1
                except AssertionError as error:
                    failed[scenario.name] += 1
                    failures.append(f"mutation case {number}, {scenario.name}, seed {seed}: {error}")
    for scenario in scenarios:
        correct, refused = counts[scenario.name, "correct"], counts[scenario.name, "refused"]
        _say(
            f"| spoilt | {scenario.name} | {correct + refused} | {refused} refused, {correct} as written"
            f"{_failed(failed[scenario.name])} |"
        )
    return failures


def _failed(count: int) -> str:
    return f" and {count} FAILED" if count else ""


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _chosen(name: str, only: Sequence[str]) -> bool:
    return not only or any(word in name for word in only)


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
