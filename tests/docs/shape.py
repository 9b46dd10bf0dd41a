"""Outputs with numbers masked, to compare documents with what commands print on another machine."""

import re

_DIGEST = re.compile(r"\b[0-9a-f]{12}\b")
_NUMBER = re.compile(r"(?<![A-Za-z_\d])[-+]?\d[\w.,+-]*%?")
_BARS = re.compile(r"[▁-█](?:[ ▁-█]*[▁-█])?")
_UNIT = re.compile(r"# (?:[kMGT]?B|ms|s|min|h)\b")


def shape(text: str) -> str:
    """A page without numbers, their units, histograms and widths."""
    text = re.sub(r"\b(?:bfloat16|float32)\b", "precision", text)
    text = _BARS.sub("~", _NUMBER.sub("#", _DIGEST.sub("#", text)))
    return " ".join(re.sub("─+", "─", _UNIT.sub("# unit", text)).split())
