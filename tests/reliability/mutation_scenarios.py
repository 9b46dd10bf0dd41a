"""What the campaign spoils: everything that is kept and read again.

A scenario is a folder, files in it, ways to spoil one, and what a reader must get: exactly what was written, or one
sentence. To add one is an entry of the list in `mutation_scenarios`.
"""

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.reliability import mutations as m
from tests.reliability.examiner import DIGESTS
from tests.reliability.test_hostile_files import judge, spoil_bytes, write_pristine

_VERIFIED = 0.02


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


def _spoil_bytes(path: Path, chance: random.Random) -> None:
    path.write_bytes(spoil_bytes(path.read_bytes(), chance))
