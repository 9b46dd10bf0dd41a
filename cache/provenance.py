"""What a teacher's logits were computed from: digests that must agree, and notes for people."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from demkd.cache.errors import CacheMismatchError, unrepairable
from demkd.errors import shorten

_ABSENT = "(absent)"
_DEEPEST = 8

# What readers of a teacher's file rely on, and notes that they use where they are there.
_IDENTITY_TYPES = {
    "teacher.network": str,
    "teacher.state_sha256": str,
    "data.samples": int,
    "data.class_names": list,
    "data.labels_sha256": str,
    "views.policy": str,
    "views.seed": int,
    "precision": str,
}
_NOTES_TYPES = {"data": str, "parameters": int, "hint_layer": str, "batch_size": int, "packed": str}


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """A cache file's origin, as JSON-like tables."""

    # What determines the logits: the teacher's weights and normalization, the pixels and labels, the views, the
    # precision, how logits are kept. Digests and words, never paths or times.
    identity: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)  # what does not, or hardly: names, device, versions
    shard: tuple[int, int] = (1, 1)  # number and count of the file's shard; the identity is that of all shards

    @property
    def samples(self) -> int:
        """N, of all shards."""
        return int(self.identity["data"]["samples"])

    @property
    def classes(self) -> int:
        """C."""
        return len(self.identity["data"]["class_names"])

    @property
    def tail_temperatures(self) -> tuple[float, ...]:
        """Temperatures of the logsumexp of the logits outside the top k; none if all logits are kept."""
        return tuple(self.identity.get("logits", {}).get("tail_temperatures", ()))

    def fingerprint(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(_canonical(self.identity).encode()).hexdigest()

    def files_sha256(self, files: Sequence[str]) -> str:
        """SHA-256 of the paths of the images, and of their data."""
        return hashlib.sha256(json.dumps([self.identity["data"], files], sort_keys=True).encode()).hexdigest()

    def with_packed_note(self, earlier: Sequence["Provenance"]) -> "Provenance":
        """Keep the note of `pack`, which stays true of the blocks that are copied from earlier files."""
        packed = [provenance.notes["packed"] for provenance in earlier if "packed" in provenance.notes]
        return replace(self, notes={**self.notes, "packed": packed[0]}) if packed else self

    def to_json(self) -> str:
        return _canonical({"identity": self.identity, "notes": self.notes, "shard": self.shard})

    @classmethod
    def from_json(cls, text: bytes) -> "Provenance":
        try:
            tables = json.loads(text)
            number, count = tables["shard"]
            read = cls(identity=dict(tables["identity"]), notes=dict(tables["notes"]), shard=(number, count))
            if type(number) is type(count) is int and _depth(tables) <= _DEEPEST and read.to_json().encode() == text:
                return read
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise unrepairable("the provenance of the cache file cannot be read")

    def check_teacher(self) -> None:
        """Check that this is the provenance of a teacher."""
        wrong = [name for name, kind in _IDENTITY_TYPES.items() if type(_look_up(self.identity, name)) is not kind]
        wrong += [name for name, kind in _NOTES_TYPES.items() if type(self.notes.get(name, kind())) is not kind]
        if not wrong and not all(isinstance(name, str) for name in self.identity["data"]["class_names"]):
            wrong = ["data.class_names"]
        kept = self.identity.get("logits", {})
        tail = kept.get("tail_temperatures", []) if isinstance(kept, Mapping) else None
        if not isinstance(tail, list) or not all(isinstance(t, float) and t > 0 for t in tail):
            wrong.append("logits.tail_temperatures")
        if wrong:
            raise unrepairable(f"the provenance of the cache file has no valid {wrong[0]}")

    def check_same(self, other: "Provenance", *, cached: str, cure: str, tables: tuple[str, ...] | None = None) -> None:
        """Refuse to combine this cached provenance with the present one, if their identities differ.

        In the message, `cached` names the file, and `cure` is what the user can do. With `tables`, only these tables of
        the identity are compared.
        """
        chosen = self.identity.keys() | other.identity.keys() if tables is None else tables
        mine, theirs = (
            {
                name: value if isinstance(value, str) else json.dumps(value)
                for name, value in _fields({table: identity.get(table, _ABSENT) for table in chosen})
            }
            for identity in (self.identity, other.identity)
        )
        pairs = {name: (mine.get(name, _ABSENT), theirs.get(name, _ABSENT)) for name in mine | theirs}
        different = {
            name: f"{name} is {_quoted(name, before)} in the cache and {_quoted(name, now)} now"
            for name, (before, now) in sorted(pairs.items())
            if before != now
        }
        if different:
            names = sorted(different, key=lambda name: (_is_digest(name), len(different[name])))
            shown = "; ".join(different[name] for name in names[:2])
            others = f"; also different: {', '.join(names[2:])}" if names[2:] else ""
            raise CacheMismatchError(f"{cached} was made from something else: {shown}{others}. {cure}")


def _is_digest(name: str) -> bool:
    """Whether a field is a digest, which says less than a number."""
    return name.endswith("_sha256")


def _quoted(name: str, value: str) -> str:
    return shorten(value)[: 12 if _is_digest(name) else None]


def _canonical(tables: Mapping[str, Any]) -> str:
    """One text for equal tables, whatever the order of their keys."""
    return json.dumps(tables, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested tables with its dotted name; lists are leaves."""
    if isinstance(value, Mapping):
        for key in value:
            yield from _fields(value[key], f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _look_up(tables: Any, path: str) -> Any:
    for key in path.split("."):
        tables = tables.get(key) if isinstance(tables, Mapping) else None
    return tables


def _depth(value: Any, reached: int = 0) -> int:
    """How deeply tables are nested, up to one more than is allowed."""
    if reached > _DEEPEST or not isinstance(value, dict | list):
        return reached
    inner = value.values() if isinstance(value, dict) else value
    return max((_depth(item, reached + 1) for item in inner), default=reached)
