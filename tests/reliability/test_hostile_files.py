"""Whatever lies where a cache, a recipe or a checkpoint should: one sentence, or exactly what was written."""

import os
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from demkd.cache import CacheDamagedError, open_cache, write_weights
from demkd.errors import UserError
from demkd.pipeline.recipe import read_recipe
from demkd.pipeline.runs import RunFolder
from demkd.teachers import read_checkpoint
from tests.cache.counting import SAMPLES, fill, fill_shards, shape
from tests.reliability import mutations as m
from tests.reliability.conftest import Run, attempt, examiner

Examine = Callable[[Path], str]

_SLOW_FILES: dict[m.Mutation, int] = {
    m.flip_bits: 500,
    m.flip_a_bit_of_the_header: 300,
    m.overwrite_bytes: 300,
    m.move_bytes: 150,
    m.truncate: 150,
    m.extend: 50,
    m.randomise: 100,
    m.make_foreign: 150,
    m.spoil_contents: 400,
    m.replace_contents: 100,
    m.spoil_provenance: 300,
    m.spoil_hdf5: 100,
}
_VERIFIED = 0.1  # of the others `verify` looks at a share, because it starts a process for HDF5


@pytest.fixture(scope="module", params=[1, 2], ids=["files", "shards"])
def pristine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pristine(tmp_path_factory.mktemp("pristine"), shards=request.param)


def write_pristine(folder: Path, *, shards: int = 1) -> Path:
    """Two counting teachers with weights."""
    for number, name in enumerate("ab"):
        fill_shards(folder, shape(stage3=(4,)), count=shards, teacher=name, number=number)
    halves = np.full((2, 3, SAMPLES), 0.5, np.float32)
    write_weights(folder, open_cache(folder).teachers, halves, weighting="halves")
    return folder


@pytest.fixture(scope="module")
def examine() -> Iterator[Callable[..., str]]:
    """Ask the examiner about a folder."""
    with examiner() as ask:
        yield ask


def judge(verdict: str, case: str) -> str:
    """One of the two things that may happen."""
    kind, _, text = verdict.partition(" ")
    assert kind in ("correct", "refused"), f"{case}: {verdict}"
    assert "\n" not in text.strip(), f"{case}: {text}"
    assert len(text) < 1500, f"{case}: {text[:200]}..."
    return kind


def spoil_and_examine(
    examine: Callable[..., str], pristine: Path, folder: Path, mutation: m.Mutation, seed: int
) -> str:
    """Spoil one file of a copy of the cache, and ask what a reader makes of it."""
    chance = random.Random(f"{mutation.__name__} {seed}")
    names = sorted(file.name for file in pristine.glob("a.*h5"))
    name = chance.choice([*names, *names, "weights.h5"])
    for file in pristine.glob("*.h5"):
        shutil.copyfile(file, folder / file.name)
    mutation(folder / name, chance)
    verify = mutation is m.spoil_hdf5 or chance.random() < _VERIFIED
    return judge(examine(folder, verify=verify), f"{mutation.__name__} of {name}, seed {seed}")


def test_the_examiner_finds_a_sound_cache_correct(examine: Callable[..., str], pristine: Path) -> None:
    assert examine(pristine, verify=True) == "correct"


def test_the_examiner_finds_a_lie(examine: Callable[..., str], tmp_path: Path) -> None:
    """A cache with other values, and correct checksums: what the examiner must never let pass."""
    fill(tmp_path, shape(stage3=(4,)), number=3)
    assert examine(tmp_path).startswith("failure ")


@pytest.mark.parametrize("mutation", _SLOW_FILES, ids=lambda mutation: str(mutation.__name__))
def test_some_hostile_caches(examine: Callable[..., str], pristine: Path, tmp_path: Path, mutation: m.Mutation) -> None:
    for seed in range(-3, 0):
        spoil_and_examine(examine, pristine, tmp_path, mutation, seed)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", _SLOW_FILES, ids=lambda mutation: str(mutation.__name__))
def test_many_hostile_caches(examine: Callable[..., str], pristine: Path, tmp_path: Path, mutation: m.Mutation) -> None:
    """More than 2,000 in all; most are refused, and some mutations hit bytes that mean nothing to our reader."""
    count = _SLOW_FILES[mutation] // (1 if (pristine / "a.h5").exists() else 5)
    kinds = Counter(spoil_and_examine(examine, pristine, tmp_path, mutation, seed) for seed in range(count))
    print(f"{mutation.__name__}: {dict(kinds)}")  # noqa: T201 - `pytest -rP` shows it
    assert kinds["refused"] > 0 or mutation is m.spoil_hdf5


def test_the_slow_suite_has_its_2000_files() -> None:
    assert sum(_SLOW_FILES.values()) >= 2000


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link", "device"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.h5"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError):
        open_cache(tmp_path)


def test_a_file_that_may_not_be_read_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, shape())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CacheDamagedError, match=r"a\.h5 cannot be read: Permission denied"):
        open_cache(tmp_path)


RECIPE = b"""data = "digits"
student = "resnet8"
epochs = 3
learning_rate = 0.05
schedule = "step"
nesterov = true
normalise = ["cifar10"]

[sources]
pixels_sha256 = "ab"
"""


