"""Lets `import demkd` find this checkout without installing: the folder itself is the package."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent)]

from demkd.__init__ import __dir__, __getattr__  # noqa: F401 - found by the path above
