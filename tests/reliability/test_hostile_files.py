"""Whatever lies where a cache, a recipe or a checkpoint should: one sentence, or exactly what was written."""

import os
import random
from pathlib import Path

import pytest
import torch

from demkd.cache import CacheDamagedError, open_cache
from demkd.config import read_recipe
from demkd.errors import UserError
from demkd.pipeline.runs import RunFolder
from demkd.teachers import read_checkpoint
from tests.cache.counting import fill, shape
from tests.reliability.conftest import Command, Run, attempt
from tests.reliability.fork_server import ForkServer
from tests.reliability.mutations import flip_bits, overwrite_bytes, truncate
from tests.reliability.scenarios import SPOILT, MutationScenario, mutate, mutation_scenarios, write_pristine
from tests.teachers.test_checkpoint import Runs


@pytest.fixture(scope="module")
def scenarios(
    run: Run,
    server: ForkServer,
    distilling: Command,
    photos: Path,
    photo_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, MutationScenario]:
    place = tmp_path_factory.mktemp("spoilt")
    run(*distilling(place / "trained", epochs=3), code=0)
    made = mutation_scenarios(place / "pristine", server, photos, photo_cache, place / "trained")
    return {scenario.name: scenario for scenario in made}


def test_a_sound_cache_is_correct_and_another_one_is_not(server: ForkServer, tmp_path: Path) -> None:
    """Other values with correct checksums, or another digest, are what the examiner must never accept."""
    pristine = write_pristine(tmp_path / "pristine")
    assert server.examine(pristine, verify=True) == "correct"
    assert server.examine(pristine, kind="cache", expected="another digest").startswith("failure: read as ")
    fill(tmp_path / "other", shape(stage3=(4,)), number=3)
    assert server.examine(tmp_path / "other").startswith("failure ")


@pytest.mark.parametrize("name", SPOILT)
def test_hostile_files(server: ForkServer, scenarios: dict[str, MutationScenario], tmp_path: Path, name: str) -> None:
    """Each way to spoil a file, once or twice."""
    for way in scenarios[name].ways:
        for seed in range(2 if name == "dense cache" else 1):
            mutate(scenarios[name], server, tmp_path, way, random.Random(f"{way.__name__} -{seed}"))


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link", "device"])
def test_a_cache_file_that_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.00001-of-00001.h5"
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


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, shape())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CacheDamagedError, match=r"a\.00001-of-00001\.h5 cannot be read: Permission denied"):
        open_cache(tmp_path)


RECIPE = b"""data = "digits"
student = "resnet8"
epochs = 3
learning_rate = 0.05
schedule = "step"
nesterov = true
normalize = ["cifar10"]

[sources]
pixels_sha256 = "ab"
"""


def spoil_text(data: bytes, chance: random.Random) -> bytes:
    """Flip, cut, double or replace a part, or write an absurd value."""
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
    for seed in range(300):
        path.write_bytes(spoil_text(RECIPE, random.Random(seed)))
        found = attempt(lambda: read_recipe(path))
        if isinstance(found, UserError):
            assert "\n" not in str(found)
            refused += 1
        else:
            assert isinstance(found, dict)
    assert 75 < refused < 300


def test_hostile_recipes_on_the_command_line_are_one_sentence(run: Run, tmp_path: Path) -> None:
    """Values of the wrong kind are valid TOML; the command line refuses them, and nothing is trained."""
    path = tmp_path / "recipe.toml"
    for seed in range(15):
        path.write_bytes(spoil_text(RECIPE.replace(b'"digits"', b'"no such data"'), random.Random(seed)))
        outcome = run("distill", "--recipe", path, "--out", tmp_path / "run", "--cache", tmp_path / "cache", "--quiet")
        assert outcome.code in (1, 2), f"seed {seed}: {outcome.stdout}{outcome.stderr}"
        assert "rror: " in outcome.stderr


def small_state() -> dict[str, object]:
    torch.manual_seed(0)
    return {"epoch": 3, "student": {"weight": torch.randn(3, 2)}, "optimizer": {"lr": 0.1}}


def test_every_damaged_checkpoint_of_a_run_is_refused(tmp_path: Path) -> None:
    """Every altered byte is found, also those that a ZIP archive's checksums leave out: sizes, names, places."""
    folder = RunFolder(tmp_path)
    folder.save_checkpoint(small_state())
    data = folder.checkpoint.read_bytes()
    altered = [data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :] for place in range(len(data))]
    for spoilt in [*altered, *(data[:size] for size in range(0, len(data), 97))]:
        folder.checkpoint.write_bytes(spoilt)
        found = attempt(folder.load_checkpoint)
        assert str(found) == f"{folder.checkpoint} is damaged: remove it to start the run anew"
    torch.save(small_state(), folder.checkpoint)  # an archive without the seal
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged: remove it to start the run anew"):
        folder.load_checkpoint()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_hostile_checkpoints_of_teachers_are_refused_or_tensors(tmp_path: Path, teachers: Path, suffix: str) -> None:
    path = tmp_path / f"teacher.{suffix}"
    data = (teachers / "a.safetensors").read_bytes()
    if suffix == "pt":
        torch.save(read_checkpoint(teachers / "a.safetensors").state, path)
        data = path.read_bytes()
    for seed in range(100):
        chance = random.Random(seed)
        head = len(data) if seed % 2 else 4000
        path.write_bytes(data[:head])
        chance.choice([flip_bits, overwrite_bytes, truncate])(path, chance)
        path.write_bytes(path.read_bytes() + data[head:])
        found = attempt(lambda: read_checkpoint(path))
        if isinstance(found, UserError):
            assert str(path) in str(found)
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in found.state.values())


def test_the_checkpoint_of_a_run_never_runs_code(tmp_path: Path) -> None:
    """tests/teachers/test_checkpoint.py has checkpoints of teachers."""
    RunFolder(tmp_path).save_checkpoint({"epoch": 1, "student": Runs(tmp_path / "ran")})  # sealed, as its author could
    with pytest.raises(UserError):
        RunFolder(tmp_path).load_checkpoint()
    assert not (tmp_path / "ran").exists()
