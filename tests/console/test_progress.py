"""Progress: on a terminal bars with rate, time left, loss and top-1; elsewhere a line an epoch; or --quiet."""

import fcntl
import importlib.util
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from demkd.cli import main
from demkd.console import progress as progress_module
from demkd.console.progress import ConsoleProgress
from demkd.pipeline.results import EpochReport
from tests.conftest import CHECKOUT

EPOCH = EpochReport(
    epoch=3,
    epochs=9,
    learning_rate=0.1,
    losses={"loss": 0.5},
    train_top1=0.25,
    test_top1=0.75,
    test_top5=1.0,
    seconds=1.5,
    data_seconds=0.1,
    test_seconds=0.1,
)
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digit teacher of one epoch and its cache of 2 views."""
    folder = tmp_path_factory.mktemp("made")
    piped("train", "resnet8", "--data", "digits", "--epochs", 1, "--out", folder / "teacher")
    teacher = folder / "teacher"
    piped("cache-teachers", "--data", "digits", "--views", 2, "--out", folder / "cache", "--teacher", teacher)
    return folder


def piped(*arguments: object) -> Result:
    """Run the command line in this process, its output going into pipes."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def on_terminal(arguments: Sequence[object], *, columns: int) -> list[str]:
    """Run the command line with stderr on a terminal of so many columns; every line it ever drew there."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    parts: list[bytes] = []
    reader = threading.Thread(target=_drain, args=(controller, parts))
    reader.start()
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    result = subprocess.run(
        [sys.executable, str(CHECKOUT / "cli.py"), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**environment, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"},
        timeout=200,
        check=False,
    )
    os.close(terminal)
    reader.join(timeout=30)
    os.close(controller)
    text = _ESCAPE.sub("", b"".join(parts).decode())
    assert result.returncode == 0, text
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def _drain(descriptor: int, parts: list[bytes]) -> None:
    """Read until the other end is closed, which Linux tells by an error."""
    try:
        while data := os.read(descriptor, 65536):
            parts.append(data)
    except OSError:
        return


def distilling(made: Path, out: Path, *, epochs: int) -> list[object]:
    cache = made / "cache"
    what = ["--data", "digits", "--cache", cache, "--student", "resnet8", "--method", "de-mkd"]
    return ["distill", *what, "--epochs", epochs, "--out", out]


def test_a_bar_shows_rate_time_left_loss_and_top1(made: Path, tmp_path: Path) -> None:
    """A real process with a real terminal of the narrowest usual width."""
    lines = on_terminal(distilling(made, tmp_path, epochs=6), columns=80)
    assert max(map(len, lines)) <= 80
    bar = r"^\S resnet8, de-mkd [━╸╺]+ +\d+% \d+ steps/s \d:\d\d:\d\d \d:\d\d:\d\d left$"
    assert any(re.match(bar, line) for line in lines), lines[:30]
    running = r"^  epoch (\d)  loss \d+\.\d{3}  train top-1 \d+\.\d\d%  test top-1 \d+\.\d\d% after epoch (\d)$"
    shown = [(int(found[1]), int(found[2])) for line in lines if (found := re.match(running, line))]
    assert (6, 6) in shown, "the last epoch's figures stay"
    assert any(line.startswith("  resnet8, de-mkd ━") for line in lines), "a finished bar stays"


def test_figures_of_the_running_epoch_are_shown_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for as rarely as they are shown, however many steps offer them."""
    clock = iter(float(second) / 10 for second in range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    console = Console(file=StringIO(), force_terminal=True, width=100, get_time=lambda: 0.0)
    asked: list[int] = []

    def facts() -> str:
        asked.append(1)
        return f"loss {len(asked)}"

    with ConsoleProgress(console).task("student", total=50, unit="steps") as task:
        for _ in range(50):
            task.advance(1)
            task.tell(facts)
    assert len(asked) == 10, "every half of a second, at ten steps a second"
    assert isinstance(console.file, StringIO)
    assert "loss 10" in console.file.getvalue()


def test_a_pipe_gets_one_line_an_epoch(made: Path, tmp_path: Path) -> None:
    stderr = piped(*distilling(made, tmp_path, epochs=3)).stderr
    first, settings, *epochs = stderr.splitlines()
    assert first == "reading the pictures of digits"
    assert settings.startswith("settings: student resnet8, ")
    number = r"\d+\.\d"
    for epoch, line in enumerate(epochs, start=1):
        pattern = rf"epoch {epoch}/3  loss {number}+  train top-1 {number}+%  test top-1 {number}+%  {number} s"
        assert re.fullmatch(pattern, line)
    assert len(epochs) == 3


@pytest.mark.parametrize("columns", [40, 60, 100, 200])
def test_a_bar_fits_its_terminal(columns: int) -> None:
    """Amounts where there is room, and nothing wraps or is lost: what matters most comes first."""
    console = Console(file=StringIO(), force_terminal=True, color_system=None, width=columns)
    shown = ConsoleProgress(console)
    with shown.task("teacher wrn_40_2", total=8_100_000, unit="views") as task:
        task.advance(4_050_000)
        shown.epoch(EPOCH)
    assert isinstance(console.file, StringIO)
    lines = re.split(r"[\r\n]+", _ESCAPE.sub("", console.file.getvalue()))
    assert max(map(len, lines)) <= columns
    assert any("wrn_40_2" in line for line in lines)
    assert any("4,050,000/8,100,000" in line for line in lines) is (columns >= 100)
    assert any(line.startswith("  epoch 3  loss 0.500  train top-1") for line in lines)


def test_a_dumb_terminal_is_no_terminal() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=80, _environ={"TERM": "dumb"})
    shown = ConsoleProgress(console)
    with shown.task("resnet8, kd", total=10, unit="steps") as task:
        task.advance(10)
        shown.epoch(EPOCH)
    assert isinstance(console.file, StringIO)
    text = _ESCAPE.sub("", console.file.getvalue())
    assert text == "epoch 3/9  loss 0.5000  train top-1 25.00%  test top-1 75.00%  1.5 s\n"


