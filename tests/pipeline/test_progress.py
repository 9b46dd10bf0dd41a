"""Progress: on a terminal bars with rate, time left, loss and top-1; elsewhere a line an epoch; or --quiet."""

import fcntl
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
from demkd.pipeline.progress import ConsoleProgress
from demkd.pipeline.results import EpochReport
from tests.conftest import CHECKOUT

EPOCH = EpochReport(
    epoch=3, epochs=9, learning_rate=0.1, losses={"loss": 0.5}, train_top1=0.25, test_top1=0.75, test_top5=1.0,
    seconds=1.5, data_seconds=0.1, test_seconds=0.1,
)  # fmt: skip
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, as a list of one."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def pipe() -> Console:
    return Console(file=StringIO(), width=80)


def printed(console: Console) -> list[str]:
    """Every line that was ever drawn."""
    return re.split(r"[\r\n]+", _ESCAPE.sub("", console.file.getvalue()).strip())


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


def distilling(digits: Path, out: Path, *, epochs: int) -> list[object]:
    """At a learning rate that gives no warning."""
    what = ["--data", "digits", "--cache", digits / "cache", "--student", "resnet8", "--method", "de-mkd"]
    return ["distill", *what, "--epochs", epochs, "--learning-rate", 0.01, "--out", out]


def test_a_bar_shows_rate_time_left_loss_and_top1(digits: Path, tmp_path: Path) -> None:
    """A real process with a real terminal of the narrowest usual width."""
    lines = on_terminal(distilling(digits, tmp_path, epochs=3), columns=80)
    assert max(map(len, lines)) <= 80
    bar = r"^\S resnet8, de-mkd [━╸╺]+ +\d+% \d+ steps/s \d:\d\d:\d\d \d:\d\d:\d\d left$"
    assert any(re.match(bar, line) for line in lines), lines[:30]
    running = r"^  epoch (\d)  loss \d+\.\d{3}  train top-1 \d+\.\d\d%  test top-1 \d+\.\d\d% after epoch (\d)$"
    shown = [(int(found[1]), int(found[2])) for line in lines if (found := re.match(running, line))]
    assert (3, 3) in shown, "the last epoch's figures stay"
    assert any(line.startswith("  resnet8, de-mkd ━") for line in lines), "a finished bar stays"


def test_figures_are_computed_as_rarely_as_they_are_shown(clock: list[float]) -> None:
    """However many steps offer them."""
    console = Console(file=StringIO(), force_terminal=True, width=100, get_time=lambda: 0.0)
    shown: list[str] = []

    def facts() -> str:
        shown.append(f"loss {len(shown)}")
        return shown[-1]

    with ConsoleProgress(console).task("student", total=50, unit="steps") as task:
        for _ in range(48):
            clock[0] += 0.125
            task.advance(1)
            task.show(facts)
    assert len(shown) == 12, "every half of a second"
    assert any("loss 11" in line for line in printed(console))


def test_a_pipe_gets_one_line_an_epoch(digits: Path, tmp_path: Path) -> None:
    stderr = piped(*distilling(digits, tmp_path, epochs=3)).stderr
    first, second, settings, *epochs = stderr.splitlines()
    assert (first, second) == ("reading the train images of digits", "reading the test images of digits")
    assert settings.startswith("settings: data digits, student resnet8, ")
    number = r"\d+\.\d"
    for epoch, line in enumerate(epochs, start=1):
        pattern = rf"epoch {epoch}/3  loss {number}+  train top-1 {number}+%  test top-1 {number}+%  {number} s"
        assert re.fullmatch(pattern, line)
    assert len(epochs) == 3


@pytest.mark.parametrize(
    ("columns", "unit", "amount"),
    [(40, "views", ""), (100, "views", "4,040,000/8,100,000"), (100, "bytes", "4.0/8.1 MB")],
)
def test_a_bar_fits_its_terminal(columns: int, unit: str, amount: str) -> None:
    """Amounts where there is room, and nothing wraps."""
    console = Console(file=StringIO(), force_terminal=True, color_system=None, width=columns)
    progress = ConsoleProgress(console)
    with progress.task("teacher wrn_40_2", total=8_100_000, unit=unit) as task:
        task.advance(4_040_000)
        progress.epoch(EPOCH)
    lines = printed(console)
    assert max(map(len, lines)) <= columns
    assert any("wrn_40_2" in line and amount in line for line in lines)
    assert any("/8" in line for line in lines) is bool(amount)
    assert any(line.startswith("  epoch 3  loss 0.500  train top-1") for line in lines)


