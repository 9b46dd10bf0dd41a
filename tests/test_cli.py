"""The command line as a user meets it: it works end to end, says what is wrong in one sentence, and loses nothing."""

import json
import re
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner, Result

import demkd
from demkd.cli import main
from demkd.options import in_options
from tests.conftest import Cli


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def call(*arguments: object) -> Result:
    """The same, which must end well."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def test_the_whole_pipeline_by_hand(digits: Path, tmp_path: Path) -> None:
    """inspect, distill, evaluate: what each prints is what the next one finds; a run's recipe makes the same run."""
    shown = call("inspect", digits / "cache").stdout
    assert re.search(r"^samples +1437 *$", shown, re.MULTILINE)
    assert re.search(r"^ big +\d\d\.\d\d% ", shown, re.MULTILINE)
    inspected = json.loads(call("inspect", digits / "cache", "--json").stdout)
    assert [row["teacher"] for row in inspected["teachers"]] == ["big", "resnet8"]
    assert demkd.inspect(digits / "cache", teachers="big")["teachers"][0]["top1"] == inspected["teachers"][0]["top1"]
    assert len(demkd.verify(digits / "cache", teachers="big", progress=False).files) == 1
    assert sum(inspected["teachers"][0]["histogram"]) == 2 * 1437
    assert sum(row["weight"] for row in inspected["teachers"]) == pytest.approx(1)

    sample = json.loads(call("inspect", digits / "cache", "--sample", 7, "--view-index", 1, "--json").stdout)
    assert sample["sample"] == 7
    assert all(sum(row["probabilities"]) <= 1 + 1e-9 for row in sample["predictions"])

    first, second = tmp_path / "first", tmp_path / "second"
    arguments = ("--student", "resnet8", "--epochs", 2, "--seed", 3, "--method", "kd", "--temperature", 2)
    trained = call("distill", "--data", "digits", "--cache", digits / "cache", *arguments, "--out", first, "--json")
    assert "settings" not in trained.stderr
    evaluated = json.loads(call("evaluate", first, "--json").stdout)
    assert evaluated["top1"] == pytest.approx(json.loads(trained.stdout)["test_top1"])
    assert {file.name for file in first.iterdir() if not file.name.startswith("events.")} == {
        "checkpoint.pt", "metrics.jsonl", "recipe.toml", "run.lock", "student.safetensors",
    }  # fmt: skip

    recipe = ("--recipe", first / "recipe.toml", "--cache", digits / "cache")  # all but the folders
    distilled = call("distill", *recipe, "--out", second)
    assert distilled.stdout.startswith("resnet8, kd (temperature=2.0), seed 3: test top-1 ")
    lines = distilled.stderr.splitlines()
    for name in ("recipe.toml", "student.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    (settings,) = (line for line in lines if line.startswith("settings: "))
    for pair in ("student resnet8", "method kd", "temperature 2", "batch-size 64", "device cpu"):
        assert f", {pair}, " in f"{settings.replace(': ', ': , ', 1)}, "
    assert ", precision " in settings
    assert ", teachers big, resnet8, views 2, " in settings


def test_fewer_views_than_a_cache_has_are_no_loss(digits: Path) -> None:
    arguments = ("--data", "digits", "--teacher", digits / "resnet8", "--out", digits / "cache")
    shown = call("cache-teachers", *arguments, "--views", 1, "--dry-run").stdout
    assert shown.startswith(f"{digits / 'cache'}: 2 of 9 views of 1,437 samples are there; 1 wanted\n")


def test_a_cache_at_a_url_is_used_as_a_folder_is(digits: Path, tmp_path: Path) -> None:
    call("pack", digits / "cache", "--to", tmp_path / "packed", "--license", "cc-by-4.0", "--quiet")
    assert 'license: "cc-by-4.0"' in (tmp_path / "packed" / "README.md").read_text()
    fsspec.filesystem("memory").put(f"{tmp_path / 'packed'}/", "/digits", recursive=True)
    arguments = ("--data", "digits", "--student", "resnet8", "--epochs", 1, "--out", tmp_path / "run")
    assert "downloading" in call("distill", "--cache", "memory://digits", "--teachers", "big", *arguments).stderr
    facts = call("inspect", "memory://digits", "--json")
    assert "downloading" in facts.stderr, "of the other teacher"
    expected = json.loads(call("inspect", tmp_path / "packed", "--json").stdout)
    assert {**json.loads(facts.stdout), "folder": str(tmp_path / "packed")} == expected
    assert call("verify", "memory://digits").exit_code == 0
    assert (
        "there is no teacher 'x' at memory://digits; it has big, resnet8"
        in invoke("inspect", "memory://digits", "--teachers", "x").stderr
    )


TRAIN, CACHE, DISTILL = (
    "train resnet8 --data digits --out {tmp}/r",
    "cache-teachers --data digits --out {tmp}/c",
    "distill --data digits --student resnet8 --out {tmp}/r",
)
CACHED = f"{DISTILL} --cache {{digits}}/cache"
BAD_INPUT = [
    ("inspect {tmp}/nothing", "there is no cache in .*: make one with cache-teachers"),
    (f"{CACHED} --mix mixup --method kd", "--mix is mixup, but the cache in .* was made without --mix: leave"),
    ("evaluate {digits}/vgg8/student.safetensors", "has no recipe that names its data: give --data"),
    ("inspect {digits}", r"there is no cache in .* \(did you mean .*/cache\?\): make one with cache-teachers"),
    # Before the images are read: these are not there either.
    ("distill --data nodata --cache {tmp}/no --student resnet8 --out {tmp}/r", "there is no cache in"),
    ("train resnet9 --data nodata --out {tmp}/r", "there is no network 'resnet9' .did you mean resnet8 or"),
    ("cache-teachers --data nodata --teacher resnet8@{tmp}/no.pth --out {tmp}/c", "no file .*no.pth; give a"),
    (f"{CACHE} --teacher {{digits}}/vgg8 --views 10", "--views is 10, but an image has 9 different views: choose"),
    (f"{CACHED} --method demkd", r"there is no method 'demkd' \(did you mean de-mkd\?\)"),
    ("train resnet8 --data digits --out {digits}/cache", r"cache is a cache: choose another folder \(--out\)"),
    ("distill --data digits --student resnet8 --cache {digits}/cache --out {digits}/cache", "cache is a cache: choose"),
    ("distill --data digits --student resnet8 --cache {digits}/cache --out {digits}/vgg8",
     r"vgg8 is a run of train: choose another folder \(--out\)"),
    ("cache-teachers --data digits --teacher {digits}/vgg8 --out {digits}/vgg8", "vgg8 is a run of train: choose"),
    ("pack {digits}/cache --to {digits}/vgg8", "vgg8 is a run of train: choose another folder"),
    ("inspect {digits}/vgg8", "vgg8 is the folder of a run: give the folder of a cache"),
    ("compare {tmp}/nothing {digits}/vgg8", r"nothing is no run folder \(recipe.toml: No such file or directory\)"),
    (f"{CACHED} --teachers resnet8,huge", "there is no teacher 'huge' in .*; it has big, resnet8"),
    (f"{CACHED} --normalize big=imagenet", r"--normalize big=\.\.\. is for live teachers"),
    ("inspect {digits}/cache --sample 1437", "there is no sample 1437: .* 0 to 1436"),
    (f"{TRAIN} --device tpu9", "there is no device 'tpu9'|device 'tpu9' is not supported"),
    (f"{TRAIN} --precision int3", "there is no precision 'int3': choose auto, float32 or bfloat16"),
    ("distill --recipe {tmp}/no.toml --data digits", "there is no recipe"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "message"), BAD_INPUT)
def test_bad_input_is_one_sentence_exit_code_1_and_nothing_written(
    digits: Path, picture_folder: Path, tmp_path: Path, command: str, message: str
) -> None:
    before = _contents(digits)
    result = invoke(*command.format(tmp=tmp_path, digits=digits, pictures=picture_folder).split())
    assert result.exit_code == 1, result.output
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, result.output
    assert re.search(message, said[0]), said[0]
    assert "Traceback" not in result.output
    assert not list(tmp_path.rglob("*.h5*")), "nothing is written"
    assert not list(tmp_path.rglob("recipe.toml"))
    assert _contents(digits) == before


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("run `cache_teachers` in another folder (`out`)", "run cache-teachers in another folder (--out)"),
        ("with `tail_temperatures`, or `top_k=3`", "with --tail-temperatures, or --top-k 3"),
        ('choose `method="kd"`', "choose --method kd"),
    ],
)
def test_options_of_any_command_are_shown_as_options(text: str, shown: str) -> None:
    assert in_options(text, main.commands["inspect"]) == shown


