"""Runs the commands of tutorial.md and loops.md, photos.md, and scaling.md, and writes their outputs into the pages:
`python -m docs.write_pages`.

A block `console` has commands after `$ ` and their outputs. A block of Python that begins with a comment with a file
name is saved under that name.
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
    """A command of the page failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A command of the page, and the output below it."""

    command: str
    output: str


def steps(block: str) -> list[Step]:
    """The commands of a console block."""
    parts = re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    return [Step(command=command, output=output) for command, output in parts]


def run_page(text: str, folder: Path) -> str:
    """Run a page in the current folder, and return it with the new outputs.

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
    """Run `demkd ...` in this process, which has PyTorch already, and others in new ones; return stdout.

    Raises:
        PageError: if it fails.
    """
    program, *arguments = shlex.split(command.replace("\\\n", " "))
    if program == "demkd":
        result = CliRunner(env={"COLUMNS": COLUMNS}).invoke(main, arguments)
        code, output, errors = result.exit_code, result.stdout, result.stderr
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
    else:
        words = [sys.executable, *_PROGRAMS[program], *arguments]
        # The same threads as here: with others, sums are rounded in another order, which training amplifies.
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
