"""The page of commands has every command and option, and the commands accept every command line in the documents."""

import re
import shlex
from pathlib import Path

import click
import pytest

from demkd.cli import main
from docs.write_cli import page
from tests.conftest import CHECKOUT

COMMANDS = {name: command for name, command in main.commands.items() if not command.hidden}
DOCUMENTS = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]


def test_every_command_and_option_is_on_the_page() -> None:
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", page(), re.MULTILINE | re.DOTALL))
    assert sections.keys() == COMMANDS.keys()
    for name, command in COMMANDS.items():
        for parameter in command.params:
            for word in (*parameter.opts, *parameter.secondary_opts):
                shown = f"`{word}" if isinstance(parameter, click.Option) else word.upper()
                assert shown in sections[name], f"{name} {word}"
        assert f"    demkd {name}" in sections[name], "an example"


def command_lines(text: str) -> list[str]:
    """Lines of code that call demkd, with their continuations."""
    text = text.replace("\\\n", " ")
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4,}(.*)$", text, re.MULTILINE)
    code = [line for block in (*fenced, *indented) for line in block.splitlines()]
    found = [re.match(r"(?:\$ )?(?:demkd|python cli\.py) +([a-z].*)$", line) for line in code]
    return [line[1] for line in found if line and not re.search(r"\[OPTIONS\]| [.]{3}", line[1])]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_command_line_in_a_document_is_accepted(document: Path) -> None:
    """Parsed, not run: commands and options exist, and required ones are given."""
    for line in command_lines(document.read_text(encoding="utf-8")):
        name, *arguments = shlex.split(line, comments=True)
        if "--recipe" in arguments:
            continue  # reads a file, which fills in the rest
        main.commands[name].make_context(name, [word for word in arguments if word not in ("-h", "&&")])


def test_command_lines_are_found() -> None:
    assert len(command_lines((CHECKOUT / "README.md").read_text(encoding="utf-8"))) >= 4
    assert {line.split()[0] for line in command_lines(page())} == set(COMMANDS)