@pytest.mark.parametrize(
    "command",
    [
        DISTILL,
        f"{DISTILL} --cache c --online",
        f"{DISTILL} --cache c --teacher a@b",
        f"{DISTILL} --cache c --views all",
        f"{TRAIN} --epochs 0",
        f"{CACHE} --teacher x --views 0",
        f"{CACHE} --teacher x --tail-temperatures 1,two",
        "verify c --device nonsense",
        "verify c --normalize foo",
        "train resnet8 --out r",
        "no-such-command",
    ],
)
def test_wrong_usage_exits_with_2(command: str) -> None:
    result = invoke(*command.split())
    assert result.exit_code == 2, result.output


def test_the_help_is_of_demkd_and_has_whole_summaries(cli: Cli) -> None:
    shown = cli("-h", environment={"COLUMNS": "80"}).stdout
    assert shown.startswith("Usage: demkd [OPTIONS]")
    assert "..." not in shown.partition("\nCommands:\n")[2]
    assert "TEACHER=" not in call("train", "-h").output + call("evaluate", "-h").output
    assert call("distill", "-h").output.count("the preset's") == 2  # of flags, and of settings


@pytest.mark.parametrize(
    ("command", "environment", "code", "expected"),
    [
        ("networks", {"RANK": "3"}, 0, "resnet20"),
        ("inspect .", {"RANK": "1", "WORLD_SIZE": "2"}, 2, "inspect works in one process: start it without"),
        ("train resnet8 --data digits --out r", {"RANK": "1", "WORLD_SIZE": "x"}, 1,
         "error: RANK is 1, WORLD_SIZE is x: start the processes with torchrun"),
        ("train resnet8 --data digits --out r", {"RANK": "3"}, 1,
         "error: RANK is 3, WORLD_SIZE is absent: start the processes with torchrun"),
        ("train resnet8 --data digits --out r", {"RANK": "0", "WORLD_SIZE": "2"}, 1,
         "error: rank 0 of 2 cannot connect, because MASTER_ADDR"),
        ("train resnet8", {"RANK": "3"}, 2, "Missing option"),
    ],
)  # fmt: skip
def test_a_command_for_one_process_and_half_an_environment_are_not_silent(
    monkeypatch: pytest.MonkeyPatch, command: str, environment: dict[str, str], code: int, expected: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = invoke(*command.split())
    assert result.exit_code == code, result.output
    assert expected in " ".join(result.output.split())


def test_a_later_rank_is_silent(cli: Cli) -> None:
    done = cli("train", "resnet8", check=False, environment={"RANK": "1", "WORLD_SIZE": "2"})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_recipe_can_name_teachers(digits: Path, tmp_path: Path) -> None:
    """A list is a list for an option that is repeated, and separated by commas for one that is not."""
    teachers = [f"{name}={digits / name}" for name in ("resnet8", "vgg8")]
    (tmp_path / "stage-one.toml").write_text(f'data = "digits"\nviews = 1\nteacher = {teachers}\n')
    call("cache-teachers", "--recipe", tmp_path / "stage-one.toml", "--out", tmp_path / "cache")
    (tmp_path / "stage-two.toml").write_text('data = "digits"\nstudent = "resnet8"\nteachers = ["vgg8", "resnet8"]\n')
    arguments = ("--cache", tmp_path / "cache", "--epochs", 1, "--out", tmp_path / "run")
    call("distill", "--recipe", tmp_path / "stage-two.toml", *arguments)
    assert 'teachers = [\n    "vgg8",\n    "resnet8",\n]' in (tmp_path / "run" / "recipe.toml").read_text()


def test_an_unknown_option_in_a_recipe_is_refused_with_the_known(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("epochz = 3\n")
    result = invoke("train", "resnet8", "--recipe", tmp_path / "r.toml", "--data", "digits", "--out", tmp_path / "r")
    assert result.exit_code == 1
    assert "has an unknown option 'epochz'; known are " in result.stderr


def test_the_environment_names_the_data_where_no_recipe_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMKD_DATA", str(tmp_path / "of-the-environment"))
    out = ("--out", tmp_path / "run")
    assert "of-the-environment" in invoke("train", "resnet8", *out).stderr
    assert "of-the-command" in invoke("train", "resnet8", "--data", tmp_path / "of-the-command", *out).stderr
    (tmp_path / "r.toml").write_text('data = "of-the-recipe"\n')
    result = invoke("train", "resnet8", "--recipe", tmp_path / "r.toml", *out)
    assert "of-the-recipe" in result.stderr
    assert "of-the-environment" not in result.stderr


def test_the_tab_key_completes() -> None:
    """With the variables that a shell sets."""
    shell = {"_DEMKD_COMPLETE": "bash_complete", "COMP_WORDS": "demkd distill --sched", "COMP_CWORD": "2"}
    assert "plain,--schedule" in CliRunner(env=shell).invoke(main).stdout.splitlines()


@pytest.mark.slow
def test_the_demo_ends_in_a_table_and_the_second_time_trains_nothing(tmp_path: Path, cli: Cli) -> None:
    first = cli("demo", "--out", tmp_path / "demo", "--json", "--epoch-lines")
    report = json.loads(first.stdout)
    assert sum(line.startswith("epoch ") for line in first.stderr.splitlines()) == (3 + 2 * 3) * 4
    assert [run["network"] for run in report["teachers"]] == ["resnet20", "wrn_16_2", "vgg8"]
    top1: dict[str, list[float]] = {}
    for run in report["students"]:
        top1.setdefault(run["method"], []).append(run["test_top1"])
    assert [(method, len(values)) for method, values in top1.items()] == [("ce", 3), ("de-mkd", 3)]
    assert max(top1["ce"]) + 0.02 < min(top1["de-mkd"]), "wrong labels hurt, and teachers repair that"
    again = cli("demo", "--out", tmp_path / "demo")
    assert "epoch " not in again.stderr
    *_, meaning, cost, views, following, own = again.stdout.strip().splitlines()
    assert meaning.startswith("40 % of the training labels are wrong. Labels alone: ")
    assert cost.endswith(" was there already; no teacher runs while a student trains.")
    assert views.startswith("Predictions per teacher and image: 4. Live teachers: 12. In all: ")
    assert following == f"Next: demkd inspect {tmp_path / 'demo' / 'cache'}"
    assert own.startswith("Own data: demkd cache-teachers --data FOLDER")


def _contents(folder: Path) -> dict[str, Any]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