def test_a_dumb_terminal_is_no_terminal() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=80, _environ={"TERM": "dumb"})
    progress = ConsoleProgress(console)
    with progress.task("resnet8, kd", total=10, unit="steps") as task:
        task.advance(10)
        progress.epoch(EPOCH)
    assert printed(console) == ["epoch 3/9  loss 0.5000  train top-1 25.00%  test top-1 75.00%  1.5 s"]


def test_a_pipe_shows_how_long_other_work_took(digits: Path, tmp_path: Path) -> None:
    arguments = ("--data", "digits", "--views", 1, "--out", tmp_path / "cache", "--teacher", digits / "resnet8")
    said = piped("cache-teachers", *arguments).stderr.splitlines()
    assert re.fullmatch(r"predicting resnet8: 1,437 views in \d+\.\d s, [\d,]+ views/s", said[1])
    said = piped("evaluate", digits / "resnet8", "--data", "digits").stderr.splitlines()
    assert re.fullmatch(r"evaluating resnet8: 360 images in \d+\.\d s, [\d,]+ images/s", said[1])
    said = piped("verify", tmp_path / "cache").stderr.splitlines()
    assert re.fullmatch(r"verifying: [\d.]+ [kM]?B in \d+\.\d s, [\d.]+ [kMG]?B/s", said[0])


def test_in_a_pipe_there_is_a_line_per_minute(clock: list[float]) -> None:
    console = pipe()
    with ConsoleProgress(console).task("teacher a", total=1000, unit="views", done=200) as task:
        for _ in range(8):
            clock[0] += 25
            task.advance(100)
    assert printed(console) == [
        "teacher a: 500 views of 1,000 views (50%), 4 views/s, 2 min left",
        "teacher a: 800 views of 1,000 views (80%), 4 views/s, 1 min left",
        "teacher a: 800 views in 200.0 s, 4 views/s",
    ]


@pytest.mark.parametrize(
    ("unit", "count", "line"),
    [("runs", 4, "4 runs in 40.0 s, 6.0 runs/min"), ("bytes", 10**9, "1.00 GB in 40.0 s, 25.00 MB/s")],
)
def test_a_rate_has_a_readable_unit(clock: list[float], unit: str, count: int, line: str) -> None:
    console = pipe()
    with ConsoleProgress(console).task("work", total=count, unit=unit) as task:
        clock[0] = 40.0
        task.advance(count)
    assert printed(console) == [f"work: {line}"]


def test_a_resumed_run_does_not_count_what_was_there_as_speed() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=100)
    with ConsoleProgress(console).task("student", total=1_000_000, unit="steps", done=999_000) as task:
        for _ in range(10):
            time.sleep(0.02)
            task.advance(1)
    rates = [int(rate.replace(",", "")) for rate in re.findall(r"([\d,]+) steps/s", "\n".join(printed(console)))]
    assert 0 < max(rates) < 100


def test_text_from_outside_is_shown_as_text() -> None:
    console = pipe()
    ConsoleProgress(console).warn("a [bold]folder\x1b[2J")
    assert printed(console) == ["warning: a [bold]folder\\x1b[2J"]


@pytest.mark.slow
def test_quiet_silences_every_long_command(digits: Path, tmp_path: Path) -> None:
    """Results still come, on stdout."""
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(f'data = "digits"\ncache = "{digits / "cache"}"\nstudent = "resnet8"\nepochs = 1\n[runs.kd]\n')
    teacher = digits / "resnet8"
    commands: list[list[object]] = [
        ["train", "resnet8", "--data", "digits", "--epochs", 1, "--out", tmp_path / "run"],
        ["cache-teachers", "--data", "digits", "--views", 1, "--out", tmp_path / "cache", "--teacher", teacher],
        ["cache-teachers", "--data", "digits", "--dry-run", "--out", tmp_path / "cache", "--teacher", teacher],
        distilling(digits, tmp_path / "student", epochs=1),
        ["evaluate", teacher, "--data", "digits"],
        ["verify", tmp_path / "cache", "--recompute", 9, "--data", "digits", "--teacher", teacher],
        ["export", teacher, "--format", "safetensors", "--out", tmp_path / "teacher.safetensors"],
        ["sweep", sweep, "--out", tmp_path / "sweep"],
        ["demo", "--out", tmp_path / "demo"],
    ]
    for command in commands:
        result = piped(*command, "--quiet")
        assert all(line.startswith("warning: ") for line in result.stderr.splitlines()), command
        assert result.stdout