def test_a_pipe_is_told_how_long_other_work_took(made: Path, tmp_path: Path) -> None:
    arguments = ("--data", "digits", "--views", 1, "--out", tmp_path / "cache", "--teacher", made / "teacher")
    said = piped("cache-teachers", *arguments).stderr.splitlines()
    assert re.fullmatch(r"asking teacher: 1,437 views in \d+\.\d s, [\d,]+ views/s", said[1])
    said = piped("evaluate", made / "teacher", "--data", "digits").stderr.splitlines()
    assert re.fullmatch(r"evaluating resnet8: 360 pictures in \d+\.\d s, [\d,]+ pictures/s", said[1])
    said = piped("verify", tmp_path / "cache").stderr.splitlines()
    assert re.fullmatch(r"verifying: [\d.]+ [kM]?B in \d+\.\d s, [\d.]+ [kMG]?B/s", said[0])


def test_without_a_terminal_work_of_minutes_gives_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: seconds[0])
    console = Console(file=StringIO(), width=80)
    with ConsoleProgress(console).task("teacher a", total=1000, unit="views", done=200) as task:
        for _ in range(8):
            seconds[0] += 25
            task.advance(100)
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().splitlines() == [
        "teacher a: 500 views of 1,000 views (50%), 4 views/s, 2 min left",
        "teacher a: 800 views of 1,000 views (80%), 4 views/s, 1 min left",
        "teacher a: 800 views in 200.0 s, 4 views/s",
    ]


def test_slow_work_has_a_rate_by_the_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: seconds[0])
    console = Console(file=StringIO(), width=80)
    with ConsoleProgress(console).task("sweep", total=4, unit="runs") as task:
        seconds[0] = 40.0
        task.advance(4)
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue() == "sweep: 4 runs in 40.0 s, 6.0 runs/min\n"


def test_a_resumed_run_does_not_count_what_was_there_as_speed() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=100)
    with ConsoleProgress(console).task("student", total=1_000_000, unit="steps", done=999_000) as task:
        for _ in range(10):
            time.sleep(0.02)
            task.advance(1)
    assert isinstance(console.file, StringIO)
    rates = [int(rate.replace(",", "")) for rate in re.findall(r"([\d,]+) steps/s", console.file.getvalue())]
    assert rates
    assert max(rates) < 100


@pytest.mark.slow
def test_quiet_silences_every_long_command(made: Path, tmp_path: Path) -> None:
    """Results still come, on stdout."""
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(f'data = "digits"\ncache = "{made / "cache"}"\nstudent = "resnet8"\nepochs = 1\n[runs.kd]\n')
    teacher = made / "teacher"
    commands: list[list[object]] = [
        ["train", "resnet8", "--data", "digits", "--epochs", 1, "--out", tmp_path / "run"],
        ["cache-teachers", "--data", "digits", "--views", 1, "--out", tmp_path / "cache", "--teacher", teacher],
        ["cache-teachers", "--data", "digits", "--dry-run", "--out", tmp_path / "cache", "--teacher", teacher],
        distilling(made, tmp_path / "student", epochs=1),
        ["evaluate", teacher, "--data", "digits"],
        ["verify", tmp_path / "cache", "--recompute", 9, "--data", "digits", "--teacher", teacher],
        ["export", teacher, "--format", "safetensors", "--out", tmp_path / "teacher.safetensors"],
        ["sweep", sweep, "--out", tmp_path / "sweep"],
    ]
    for command in commands:
        result = piped(*command, "--quiet")
        assert result.stderr == "", command
        assert result.stdout


@pytest.mark.slow
def test_quiet_silences_the_demo(tmp_path: Path) -> None:
    assert piped("demo", "--quiet", "--out", tmp_path / "demo").stderr == ""


def test_bars_are_drawn_in_a_notebook_that_has_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich needs ipywidgets there; without, there are lines."""
    found = importlib.util.find_spec("rich")
    for spec in (found, None):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _, spec=spec: spec)
        assert ConsoleProgress(Console(force_jupyter=True))._has_bars == (spec is not None)
