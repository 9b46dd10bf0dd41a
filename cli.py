"""The command line's start: Ctrl-C and SIGTERM end in one sentence, before anything large is imported."""

import os
import signal
import sys
from types import FrameType
from typing import Any

INTERRUPTED = 130


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends what runs as Ctrl-C does."""


def run() -> None:
    """Run the command line, and end the process with its exit code."""
    own, shows = os.getpid(), os.environ.get("RANK", "0") == "0"  # torchrun's other ranks end without a sentence

    def end(number: int, frame: FrameType | None) -> None:
        interrupt = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        if os.getpid() == own:
            # torchrun sends a second SIGINT, and people press Ctrl-C twice: neither the sentence nor the exit code may
            # suffer. Python keeps SIG_IGN, and no other handler, while it ends.
            for later in (signal.SIGINT, signal.SIGTERM):
                signal.signal(later, signal.SIG_IGN)
            if _is_importing(frame):  # libraries in C++ end in aborts if an import raises
                text, code = last_words(interrupt)
                if shows:
                    os.write(2, f"error: {text}\n".encode())
                os._exit(code)
            raise interrupt
        signal.signal(number, signal.SIG_DFL)  # a worker process, whose output nobody reads
        signal.raise_signal(number)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, end)
    if shows:  # after a second Ctrl-C torchrun sends SIGTERM too, which must not end this rank before its sentence
        signal.signal(signal.SIGTERM, end)
    try:
        from demkd.commands import main

        main()
    except KeyboardInterrupt as interrupt:
        text, code = last_words(interrupt)
        if shows:
            sys.stderr.write(f"error: {text}\n")
        sys.exit(code)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def last_words(interrupt: KeyboardInterrupt) -> tuple[str, int]:
    """A sentence, and the exit code that shells give to a signal."""
    word, code = ("ended by SIGTERM", 143) if isinstance(interrupt, Terminated) else ("interrupted", INTERRUPTED)
    return f"{word}; run the same command to resume", code


def __getattr__(name: str) -> Any:
    """`main`, the group of all commands, is imported when it is used."""
    if name != "main":
        raise AttributeError(f"module 'demkd.cli' has no attribute {name!r}")
    from demkd.commands import main

    return main


if __name__ == "__main__":  # `python cli.py` in a checkout; commands.py catches the `Terminated` of `demkd.cli`
    try:
        from demkd.cli import run as start
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    start()
