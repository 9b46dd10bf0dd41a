"""Options of a command in sections with titles, which `--help` shows; click itself has none.

    training_options = section("Training", click.option("--epochs", ...), click.option("--seed", ...))

Options that no section has are in the first one. A command's sections come in the order of its options.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

FIRST = "Options"


class SectionedCommand(click.Command):
    """A command whose help has a part for each section, and which `-h` asks for too, however the command is called."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        settings = {"help_option_names": ["-h", "--help"], **(options.get("context_settings") or {})}
        super().__init__(*arguments, **{**options, "context_settings": settings})

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, options in sections_of(self, ctx).items():
            if rows := [row for option in options if (row := option.get_help_record(ctx))]:
                with formatter.section(title):
                    formatter.write_dl(rows)


def section(title: str, *options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order of the help text, in a section of this title.

    Options that have a section already stay there.
    """

    def decorate(command: Command) -> Command:
        before = len(_kept_by_click(command))
        for option in reversed(options):
            command = option(command)
        for parameter in _kept_by_click(command)[before:]:
            vars(parameter).setdefault("section", title)
        return command

    return decorate


def _kept_by_click(command: Callable[..., Any]) -> list[click.Parameter]:
    """The parameters that decorators have given a function so far."""
    return getattr(command, "__click_params__", [])


def sections_of(command: click.Command, ctx: click.Context | None = None) -> dict[str, list[click.Option]]:
    """A command's options by the titles of their sections; with a context, `--help` is one of them."""
    options = [one for one in (command.get_params(ctx) if ctx else command.params) if isinstance(one, click.Option)]
    found: dict[str, list[click.Option]] = {FIRST: []}
    for option in options:
        found.setdefault(getattr(option, "section", FIRST), []).append(option)
    return {title: those for title, those in found.items() if those}
