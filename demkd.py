"""Lets `import demkd` find this checkout without installing: the folder itself is the package."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent)]
