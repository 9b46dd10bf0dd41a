"""What an output is, but for numbers: so documents can be compared with what commands print elsewhere, later."""

import re

_DIGEST = re.compile(r"\b[0-9a-f]{12}\b")
_NUMBER = re.compile(r"(?<![A-Za-z_\d])[-+]?\d[\w.,+-]*%?")
_BARS = re.compile(r"[▁-█](?:[ ▁-█]*[▁-█])?")
_UNIT = re.compile(r"# (?:[kMGT]?B|ms|s|min|h)\b")


def shape(text: str) -> str:
    """A page without what differs between machines and hours: numbers, their units, histograms and widths."""
    text = re.sub(r"^made by .*$", "made by", text, flags=re.MULTILINE)
    text = re.sub(r"\b(?:bfloat16|float32)\b", "precision", text)
    text = _BARS.sub("~", _NUMBER.sub("#", _DIGEST.sub("#", text)))
    return " ".join(re.sub("─+", "─", _UNIT.sub("# unit", text)).split())
