"""A stranger's files on the command line: pipes in the place of files, control characters in names, forged values."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demkd.cache.format import read_header
from demkd.cli import main
from demkd.errors import read_regular, visible
from demkd.pipeline.runs import RunFolder
from tests.conftest import CHECKOUT, counting_picture
from tests.reliability import scenarios
from tests.reliability.conftest import Command, Run, says
from tests.reliability.mutations import reseal
from tests.reliability.scenarios import outcome_of_run


def as_pipe(path: Path) -> None:
    """Put a pipe in a file's place; opening it the usual way waits for ever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.timeout(60)
def test_a_pipe_in_a_run_folder_never_blocks(run: Run, distilling: Command, tmp_path: Path) -> None:
    finished = tmp_path / "run"
    command = distilling(finished, epochs=1)
    run(*command, code=0)
    expected = outcome_of_run(finished)
    for name, reason in (("checkpoint.pt", "is damaged"), ("metrics.jsonl", "not a regular file")):
        kept = (finished / name).read_bytes()
        as_pipe(finished / name)
        says(run(*command), reason)
        (finished / name).unlink()
        (finished / name).write_bytes(kept)
    as_pipe(finished / "run.lock")
    says(run(*command), "run.lock is no regular file: remove it")
    (finished / "run.lock").unlink()
    for name in ("checkpoint.pt.creating", "metrics.jsonl.creating", "student.safetensors.creating"):
        as_pipe(finished / name)
    run(*command, code=0)
    assert outcome_of_run(finished) == expected
    as_pipe(finished / "metrics.jsonl")
    says(run("compare", finished), "metrics.jsonl: not a regular file")
    as_pipe(finished / "recipe.toml")
    says(run(*command), "recipe.toml cannot be read ([Errno 22] not a regular file")
    says(run("compare", finished), "recipe.toml: not a regular file")
    says(run("distill", "--recipe", finished / "recipe.toml", "--out", tmp_path / "new"), "not a regular file")
    out = tmp_path / "out.safetensors"
    says(
        run("export", finished, "--format", "safetensors", "--out", out, "--quiet"), "has no recipe that names its data"
    )


@pytest.mark.timeout(60)
def test_a_pipe_where_a_cache_is_made_is_replaced(run: Run, caching: Command, tmp_path: Path) -> None:
    for name in ("a.00001-of-00001.h5.creating", "weights.h5.creating"):
        as_pipe(tmp_path / name)
    run(*caching(tmp_path, views=1, features="none"), code=0)
    run("inspect", tmp_path, code=0)
    as_pipe(tmp_path / "page.html.creating")
    run("inspect", tmp_path, "--html", tmp_path / "page.html", code=0)


def test_only_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert read_regular(tmp_path / "file") == b"x"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            read_regular(path)


NAMES = ("a\x1b[31mred", "b\u202egnp", "c\x9b5mblink")  # ESC, a mark that turns the direction of text, C1's own ESC
UNSEEN = ("\x1b", "\u202e", "\x9b")


