"""The command line as a user meets it: it works end to end, says what is wrong in one sentence, and loses nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from demkd.cli import main
from tests.conftest import CHECKOUT, Cli


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """Two digit teachers of one epoch, and their cache of 2 views, made by the command line."""
    folder = tmp_path_factory.mktemp("digits")
    for name, seed in (("resnet8", 1), ("vgg8", 2)):
        cli("train", name, "--data", "digits", "--epochs", 1, "--seed", seed, "--out", folder / name)
    cli(
        "cache-teachers", "--data", "digits", "--views", 2, "--out", folder / "cache",
        "--teacher", folder / "resnet8", "--teacher", f"big=vgg8@{folder / 'vgg8' / 'student.safetensors'}",
    )  # fmt: skip
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_whole_pipeline_by_hand(digits: Path, tmp_path: Path, cli: Cli) -> None:
    """cache-teachers, inspect, distill, evaluate: what each prints is what the next one finds."""
    shown = cli("inspect", digits / "cache").stdout
    assert "2 teachers on digits, 1,437 samples x 2 views, 10 classes" in shown
    assert re.search(r"^ big +\d\d\.\d\d% ", shown, re.MULTILINE)
    inspected = json.loads(cli("inspect", digits / "cache", "--json").stdout)
    assert [teacher["name"] for teacher in inspected["teachers"]] == ["big", "resnet8"]
    assert sum(inspected["teachers"][0]["histogram"]) == 2 * 1437
    assert sum(teacher["mean_weight"] for teacher in inspected["teachers"]) == pytest.approx(1)

    sample = json.loads(cli("inspect", digits / "cache", "--sample", 7, "--slot", 1, "--json").stdout)
    assert sample["index"] == 7
    assert all(sum(answer["probabilities"]) <= 1 + 1e-9 for answer in sample["answers"])

    out = tmp_path / "student"
    arguments = ("--data", "digits", "--cache", digits / "cache", "--student", "resnet8", "--epochs", 2, "--out", out)
    run = json.loads(cli("distill", *arguments, "--json").stdout)
    evaluated = json.loads(cli("evaluate", out, "--data", "digits", "--json").stdout)
    assert evaluated["top1"] == pytest.approx(run["test_top1"])
    assert {file.name for file in out.iterdir() if not file.name.startswith("events.")} == {
        "checkpoint.pt", "metrics.jsonl", "recipe.toml", "run.lock", "student.safetensors",
    }  # fmt: skip


def test_a_runs_recipe_makes_the_same_run(digits: Path, tmp_path: Path, cli: Cli) -> None:
    """The resolved recipe of a run fills in everything but the folders."""
    cache = ("--cache", digits / "cache")
    cli("distill", "--data", "digits", *cache, "--student", "resnet8", "--epochs", 1, "--seed", 3,
        "--method", "kd", "--temperature", 2, "--out", tmp_path / "first")  # fmt: skip
    cli("distill", "--recipe", tmp_path / "first" / "recipe.toml", *cache, "--out", tmp_path / "second")
    for name in ("recipe.toml", "student.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_ctrl_c_loses_nothing(digits: Path, tmp_path: Path, cli: Cli) -> None:
    """A real SIGINT in the middle of a run: exit code 130, one sentence, and the same command goes on."""
    out = tmp_path / "run"
    arguments = ["distill", "--data", "digits", "--cache", digits / "cache", "--student", "resnet8", "--epochs", 6,
                 "--out", out]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(CHECKOUT / "cli.py"), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted; run the same command to resume" in stderr
    assert "Traceback" not in stderr
    done = len(metrics.read_text().splitlines())
    assert 1 <= done < 6
    report = json.loads(cli(*arguments, "--json").stdout)
    assert report["resumed_after"] in (done - 1, done)
    assert len(metrics.read_text().splitlines()) == 6


BAD_INPUT: list[tuple[str, list[str], str]] = [
    ("no cache", ["inspect", "{tmp}/nothing"], "there is no cache in .*: make one with cache-teachers"),
    ("no checkpoint", ["cache-teachers", "--data", "digits", "--teacher", "resnet8@{tmp}/no.pth", "--out", "{tmp}/c"],
     "there is no file .*no.pth; give a checkpoint file or a finished run folder"),
    ("another network", ["cache-teachers", "--data", "digits", "--teacher", "resnet20@{digits}/resnet8",
     "--out", "{tmp}/c"],
     r"does not fit the network: .*layer1\.1\.bn1\.bias is missing; .* and \d+ more"),
    ("a teacher without checkpoint", ["cache-teachers", "--data", "digits", "--teacher", "resnet8", "--out", "{tmp}/c"],
     r"is no run folder: write \[NAME=\]NETWORK@CHECKPOINT"),
    ("two teachers of one name", ["cache-teachers", "--data", "digits", "--teacher", "{digits}/vgg8", "--teacher",
     "{digits}/vgg8", "--out", "{tmp}/c"], "two teachers are called vgg8"),
    ("a teacher called weights", ["cache-teachers", "--data", "digits", "--teacher", "weights={digits}/vgg8", "--out",
     "{tmp}/c"], "a teacher cannot be called 'weights'"),
    ("no views", ["cache-teachers", "--data", "digits", "--teacher", "{digits}/vgg8", "--views", "0", "--out",
     "{tmp}/c"],
     "--views is 0, but a picture has 9 different views: choose 1 to 9"),
    ("too many views", ["cache-teachers", "--data", "digits", "--teacher", "{digits}/vgg8", "--views", "10", "--out",
     "{tmp}/c"], "--views is 10, but a picture has 9 different views: choose 1 to 9"),
    ("more views than cached", ["distill", "--data", "digits", "--cache", "{digits}/cache", "--student", "resnet8",
     "--views", "3", "--out", "{tmp}/r"], "--views is 3, but the cache in .* has 2: choose 1 to 2"),
    ("an unknown method", ["distill", "--data", "digits", "--cache", "{digits}/cache", "--student", "resnet8",
     "--method", "magic", "--out", "{tmp}/r"], "there is no method 'magic': choose one of ce, kd, kd-ls, dkd"),
    ("an unknown network", ["distill", "--data", "digits", "--cache", "{digits}/cache", "--student", "resnet9", "--out",
     "{tmp}/r"], "resnet9"),
    ("an unknown teacher", ["distill", "--data", "digits", "--cache", "{digits}/cache", "--student", "resnet8",
     "--teachers", "resnet8,huge", "--out", "{tmp}/r"], "there is no teacher 'huge' in .*; it has big, resnet8"),
    ("live and cached teachers", ["distill", "--data", "digits", "--online", "--teacher", "{digits}/vgg8", "--student",
     "resnet8", "--teachers", "nosuch", "--out", "{tmp}/r"],
     "--teachers nosuch chooses among a cache's teachers, and the live ones are vgg8: leave it out"),
    ("another view seed", ["distill", "--data", "digits", "--cache", "{digits}/cache", "--student", "resnet8",
     "--view-seed", "5", "--out", "{tmp}/r"], "--view-seed is 5, but the views of the cache in .* were drawn with 0"),
    ("figures of no teacher", ["train", "resnet8", "--data", "digits", "--normalise", "nosuch=imagenet", "--out",
     "{tmp}/r"], r"--normalise nosuch=\.\.\. names no teacher"),
    ("figures of a cached teacher", ["distill", "--data", "digits", "--cache", "{digits}/cache", "--student", "resnet8",
     "--normalise", "big=imagenet", "--out", "{tmp}/r"], r"--normalise big=\.\.\. is for live teachers"),
    ("an unknown data set", ["train", "resnet8", "--data", "mnist", "--out", "{tmp}/r"],
     "no data set or folder 'mnist'"),
    ("an unknown sample", ["inspect", "{digits}/cache", "--sample", "1437"], "there is no sample 1437: .* 0 to 1436"),
    ("an unknown device", ["train", "resnet8", "--data", "digits", "--out", "{tmp}/r", "--device", "tpu9"],
     "there is no device 'tpu9'|device 'tpu9' is not supported"),
    ("an unknown precision", ["train", "resnet8", "--data", "digits", "--out", "{tmp}/r", "--precision", "int3"],
     "there is no precision 'int3': choose auto, float32 or bfloat16"),
    ("odd figures", ["train", "resnet8", "--data", "digits", "--out", "{tmp}/r", "--normalise", "1,2/3"],
     "--normalise 1,2/3 is not understood"),
    ("no run", ["evaluate", "{tmp}", "--data", "digits"], "has no student.safetensors: the run is not finished"),
    ("no recipe", ["distill", "--recipe", "{tmp}/no.toml", "--data", "digits"], "there is no recipe"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"), [case[1:] for case in BAD_INPUT], ids=[case[0] for case in BAD_INPUT]
)
def test_bad_input_is_one_sentence_exit_code_1_and_nothing_written(
    digits: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    before = _contents(digits)
    result = invoke(*(argument.format(tmp=tmp_path, digits=digits) for argument in arguments))
    assert result.exit_code == 1, result.output
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, result.output
    assert re.search(message, said[0]), said[0]
    assert "Traceback" not in result.output
    assert not list(tmp_path.rglob("*.h5*")), "nothing is written"
    assert not list(tmp_path.rglob("recipe.toml"))
    assert _contents(digits) == before


def test_a_class_count_that_does_not_fit_is_said(digits: Path, picture_folder: Path, tmp_path: Path) -> None:
    result = invoke("cache-teachers", "--data", picture_folder, "--teacher", digits / "vgg8", "--out", tmp_path / "c")
    assert result.exit_code == 1
    assert "was trained for 10 classes, and pictures0 has 3" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["distill", "--data", "digits", "--student", "resnet8", "--out", "r"],
        ["distill", "--data", "digits", "--student", "resnet8", "--out", "r", "--cache", "c", "--online"],
        ["distill", "--data", "digits", "--student", "resnet8", "--out", "r", "--cache", "c", "--teacher", "a@b"],
        ["distill", "--data", "digits", "--student", "resnet8", "--out", "r", "--cache", "c", "--views", "all"],
        ["train", "resnet8", "--data", "digits", "--out", "r", "--epochs", "0"],
        ["train", "resnet8", "--out", "r"],
        ["no-such-command"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output


def run_with(tmp_path: Path, command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command line in a process of its own, with variables that torchrun sets, or a user's shell."""
    words = [word.replace("{tmp}", str(tmp_path)) for word in command.split()]
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, str(CHECKOUT / "cli.py"), *words],
        env=own | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "environment", "code", "said"),
    [
        ("networks", {"RANK": "3"}, 0, "resnet20"),
        ("networks", {"RANK": "x", "WORLD_SIZE": "x"}, 0, "resnet20"),
        ("inspect {tmp}", {"RANK": "1", "WORLD_SIZE": "2"}, 2, "inspect works in one process: start it without"),
        ("train resnet8 --data digits --out {tmp}/r", {"RANK": "1", "WORLD_SIZE": "x"}, 1,
         "error: RANK is 1, WORLD_SIZE is x: start the processes with torchrun"),
        ("train resnet8 --data digits --out {tmp}/r", {"RANK": "3"}, 1,
         "error: RANK is 3, WORLD_SIZE is absent: start the processes with torchrun"),
        ("train resnet8", {"RANK": "3"}, 2, "Missing option"),
        ("train resnet8", {"RANK": "1", "WORLD_SIZE": "2"}, 2, ""),
    ],
)  # fmt: skip
def test_only_a_later_rank_of_a_command_for_several_ranks_is_silent(
    tmp_path: Path, command: str, environment: dict[str, str], code: int, said: str
) -> None:
    done = run_with(tmp_path, command, **environment)
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert "Traceback" not in output
    assert said in " ".join(output.split())
    assert said or not output


