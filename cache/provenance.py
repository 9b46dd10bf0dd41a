"""What a teacher's answers were made from: digests that must agree, and circumstances that are only noted."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from demkd.cache.errors import CacheDamagedError, CacheMismatchError

_ABSENT = "(absent)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """A cache file's origin, as JSON-like tables.

    Attributes:
        bound: what determines the answers: the teacher's weights and normalisation, the pixels and labels, the views,
            the precision. Digests and words, never paths or times.
        noted: what does not, or hardly: names, device, batch size, versions.
    """

    bound: Mapping[str, Any]
    noted: Mapping[str, Any] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """SHA-256 of the bound part."""
        return hashlib.sha256(_canonical(self.bound).encode()).hexdigest()

    def to_json(self) -> str:
        return _canonical({"bound": self.bound, "noted": self.noted})

    @classmethod
    def from_json(cls, text: bytes) -> "Provenance":
        """Read what `to_json` wrote.

        Raises:
            CacheDamagedError: if the text is something else.
        """
        try:
            tables = json.loads(text)
            bound, noted = dict(tables["bound"]), dict(tables["noted"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise CacheDamagedError("the provenance of the cache file cannot be read: make the cache again") from None
        return cls(bound=bound, noted=noted)

    def require(self, other: "Provenance", *, cached: str, cure: str, tables: tuple[str, ...] | None = None) -> None:
        """Refuse to combine this cached provenance with another one whose bound part differs.

        Args:
            other: what is in hand now.
            cached: what to call the cached file in the message.
            cure: what the user can do.
            tables: compare only these tables of the bound part; all of them by default.

        Raises:
            CacheMismatchError: naming every field that differs, with both values.
        """
        chosen = tuple(self.bound.keys() | other.bound.keys()) if tables is None else tables
        mine = dict(_fields({name: self.bound.get(name, _ABSENT) for name in sorted(chosen)}))
        theirs = dict(_fields({name: other.bound.get(name, _ABSENT) for name in sorted(chosen)}))
        different = [
            f"{name} is {_short(mine.get(name, _ABSENT))} in the cache and {_short(theirs.get(name, _ABSENT))} now"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name, _ABSENT) != theirs.get(name, _ABSENT)
        ]
        if different:
            raise CacheMismatchError(f"{cached} was made from something else: {'; '.join(different)}. {cure}")


def _canonical(tables: Mapping[str, Any]) -> str:
    """One text for equal tables, whatever the order of their keys."""
    return json.dumps(tables, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of nested tables with its dotted name; lists are leaves."""
    if isinstance(value, Mapping):
        for key in value:
            yield from _fields(value[key], f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
