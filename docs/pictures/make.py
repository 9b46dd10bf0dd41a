"""Makes the README's pictures of the terminal, from a real demo in an empty folder: `python -m docs.pictures.make`.

What the commands print is the same every time on one machine, but for what clocks say. The pictures fetch nothing:
rich's SVG would load a font from the network, and these take what monospaced font there is.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

FOLDER = Path(__file__).parent
WIDTH = 96
_CLI = FOLDER.parents[1] / "cli.py"
_FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, Liberation Mono, monospace"


def run(folder: Path, *arguments: str) -> str:
    """What a command prints on a terminal with all colours."""
    terminal = {"COLUMNS": str(WIDTH), "FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, str(_CLI), *arguments],
        cwd=folder,
        env={**os.environ, **terminal, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return done.stdout


def picture(command: str, output: str) -> str:
    """A command and its output as SVG."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(file=nowhere, record=True, width=WIDTH, force_terminal=True, color_system="truecolor")
        console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
        console.print(Text.from_ansi(output.strip("\n")))
        console.print()  # the last line would lose its descenders
        svg = console.export_svg(title="", unique_id=re.sub(r"\W+", "-", command))
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", _FONTS)


def shoot(folder: Path, *arguments: str) -> str:
    """Run a command, and make a picture of it."""
    return picture(" ".join(["demkd", *arguments]), run(folder, *arguments))


def pictures(folder: Path) -> dict[str, str]:
    """All pictures by file name, of a demo in an empty folder."""
    return {"demo.svg": shoot(folder, "demo"), "inspect.svg": shoot(folder, "inspect", "runs/demo/cache")}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for file_name, svg in pictures(Path(temporary)).items():
            (FOLDER / file_name).write_text(svg, encoding="utf-8")
