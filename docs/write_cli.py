"""The page of commands, from click's parameters: its formatted help differs between versions and terminals."""

import textwrap
from collections.abc import Iterator
from inspect import cleandoc

import click

from demkd.cli import main
from demkd.options import Command, help_text, sections

_WIDTH = 120
_HEAD = """\
# Commands

`demkd COMMAND` once installed, `python cli.py COMMAND` in a checkout. `-h` shows the help of a command. Results go to
stdout, progress and errors to stderr; `--json` outputs JSON. You can interrupt every command with Ctrl-C: run it again
to resume.

| exit code | |
|---|---|
| 0 | done |
| 1 | an error, in one sentence; or `verify` found damage |
| 2 | the command line is wrong |
| 130, 143 | ended by Ctrl-C or SIGTERM |

`NO_COLOR=1` disables colors; `COLUMNS` sets the width of tables without a terminal. `DEMKD_DATA` is the default of
`--data` (not in sweeps).

For completion with the TAB key, add the line of your shell to its start-up file:

    eval "$(_DEMKD_COMPLETE=bash_source demkd)"            # ~/.bashrc
    eval "$(_DEMKD_COMPLETE=zsh_source demkd)"             # ~/.zshrc
    _DEMKD_COMPLETE=fish_source demkd | source             # ~/.config/fish/completions/demkd.fish
"""


def page() -> str:
    """The whole page."""
    commands = {name: command for name, command in main.commands.items() if not command.hidden}
    listing = [f"| [`{name}`](#{name}) | {_paragraphs(command)[0]} |" for name, command in commands.items()]
    parts = ["\n".join([_HEAD, "| command | |", "|---|---|", *listing])]
    parts += [_section(name, command) for name, command in commands.items()]
    return "\n\n".join(parts) + "\n"


def _section(name: str, command: click.Command) -> str:
    """One command: its usage, its text, its options."""
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    needed = [f"{option.opts[0]} {_value(option)}" for option in options if option.required]
    usage = " ".join(["demkd", name, *map(_argument, arguments), *needed, *(["[OPTIONS]"] if options else [])])
    return "\n\n".join([f"## {name}", _indented(usage), *_paragraphs(command), *_tables(command)])


def _tables(command: click.Command) -> Iterator[str]:
    """The options, a table for each of their sections; all but the first with its title."""
    for title, options in sections(command).items():
        if title != "Options":
            yield f"**{title}**"
        yield "\n".join(["| option | meaning | default |", "|---|---|---|", *map(_row, options)])
    for title, rest in command.set_only().items() if isinstance(command, Command) else ():
        yield f"**{title}**"
        yield "\n".join(["| name | meaning |", "|---|---|", *(f"| `{x.name}` | {_cell(help_text(x))} |" for x in rest)])


def _paragraphs(command: click.Command) -> list[str]:
    """The docstring, wrapped; what click leaves as it is (after a backspace) becomes a block."""
    return [part for paragraph in cleandoc(command.help or "").split("\n\n") for part in _rendered(paragraph)]


def _rendered(paragraph: str) -> Iterator[str]:
    if not paragraph.startswith("\b"):
        yield textwrap.fill(" ".join(paragraph.split()), _WIDTH, break_on_hyphens=False)
        return
    title, _, block = paragraph.removeprefix("\b").lstrip("\n").partition("\n")
    yield title
    yield _indented(textwrap.dedent(block))


def _indented(text: str) -> str:
    return textwrap.indent(text, "    ")


def _row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if not option.is_flag:
        names = f"{names[:-1]} {_value(option)}`"
    variable = f"({option.envvar} in the environment)" if option.show_envvar else ""
    meaning = " ".join(part for part in (option.help, variable, _bounds(option.type)) if part)
    return f"| {_cell(names)} | {_cell(meaning)} | {_cell(_default(option))} |"


def _argument(argument: click.Argument) -> str:
    name = (argument.name or "").upper()
    return f"{name} ..." if argument.nargs == -1 else name


def _value(option: click.Option) -> str:
    """What stands for an option's value."""
    kind = option.type
    if option.metavar:
        return option.metavar
    if isinstance(kind, click.Choice):
        return "|".join(map(str, kind.choices))
    if isinstance(kind, click.Path):
        return "FOLDER" if not kind.file_okay else "FILE" if not kind.dir_okay else "PATH"
    return {"integer": "N", "integer range": "N", "float": "X", "float range": "X"}.get(kind.name, "TEXT")


def _bounds(kind: object) -> str:
    """The bounds of a number, in words."""
    if not isinstance(kind, click.IntRange | click.FloatRange):
        return ""
    low = None if kind.min is None else f"above {kind.min}" if kind.min_open else f"{kind.min} or more"
    high = None if kind.max is None else f"below {kind.max}" if kind.max_open else f"{kind.max} or less"
    words = [bound for bound in (low, high) if bound]
    return f"({', '.join(words)})" if words else ""


def _default(option: click.Option) -> str:
    if option.required:
        return "required"
    if not option.show_default:
        return ""
    if option.is_flag and option.secondary_opts:
        return f"`{(option.opts if option.default else option.secondary_opts)[0]}`"
    values = option.default if isinstance(option.default, tuple | list) else [option.default]
    return ", ".join(f"`{value}`" for value in values)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
