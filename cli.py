"""The command line: which commands there are (`commands/` has them by theme), and how they end.

Stages are imported when they are called, not for --help.
"""

if __name__ == "__main__":  # ahead of what takes time to import
    try:
        from demkd.launch import main as launch
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    launch()

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import Any

import click

from demkd.commands import caches, comparing, looking, stages
from demkd.commands.values import in_options
from demkd.errors import ToldElsewhereError, UserError
from demkd.launch import INTERRUPTED, last_words


class _Commands(click.Group):
    """Ends with one sentence and an exit code where a user can repair something, or pressed Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if not _is_later_rank(ctx):
                raise
            sys.exit(error.exit_code)
        except (UserError, KeyboardInterrupt, OSError) as error:
            text, code = self._last_words(error, ctx)
        if text and (code != INTERRUPTED or not _is_later_rank(ctx)):
            _show_error(text)
        sys.exit(code)

    def _last_words(self, error: BaseException, ctx: click.Context) -> tuple[str, int]:
        """What to say, if anything, and the exit code."""
        if isinstance(error, KeyboardInterrupt):
            return last_words(error)
        if isinstance(error, ToldElsewhereError | BrokenPipeError):  # the reader of a pipe has seen enough
            return "", 1
        if isinstance(error, UserError):
            return in_options(str(error), self.commands.get(ctx.invoked_subcommand or "", self)), 1
        if isinstance(error, OSError) and error.filename is not None:  # a disk that fails, no right to write
            return _in_words(error), 1
        raise error

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Also end in a sentence where nobody takes what is printed."""
        try:
            try:
                return super().main(*arguments, **options)
            finally:
                sys.stdout.flush()
        except OSError as error:
            if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            _throw_output_away()
            if not isinstance(error, BrokenPipeError):  # else the reader of a pipe has seen enough
                _show_error(f"the output cannot be written ({error.strerror}): give it a place with room")
            sys.exit(1)


def _in_words(error: OSError) -> str:
    """What is wrong with a file or folder."""
    if error.errno == errno.EEXIST and Path(error.filename).is_symlink():
        return f"{error.filename} is a link that leads nowhere: remove it, or choose another folder (--out)"
    return f"{error.filename}: {error.strerror}"


def _throw_output_away() -> None:
    """What could not be printed, Python would try to print again at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_TOGETHER = ("cache-teachers", "train", "distill")  # the commands that several processes share


def _is_later_rank(ctx: click.Context) -> bool:
    """Whether rank 0 of the same command shows what this process would show.

    Only the commands that run on several ranks have a rank 0. Values that torchrun would not set are left to the
    command, which refuses them in one sentence.
    """
    rank, size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if ctx.invoked_subcommand not in _TOGETHER or not (rank.isdecimal() and size.isdecimal()):
        return False
    return 0 < int(rank) < int(size)


def _show_error(text: str) -> None:
    from demkd import console

    console.show_error(text)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="demkd", prog_name="demkd", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Distil many teachers into one student, from a cache of their answers.

    \b
    The whole pipeline on embedded data, offline, in two minutes:
        demkd demo
    Stage one, once per teacher:
        demkd cache-teachers --data DATA --teacher NETWORK@CHECKPOINT ... --out CACHE
    Stage two, as often as you like:
        demkd distill --data DATA --cache CACHE --student NETWORK --out RUN
    """
    if ctx.invoked_subcommand not in _TOGETHER:
        size = os.environ.get("WORLD_SIZE", "")
        if size.isdecimal() and int(size) > 1:
            raise click.UsageError(f"{ctx.invoked_subcommand} works in one process: start it without torchrun")
    elif _is_later_rank(ctx):
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - results are shown once, by rank 0


for _command in (
    *(stages.train, stages.cache_teachers, caches.merge, caches.pack, caches.inspect, caches.verify),
    *(stages.distill, stages.distill_together, stages.evaluate, looking.networks, stages.export),
    *(comparing.compare, comparing.sweep, looking.demo),
):
    main.add_command(_command)
