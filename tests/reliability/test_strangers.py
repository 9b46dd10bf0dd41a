"""A stranger's files on the command line: pipes in the place of files, code in the place of names, odd names."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from demkd.cache.file import read_header
from demkd.untrusted import read_regular, visible
from tests.conftest import CHECKOUT, counting_picture
from tests.reliability import conftest
from tests.reliability.conftest import Command, Run, outcome_of_run, says
from tests.reliability.reseal import reseal


@pytest.fixture
def finished(run: Run, distilling: Command, tmp_path: Path) -> Path:
    """A run of one epoch."""
    run(*distilling(tmp_path / "run", epochs=1), code=0)
    return tmp_path / "run"


def as_pipe(path: Path) -> None:
    """Put a pipe in a file's place; opening it the usual way waits for ever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.timeout(60)
def test_a_pipe_in_a_runs_folder_keeps_nobody_waiting(
    run: Run, distilling: Command, tmp_path: Path, finished: Path
) -> None:
    command = distilling(finished, epochs=1)
    expected = outcome_of_run(finished)
    for name, reason in (("checkpoint.pt", "is damaged"), ("metrics.jsonl", "it is no file")):
        kept = (finished / name).read_bytes()
        as_pipe(finished / name)
        says(run(*command), reason)
        (finished / name).unlink()
        (finished / name).write_bytes(kept)
    for name in ("checkpoint.pt.creating", "metrics.jsonl.creating", "student.safetensors.creating", "run.lock"):
        as_pipe(finished / name)
    run(*command, code=0)
    assert outcome_of_run(finished) == expected
    as_pipe(finished / "metrics.jsonl")
    says(run("compare", finished), "metrics.jsonl: [Errno 22] it is no file")
    as_pipe(finished / "recipe.toml")
    says(run(*command), "recipe.toml cannot be read ([Errno 22] it is no file")
    says(run("compare", finished), "recipe.toml: [Errno 22] it is no file")
    says(run("distill", "--recipe", finished / "recipe.toml", "--out", tmp_path / "new"), "it is no file")
    out = tmp_path / "out.safetensors"
    says(
        run("export", finished, "--format", "safetensors", "--out", out, "--quiet"), "has no recipe that names its data"
    )


@pytest.mark.timeout(60)
def test_a_pipe_where_a_cache_is_made_is_replaced(run: Run, caching: Command, tmp_path: Path) -> None:
    for name in ("a.h5.creating", "weights.h5.creating"):
        as_pipe(tmp_path / name)
    run(*caching(tmp_path, views=1, features="none"), code=0)
    run("inspect", tmp_path, code=0)
    as_pipe(tmp_path / ".page.html.writing")
    run("inspect", tmp_path, "--html", tmp_path / "page.html", code=0)


def test_only_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert read_regular(tmp_path / "file") == b"x"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="it is no file"):
            read_regular(path)


NAMES = ("a\x1b[31mred", "b\u202egnp", "c\x9b5mblink")  # ESC, a mark that turns the direction of text, C1's own ESC
UNSEEN = ("\x1b", "\u202e", "\x9b")


