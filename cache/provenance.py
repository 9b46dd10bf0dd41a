"""What a teacher's answers were made from: digests that must agree, and notes for people."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from demkd.cache.errors import CacheDamagedError, CacheMismatchError

_ABSENT = "(absent)"
_DEEPEST = 8

# What readers of a teacher's file rely on, and what they use if it is there.
_IDENTITY_TYPES = {
    ("teacher", "network"): str,
    ("teacher", "state_sha256"): str,
    ("data", "samples"): int,
    ("data", "class_names"): list,
    ("data", "labels_sha256"): str,
    ("views", "policy"): str,
    ("views", "seed"): int,
    ("precision",): str,
}
_NOTES_TYPES = {"data": str, "parameters": int, "hint_layer": str, "batch_size": int, "packed": str}
_LASTING_NOTE = "packed"  # of how a copy was made; true of its blocks for as long as they are there


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """A cache file's origin, as JSON-like tables.

    Attributes:
        identity: what determines the answers: the teacher's weights and normalisation, the pixels and labels, the
            views, the precision. Digests and words, never paths or times.
        notes: what does not, or hardly: names, device, batch size, versions.
        rows: of a shard, which samples it holds (`Shard.rows_table`); the identity is the same for all shards.
    """

    identity: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, int] | None = None

    def fingerprint(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(_canonical(self.identity).encode()).hexdigest()

    def remembering(self, earlier: Sequence["Provenance"]) -> "Provenance":
        """The same with the lasting notes of files whose blocks go on in another file."""
        lasting = [one.notes[_LASTING_NOTE] for one in earlier if _LASTING_NOTE in one.notes]
        return replace(self, notes={**self.notes, _LASTING_NOTE: lasting[0]}) if lasting else self

    def to_json(self) -> str:
        rows = {} if self.rows is None else {"rows": self.rows}
        return _canonical({"identity": self.identity, "notes": self.notes, **rows})

    @classmethod
    def from_json(cls, text: bytes) -> "Provenance":
        """Read what `to_json` wrote.

        Raises:
            CacheDamagedError: if the text is something else.
        """
        try:
            tables = json.loads(text)
            read = cls(identity=dict(tables["identity"]), notes=dict(tables["notes"]), rows=tables.get("rows"))
            counted = read.rows is None or all(type(number) is int for number in read.rows.values())
            if counted and _depth(tables) <= _DEEPEST and read.to_json().encode() == text:
                return read
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise CacheDamagedError("the provenance of the cache file cannot be read: remove the file and make it again")

    @property
    def rest_temperatures(self) -> tuple[float, ...]:
        """At which temperatures the sum of the logits that were not kept is there; none if all were."""
        return tuple(_look_up(self.identity, ("answers", "rest_temperatures")) or ())

    def require_teacher(self) -> None:
        """Check that this is the provenance of a teacher's answers.

        Raises:
            CacheDamagedError: naming what is absent or of another kind.
        """
        for path, expected in _IDENTITY_TYPES.items():
            if type(_look_up(self.identity, path)) is not expected:
                raise _nonsense(".".join(path))
        for name, expected in _NOTES_TYPES.items():
            if name in self.notes and type(self.notes[name]) is not expected:
                raise _nonsense(name)
        if not all(isinstance(name, str) for name in self.identity["data"]["class_names"]):
            raise _nonsense("data.class_names")
        temperatures = _look_up(self.identity, ("answers", "rest_temperatures")) or []
        if not isinstance(temperatures, list) or not all(isinstance(one, float) and one > 0 for one in temperatures):
            raise _nonsense("answers.rest_temperatures")

    def require_samples(self, found: int, expected: int) -> None:
        """Check that a file holds as many samples as this says.

        Raises:
            CacheDamagedError: if it holds others.
        """
        if found != expected:
            raise _nonsense("data.samples")

    @property
    def samples(self) -> int:
        """N, of the whole."""
        return int(self.identity["data"]["samples"])

    def require(self, other: "Provenance", *, cached: str, cure: str, tables: tuple[str, ...] | None = None) -> None:
        """Refuse to combine this cached provenance with another one whose identity differs.

        Args:
            other: what is in hand now.
            cached: what to call the cached file in the message.
            cure: what the user can do.
            tables: compare only these tables of the identity; all of them by default.

        Raises:
            CacheMismatchError: naming every field that differs, with both values.
        """
        chosen = tuple(self.identity.keys() | other.identity.keys()) if tables is None else tables
        mine = dict(_fields({name: self.identity.get(name, _ABSENT) for name in sorted(chosen)}))
        theirs = dict(_fields({name: other.identity.get(name, _ABSENT) for name in sorted(chosen)}))
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


def _look_up(tables: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if not isinstance(tables, Mapping) or key not in tables:
            return None
        tables = tables[key]
    return tables


def _depth(value: Any, reached: int = 0) -> int:
    """How deeply tables are nested; beyond the deepest that are ours, nobody looks."""
    if reached > _DEEPEST or not isinstance(value, dict | list):
        return reached
    inner = value.values() if isinstance(value, dict) else value
    return max((_depth(item, reached + 1) for item in inner), default=reached)


def _nonsense(field_name: str) -> CacheDamagedError:
    return CacheDamagedError(
        f"the provenance of the cache file says nothing sensible of {field_name}: remove the file and make it again"
    )


def _short(text: str) -> str:
    """A value that fits in a message."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in text[:81])
    return printable if len(printable) <= 80 else f"{printable[:77]}..."
