"""Where the program starts: Ctrl-C and SIGTERM have their words before anything large is imported."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

INTERRUPTED = 130


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends what runs as Ctrl-C does."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and end the process with its exit code."""
    own = os.getpid()

    def terminate(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == own:
            raise Terminated
        signal.signal(number, signal.SIG_DFL)  # a worker process, which nobody reads
        signal.raise_signal(number)

    if os.environ.get("WORLD_SIZE", "1") == "1":  # others wait for each other, and torchrun speaks for them
        signal.signal(signal.SIGTERM, terminate)
    try:
        from demkd.cli import main as commands

        commands(arguments)
    except KeyboardInterrupt as interrupt:
        text, code = last_words(interrupt)
        sys.stderr.write(f"error: {text}\n")
        sys.exit(code)


def last_words(interrupt: KeyboardInterrupt) -> tuple[str, int]:
    """A sentence, and the exit code that shells give to a signal."""
    word, code = ("ended by SIGTERM", 143) if isinstance(interrupt, Terminated) else ("interrupted", INTERRUPTED)
    return f"{word}; run the same command to resume", code
