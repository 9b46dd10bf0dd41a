"""How stages start Python modules of this project as processes of their own, installed or in a checkout."""

import os
import sys
from pathlib import Path


def python_module(name: str) -> list[str]:
    """The command that runs a module with this interpreter; give it `child_environment`."""
    return [sys.executable, "-P", "-m", name]  # -P: a file of the user's, in the current folder, hides no module


def child_environment() -> dict[str, str]:
    """This process's environment, with which another Python finds every module that this one finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)}