@pytest.fixture(scope="module")
def odd_names(run: Run, teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a cache and two runs whose folders and classes have control characters in their names."""
    folder = tmp_path_factory.mktemp("odd") / NAMES[0]
    for split, count in (("train", 8), ("test", 2)):
        for label, name in enumerate(NAMES):
            (folder / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(counting_picture(label, number))
                picture.save(folder / "data" / split / name / f"{number}.png")
    run(*scenarios.caching(folder / "data", teachers, folder / "cache", views=2, features="none"), code=0)
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
        "cache-teachers --data data --teacher run0 --views 2 --out new --dry-run",
        pytest.param("export run0 --data data --format safetensors --out exported.safetensors", marks=pytest.mark.slow),
        "train resnet8 --data nowhere --out x",
    ],
)
def test_no_control_character_reaches_the_terminal(run: Run, odd_names: Path, command: str) -> None:
    name, *words = command.split()
    paths = {"cache", "nowhere", "run0", "run1", "run2", "data", "new", "exported.safetensors"}
    outcome = run(name, *(odd_names / word if word in paths else word for word in words))
    printed = outcome.stdout + outcome.stderr
    assert not any(mark in printed for mark in UNSEEN), printed
    folded = ("inspect cache", "inspect cache --by-class", "inspect cache --sample 1", "compare run0 run1")
    if command not in folded:
        assert "\\x1b[31mred" in printed.replace("\\\\x1b\\[", "\\x1b["), "Markdown escapes twice"


def test_no_control_character_reaches_a_page(run: Run, odd_names: Path) -> None:
    run("inspect", odd_names / "cache", "--html", odd_names / "cache.html", "--data", odd_names / "data", code=0)
    run("compare", odd_names / "run0", odd_names / "run1", "--html", odd_names / "runs.html",
        "--plot", odd_names / "runs.svg", code=0)  # fmt: skip
    for file in ("cache.html", "runs.html", "runs.svg"):
        page = (odd_names / file).read_text()
        assert not any(mark in page for mark in UNSEEN)
    assert "b\\u202egnp" in (odd_names / "cache.html").read_text()


def test_only_control_characters_are_escaped() -> None:
    """Words in any script, with their accents and joiners, lines and tabs stay."""
    kept = "Käfer 甲虫 خنفساء\u200c🐞 a\tb\nc"
    assert visible(kept) == kept
    assert visible("a\x1b[0m\r\x07\x7f\x85\u2066\udc80") == "a\\x1b[0m\\r\\x07\\x7f\\x85\\u2066\\udc80"


@pytest.mark.parametrize(
    "command", [pytest.param(["networks"], marks=pytest.mark.slow), ["inspect", "cache", "--json"], ["--help"]]
)
def test_output_to_a_full_device_is_one_sentence(pristine_cache: Path, command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, str(CHECKOUT / "cli.py"), *command],
            cwd=pristine_cache.parent, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    sentence = "error: the output cannot be written (No space left on device): free some space"
    assert " ".join(result.stderr.split()) == sentence
    assert result.returncode == 1


def test_a_broken_symlink_is_named_as_such(run: Run, caching: Command, picture_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    reasons = {
        "loop": "Too many levels of symbolic links",
        "dangling": "dangling is a broken symlink: remove it, or choose another folder (--out)",
    }
    for name, reason in reasons.items():
        command = caching(tmp_path / name, views=1, features="none")
        says(run(*command), reason)
    says(
        run("train", "resnet8", "--data", picture_folder, "--quiet", "--out", tmp_path / "loop"), "is a broken symlink"
    )
    run(*command, "--dry-run", code=0)


def test_a_null_character_in_a_recipe_is_refused(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('data = "digits"\nstudent = "resnet8"\ncache = "a\\u0000b"\n')
    says(run("distill", "--recipe", recipe, "--out", tmp_path / "x"), "gives cache a value of the wrong kind")
    recipe.write_text(recipe.read_text() + "[runs.a]\nseed = 1\n")
    says(run("sweep", recipe, "--out", tmp_path / "x"), "gives cache a value of the wrong kind")


def test_a_run_that_was_altered_is_not_read_again(
    run: Run, distilling: Command, caching: Command, picture_folder: Path, tmp_path: Path
) -> None:
    """Its top-1 in the first line, and a weight of its student; a run of an earlier version has no digests."""
    folder = tmp_path / "run"
    command = distilling(folder, epochs=2)
    run(*command, code=0)
    metrics, student = folder / "metrics.jsonl", folder / "student.safetensors"
    lines = metrics.read_bytes()
    first, second = map(json.loads, lines.splitlines())
    metrics.write_bytes(lines.replace(f'"test_top1": {first["test_top1"]}'.encode(), b'"test_top1": 0.9', 1))
    says(run("compare", folder), "(metrics.jsonl: line 1, or recipe.toml, was changed after it was written)")
    says(run(*command), "metrics.jsonl is damaged (line 1, or recipe.toml, was changed after it was written)")
    plain = [{name: value for name, value in line.items() if name != "sha256"} for line in (first, second)]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in plain))
    run("compare", folder, code=0)
    run(*command, code=0)

    data = bytearray(student.read_bytes())
    data[-1] ^= 1
    student.write_bytes(data)
    changed = "student.safetensors was changed after it was written, its digest says: get it again"
    says(run("evaluate", folder, "--data", picture_folder, "--quiet"), changed)
    says(run("export", folder, "--format", "safetensors", "--out", tmp_path / "x", "--quiet"), changed)
    teacher = caching(tmp_path / "new", views=1, names="")
    says(run(*teacher, "--teacher", folder), changed)
    with safe_open(student, framework="pt") as tensors:
        facts = json.loads(tensors.metadata()["demkd"])
    del facts["sha256"]
    save_file(load_file(student), student, metadata={"demkd": json.dumps(facts)})
    run("evaluate", folder, "--data", picture_folder, "--quiet", code=0)


@pytest.mark.parametrize("value", [float("inf"), -0.5, 2.0])  # test_verify.py has NaN
def test_forged_weights_are_one_sentence(run: Run, cache: Path, value: float) -> None:
    file = cache / "weights.h5"
    place = read_header(file).contents["weights"].offset
    data = bytearray(file.read_bytes())
    data[place : place + 4] = np.float32(value).tobytes()
    file.write_bytes(data)
    assert reseal(file)
    for option in ([], ["--sample", 0], ["--by-class"], ["--json"]):
        says(run("inspect", cache, *option), "weights.h5 does not hold weights")


def test_an_unknown_width_of_the_terminal_is_not_zero(pristine_cache: Path) -> None:
    assert "top-1" in CliRunner(env={"COLUMNS": "0"}).invoke(main, ["inspect", str(pristine_cache)]).stdout


def catches_sigterm(pid: int) -> bool:
    """Whether our handlers are there; Python itself has none for this signal."""
    (mask,) = re.findall(r"^SigCgt:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> signal.SIGTERM - 1 & 1)


@pytest.mark.parametrize(
    ("number", "code", "epochs"),
    [
        (signal.SIGTERM, 143, 0),
        (signal.SIGINT, 130, 1),
        pytest.param(signal.SIGINT, 130, 0, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, 1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_in_a_sentence_from_the_first_moments_on(
    picture_folder: Path, tmp_path: Path, number: signal.Signals, code: int, epochs: int
) -> None:
    """While Python imports what it needs, and after an epoch; the checkpoint is whole."""
    process = subprocess.Popen(
        [sys.executable, str(CHECKOUT / "cli.py"), "train", "resnet8", "--data", str(picture_folder),
         "--epochs", "9999", "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    run_folder = RunFolder(tmp_path / "run")
    while not catches_sigterm(process.pid) or (epochs and not run_folder.checkpoint.exists()):
        time.sleep(0.02)
    for pause in (0.01, 0.03, 0):  # again and again, as torchrun and people do
        process.send_signal(number)
        time.sleep(pause)
    _, errors = process.communicate(timeout=60)
    word = "interrupted" if number is signal.SIGINT else "ended by SIGTERM"
    assert errors.endswith(f"error: {word}; run the same command to resume\n")
    assert process.returncode == code
    assert not epochs or run_folder.load_checkpoint()
