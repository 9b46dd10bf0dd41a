"""Runs every command of tutorial.md, then of loops.md, in an empty folder, those of photos.md and of scaling.md in
others, and writes what they say into the pages: `python -m docs.write_pages`.

A block of the language `console` has commands after `$ ` (ending in a backslash where they go on) and what they say. A
block of Python whose first line is a comment with a file's name is saved under that name.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from click.testing import CliRunner

from demkd.cli import main

TUTORIAL, LOOPS, PHOTOS, SCALING = (
    Path(__file__).with_name(f"{name}.md") for name in ("tutorial", "loops", "photos", "scaling")
)
PACKAGE = Path(__file__).parents[1]
COLUMNS = "96"
_PROGRAMS = {"python": (), "torchrun": ("-m", "torch.distributed.run")}
_BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class PageError(RuntimeError):
    """A command of the page that fails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A command of the page as it stands there, and the output below it."""

    command: str
    output: str


def steps(block: str) -> list[Step]:
    """The commands of a console block."""
    parts = re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    return [Step(command=command, output=output) for command, output in parts]


def run_page(text: str, folder: Path) -> str:
    """Follow a page in a folder, which is the current one; the page, with what its commands say now.

    Raises:
        PageError: if one fails.
    """

    def run_block(found: re.Match[str]) -> str:
        language, block = found.groups()
        if language == "python":
            if name := re.match(r"# (\S+\.py)\n", block):
                (folder / name[1]).write_text(block, encoding="utf-8")
            return found[0]
        said = [f"$ {step.command}\n{run_command(step.command, folder)}" for step in steps(block)]
        return f"```console\n{''.join(said)}```"

    return _BLOCK.sub(run_block, text)


def run_command(command: str, folder: Path) -> str:
    """Run `demkd ...` in this process, which has PyTorch already, and anything else in others; its stdout.

    Raises:
        PageError: if it fails.
    """
    program, *arguments = shlex.split(command.replace("\\\n", " "))
    if program == "demkd":
        # What is no terminal is 80 columns wide if nobody says otherwise.
        result = CliRunner(env={"COLUMNS": COLUMNS}).invoke(main, arguments)
        code, output, errors = result.exit_code, result.stdout, result.stderr
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
    else:
        words = [sys.executable, *_PROGRAMS[program], *arguments]
        # The same threads as here: sums are rounded in another order with others, which training amplifies.
        found = {
            **os.environ,
            "COLUMNS": COLUMNS,
            "PYTHONPATH": str(PACKAGE),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        done = subprocess.run(words, cwd=folder, env=found, capture_output=True, text=True, check=False)  # noqa: S603
        code, output, errors = done.returncode, done.stdout, done.stderr
    if code != 0:
        raise PageError(f"{command}\n{output}{errors}")
    shown = "\n".join(line.rstrip() for line in output.splitlines()).strip("\n")
    return f"{shown}\n" if shown else ""


if __name__ == "__main__":
    for pages in ((TUTORIAL, LOOPS), (PHOTOS,), (SCALING,)):
        with tempfile.TemporaryDirectory() as name:
            os.chdir(name)
            os.environ["XDG_CACHE_HOME"] = name
            for page in pages:
                page.write_text(run_page(page.read_text(encoding="utf-8"), Path(name)), encoding="utf-8")