@pytest.fixture(scope="module")
def odd_names(run: Run, teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders and classes called what a terminal would obey: data, a cache, two runs."""
    folder = tmp_path_factory.mktemp("odd") / NAMES[0]
    for split, count in (("train", 8), ("test", 2)):
        for label, name in enumerate(NAMES):
            (folder / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(counting_picture(label, number))
                picture.save(folder / "data" / split / name / f"{number}.png")
    run(*conftest.caching(folder / "data", teachers, folder / "cache", views=2, features="none"), code=0)
    (folder / "data2").symlink_to("data")
    for data, out in (("data", "run0"), ("data2", "run1")):
        run("train", "resnet8", "--quiet", "--data", folder / data, "--epochs", 1, "--out", folder / out, code=0)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "inspect cache",
        "inspect cache --by-class",
        "inspect cache --by-class --csv",
        "inspect cache --uncertain 3 --csv",
        "inspect cache --sample 1",
        "inspect nowhere",
        "verify cache",
        "compare run0 run1",
        "compare run0 run1 --format markdown",
        "compare run0 run1 --format csv",
        "compare run0 run1 --baseline nowhere",
        "evaluate run0 --data data",
        "train resnet8 --data data --epochs 1 --out run2",
        "cache-teachers --data data --teacher x=resnet8@run0/student.safetensors --views 2 --out new --dry-run",
        "export run0 --data data --format safetensors --out exported.safetensors",
        "train resnet8 --data nowhere --out x",
    ],
)
def test_no_name_speaks_to_the_terminal(run: Run, odd_names: Path, command: str) -> None:
    name, *words = command.split()
    paths = {"cache", "nowhere", "run0", "run1", "run2", "data", "new", "exported.safetensors"}
    outcome = run(name, *(odd_names / word if word in paths else word for word in words))
    printed = outcome.stdout + outcome.stderr
    assert not any(mark in printed for mark in UNSEEN), printed
    folded = ("inspect cache", "inspect cache --by-class", "inspect cache --sample 1", "compare run0 run1")
    if command not in folded:
        assert "\\x1b[31mred" in printed


def test_no_name_speaks_from_a_page(run: Run, odd_names: Path) -> None:
    run("inspect", odd_names / "cache", "--html", odd_names / "cache.html", "--data", odd_names / "data", code=0)
    run("compare", odd_names / "run0", odd_names / "run1", "--html", odd_names / "runs.html",
        "--plot", odd_names / "runs.svg", code=0)  # fmt: skip
    for file in ("cache.html", "runs.html", "runs.svg"):
        page = (odd_names / file).read_text()
        assert not any(mark in page for mark in UNSEEN)
    assert "b\\u202egnp" in (odd_names / "cache.html").read_text()


def test_what_is_spelt_out_and_what_is_left() -> None:
    """Words in any script, with their accents and joiners, lines and tabs stay."""
    kept = "Käfer 甲虫 خنفساء\u200c🐞 a\tb\nc"
    assert visible(kept) == kept
    assert visible("a\x1b[0m\r\x07\x7f\x85\u2066\udc80") == "a\\x1b[0m\\r\\x07\\x7f\\x85\\u2066\\udc80"


@pytest.mark.parametrize("command", [["networks"], ["inspect", "cache", "--json"], ["--help"]])
def test_output_that_nobody_takes_is_one_sentence(pristine_cache: Path, command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, str(CHECKOUT / "cli.py"), *command],
            cwd=pristine_cache.parent, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    sentence = "error: the output cannot be written (No space left on device): give it a place with room"
    assert " ".join(result.stderr.split()) == sentence
    assert result.returncode == 1


def test_a_link_that_leads_nowhere_is_said_to_be_one(
    run: Run, caching: Command, picture_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    reasons = {
        "loop": "Too many levels of symbolic links",
        "dangling": "dangling is a link that leads nowhere: remove it, or choose another folder (--out)",
    }
    for name, reason in reasons.items():
        command = caching(tmp_path / name, views=1, features="none")
        says(run(*command), reason)
    says(run("train", "resnet8", "--data", picture_folder, "--quiet", "--out", tmp_path / "loop"), "leads nowhere")
    run(*command, "--dry-run", code=0)


def test_a_null_character_in_a_recipe_is_refused(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('data = "digits"\nstudent = "resnet8"\ncache = "a\\u0000b"\n')
    says(run("distill", "--recipe", recipe, "--out", tmp_path / "x"), "gives cache a value of the wrong kind")
    recipe.write_text(recipe.read_text() + "[runs.a]\nseed = 1\n")
    says(run("sweep", recipe, "--out", tmp_path / "x"), "has cache = 'a\\x00b': give a text or a number")


def test_a_deeply_nested_recipe_is_one_sentence(run: Run, finished: Path, tmp_path: Path) -> None:
    (finished / "recipe.toml").write_text(f"data = {'[' * 3000}\n")
    command = ("export", finished, "--format", "safetensors", "--out", tmp_path / "x", "--quiet")
    says(run(*command), "has no recipe that names its data")


def test_forged_facts_of_a_network_are_one_sentence(run: Run, picture_folder: Path, finished: Path) -> None:
    """NaN and infinity give the logits of no picture; a deviation of 0 divides by it."""
    state = load_file(finished / "student.safetensors")
    facts = {"network": "resnet8", "class_names": ["ant", "bee", "cat"], "mean": [0, 0, 0], "std": [1, 1, 1]}
    for name, value in (("mean", float("nan")), ("mean", float("inf")), ("std", 0), ("std", float("inf"))):
        forged = json.dumps({**facts, name: [1, 1, value]})
        save_file(state, finished / "student.safetensors", metadata={"demkd": forged})
        command = ("evaluate", finished, "--data", picture_folder, "--quiet")
        says(run(*command), f"has a strange {name}: get it again")
        typed = f"0,0,0/1,1,{value}" if name == "std" else f"0,0,{value}/1,1,1"
        says(run(*command, "--normalise", typed), "cannot be: give finite numbers")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 2.0])
def test_forged_weights_are_one_sentence(run: Run, cache: Path, value: float) -> None:
    file = cache / "weights.h5"
    place = read_header(file).contents["weights"].offset
    data = bytearray(file.read_bytes())
    data[place : place + 4] = np.float32(value).tobytes()
    file.write_bytes(data)
    assert reseal(file)
    for option in ([], ["--sample", 0], ["--by-class"], ["--json"]):
        says(run("inspect", cache, *option), "weights.h5 does not hold what it should")


def test_an_unknown_width_is_no_width_of_nothing(pristine_cache: Path) -> None:
    command = [sys.executable, str(CHECKOUT / "cli.py"), "inspect", str(pristine_cache)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "0"}, timeout=60)
    assert "2 teachers" in result.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("when", [0.15, 2.5])
def test_a_signal_ends_in_a_sentence_from_the_first_moments_on(
    picture_folder: Path, tmp_path: Path, number: signal.Signals, code: int, when: float
) -> None:
    process = subprocess.Popen(
        [sys.executable, str(CHECKOUT / "cli.py"), "train", "resnet8", "--data", str(picture_folder),
         "--epochs", "9999", "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    time.sleep(when)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    word = "interrupted" if number is signal.SIGINT else "ended by SIGTERM"
    assert errors.endswith(f"error: {word}; run the same command to resume\n")
    assert process.returncode == code