def test_a_recipe_can_name_teachers(digits: Path, tmp_path: Path, cli: Cli) -> None:
    """A list is a list for an option that is repeated, and separated by commas for one that is not."""
    teachers = [f"{name}={digits / name}" for name in ("resnet8", "vgg8")]
    (tmp_path / "stage-one.toml").write_text(f'data = "digits"\nviews = 1\nteacher = {teachers}\n')
    cli("cache-teachers", "--recipe", tmp_path / "stage-one.toml", "--out", tmp_path / "cache")
    (tmp_path / "stage-two.toml").write_text('data = "digits"\nstudent = "resnet8"\nteachers = ["vgg8", "resnet8"]\n')
    arguments = ("--cache", tmp_path / "cache", "--epochs", 1, "--out", tmp_path / "run")
    cli("distill", "--recipe", tmp_path / "stage-two.toml", *arguments)
    assert 'teachers = [\n    "vgg8",\n    "resnet8",\n]' in (tmp_path / "run" / "recipe.toml").read_text()


def test_an_unknown_option_in_a_recipe_is_refused_with_the_known(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("epochz = 3\n")
    result = invoke("train", "resnet8", "--recipe", tmp_path / "r.toml", "--data", "digits", "--out", tmp_path / "r")
    assert result.exit_code == 1
    assert "has an unknown option 'epochz'; known are " in result.stderr


@pytest.mark.parametrize("command", ["train", "cache-teachers", "inspect", "distill", "evaluate", "demo"])
def test_every_help_text_has_an_example(command: str) -> None:
    help_text = invoke(command, "-h").output
    assert "Example:" in help_text
    assert f"demkd {command}" in help_text


def test_the_environment_names_the_data_where_no_recipe_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMKD_DATA", str(tmp_path / "of-the-environment"))
    out = ("--out", tmp_path / "run")
    assert "of-the-environment" in invoke("train", "resnet8", *out).stderr
    assert "of-the-command" in invoke("train", "resnet8", "--data", tmp_path / "of-the-command", *out).stderr
    (tmp_path / "r.toml").write_text('data = "of-the-recipe"\n')
    result = invoke("train", "resnet8", "--recipe", tmp_path / "r.toml", *out)
    assert "of-the-recipe" in result.stderr
    assert "of-the-environment" not in result.stderr


def test_a_run_begins_with_its_settings_but_not_for_programs(digits: Path, tmp_path: Path) -> None:
    arguments = ("distill", "--data", "digits", "--cache", digits / "cache", "--student", "resnet8", "--epochs", 1,
                 "--method", "kd", "--temperature", 2, "--precision", "float32")  # fmt: skip
    said = invoke(*arguments, "--out", tmp_path / "told").stderr.splitlines()
    (settings,) = (line for line in said if line.startswith("settings: "))
    for pair in ("student resnet8", "method kd", "temperature 2", "batch-size 64", "device cpu", "precision float32"):
        assert f", {pair}, " in f"{settings.replace(': ', ': , ', 1)}, "
    assert "settings" not in invoke(*arguments, "--out", tmp_path / "silent", "--quiet").stderr
    assert "settings" not in invoke(*arguments, "--out", tmp_path / "program", "--json").stderr


@pytest.mark.parametrize(("typed", "offered"), [("demkd ins", "inspect"), ("demkd distill --sched", "--schedule")])
def test_the_tab_key_completes(typed: str, offered: str) -> None:
    """As the page of commands tells shells to ask."""
    code = "import sys; sys.argv = ['demkd']; from demkd.launch import main; main()"
    shell = {"_DEMKD_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        env={**os.environ, **shell},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"plain,{offered}" in result.stdout.splitlines()


@pytest.mark.slow
def test_the_demo_ends_in_a_table_and_the_second_time_trains_nothing(tmp_path: Path, cli: Cli) -> None:
    report = json.loads(cli("demo", "--out", tmp_path / "demo", "--json").stdout)
    assert [run["method"] for run in report["students"]] == ["ce", "kd", "de-mkd"]
    assert min(run["test_top1"] for run in report["students"]) > 0.9
    assert report["cached_passes"] < report["live_passes"]
    again = cli("demo", "--out", tmp_path / "demo")
    assert "student, de-mkd" in again.stdout
    assert "epoch " not in again.stderr
    *_, shown, cost, meaning, look, yours = again.stdout.strip().splitlines()
    for line, word in ((shown, "Shown:"), (cost, "Cost:"), (meaning, "Means:"), (look, "Look:"), (yours, "Yours:")):
        assert line.startswith(word)
    assert "demkd cache-teachers --data FOLDER" in yours


@pytest.mark.slow
def test_the_demo_folds_its_epochs_unless_asked(tmp_path: Path, cli: Cli) -> None:
    folded = cli("demo", "--out", tmp_path / "one").stderr
    assert "epoch " not in folded
    assert "resnet8, de-mkd: 414 steps in " in folded
    told = cli("demo", "--out", tmp_path / "two", "--epoch-lines").stderr.splitlines()
    assert sum(line.startswith("epoch ") for line in told) == 3 * 4 + 3 * 18


def _contents(folder: Path) -> dict[str, Any]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
