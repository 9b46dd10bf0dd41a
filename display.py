"""What notebooks and rich ask an object for; how it looks, only `console` knows, and is found when somebody looks.

By its name, and not by an import: those who are shown know nothing of those who show.
"""

from importlib import import_module
from typing import Any


class Displayed:
    """Shown in a notebook, and by rich, as the command line shows it."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        html: str = _notebook().as_html(self)
        return html

    def __rich__(self) -> Any:
        return _notebook().as_text(self)


def _notebook() -> Any:
    return import_module("demkd.console.notebook")
