"""A run of a sweep, as `sweeping.py` starts it: the command line, in a process that ends when the sweep's ends.

python -m demkd.pipeline.sweep_child distill ...        with one end of a pipe as stdin
"""

import os
import runpy
import sys
import threading


def _end_with_stdin() -> None:
    """Exit when the other end of the pipe is closed, which the system does even where the sweep was killed."""
    os.read(0, 1)
    os._exit(1)  # as after a kill: the run goes on from its checkpoint when it is called again


if __name__ == "__main__":
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    sys.argv[0] = "demkd"
    runpy.run_module("demkd.cli", run_name="__main__")