def spoil_text(data: bytes, chance: random.Random) -> bytes:
    """Flip, cut, double or replace a part."""
    spoilt = bytearray(data)
    kind = chance.randrange(5)
    if kind == 0:
        spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del spoilt[chance.randrange(len(spoilt)) :]
    elif kind == 2:
        start = chance.randrange(len(spoilt))
        spoilt[start:start] = spoilt[: chance.randrange(len(spoilt))]
    elif kind == 3:
        lines = data.splitlines()
        at = chance.randrange(len(lines))
        value = chance.choice(
            [b"[1, 2]", b"{a = 1}", b"nan", b"-inf", b"1979-05-27", b"true", b"'x'", b"[" * 4000, b"9" * 5000]
        )
        lines[at] = lines[at].partition(b"=")[0] + b"= " + value
        spoilt = bytearray(b"\n".join(lines))
    else:
        spoilt = bytearray(chance.randbytes(chance.randrange(200)))
    return bytes(spoilt)


def test_hostile_recipes_are_refused_or_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    refused = 0
    for seed in range(400):
        path.write_bytes(spoil_text(RECIPE, random.Random(seed)))
        found = attempt(lambda: read_recipe(path))
        if isinstance(found, UserError):
            assert "\n" not in str(found)
            refused += 1
        else:
            assert isinstance(found, dict)
    assert 100 < refused < 400


def test_hostile_recipes_on_the_command_line_are_one_sentence(run: Run, tmp_path: Path) -> None:
    """Values of the wrong kind get past TOML, and must not get past the command line; nothing is trained."""
    path = tmp_path / "recipe.toml"
    for seed in range(25):
        path.write_bytes(spoil_text(RECIPE.replace(b'"digits"', b'"no such data"'), random.Random(seed)))
        outcome = run("distill", "--recipe", path, "--out", tmp_path / "run", "--cache", tmp_path / "cache", "--quiet")
        assert outcome.code in (1, 2), f"seed {seed}: {outcome.stdout}{outcome.stderr}"
        assert "rror: " in outcome.stderr


def small_state() -> dict[str, object]:
    torch.manual_seed(0)
    return {"epoch": 3, "student": {"weight": torch.randn(50, 20)}, "optimizer": {"lr": 0.1}}


def spoil_bytes(data: bytes, chance: random.Random) -> bytes:
    spoilt = bytearray(data)
    kind = chance.randrange(3)
    if kind == 0:
        for _ in range(chance.choice([1, 8])):
            spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del spoilt[chance.randrange(len(spoilt)) :]
    else:
        start = chance.randrange(len(spoilt))
        spoilt[start : start + 64] = chance.randbytes(64)
    return bytes(spoilt)


def test_hostile_checkpoints_of_runs_are_refused(tmp_path: Path) -> None:
    """A flipped bit in a weight would go unnoticed by PyTorch; here it is found."""
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(small_state())
    data = folder.checkpoint.read_bytes()
    refused = 0
    for seed in range(300):
        folder.checkpoint.write_bytes(spoil_bytes(data, random.Random(seed)))
        found = attempt(folder.load_checkpoint)
        if isinstance(found, UserError):
            assert str(found) == f"{folder.checkpoint} is damaged: remove it to start the run anew"
            refused += 1
    assert refused == 300


def test_every_altered_byte_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    """Also those that a ZIP archive's checksums leave out: sizes, names, the place of a tensor in its storage."""
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(small_state())
    data = folder.checkpoint.read_bytes()
    accepted = []
    for place in range(len(data)):
        folder.checkpoint.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        if not isinstance(attempt(folder.load_checkpoint), UserError):
            accepted.append(place)
    assert accepted == []


def test_a_checkpoint_of_an_older_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    torch.save(small_state(), folder.checkpoint)
    with pytest.raises(UserError, match=r"checkpoint\.pt has no seal, which an older version did not write: finish"):
        folder.load_checkpoint()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_hostile_checkpoints_of_teachers_are_refused_or_tensors(tmp_path: Path, teachers: Path, suffix: str) -> None:
    path = tmp_path / f"teacher.{suffix}"
    data = (teachers / "a.safetensors").read_bytes()
    if suffix == "pt":
        torch.save(read_checkpoint(teachers / "a.safetensors").state, path)
        data = path.read_bytes()
    for seed in range(150):
        chance = random.Random(seed)
        head = spoil_bytes(data[:4000], chance) + data[4000:]
        path.write_bytes(head if chance.random() < 0.5 else spoil_bytes(data, chance))
        found = attempt(lambda: read_checkpoint(path))
        if isinstance(found, UserError):
            assert str(path) in str(found)
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in found.state.values())


class Trap:
    """Unpickling it would run code."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_checkpoint_never_runs_code(tmp_path: Path, how: str) -> None:
    path, proof = tmp_path / "teacher.pt", tmp_path / "proof"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Trap(proof)))
    else:
        torch.save({"model": Trap(proof)}, path)
    with pytest.raises(UserError):
        read_checkpoint(path)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.save_checkpoint({"epoch": 1, "student": Trap(proof)})  # sealed, as its author could
    with pytest.raises(UserError):
        folder.load_checkpoint()
    assert not proof.exists()
