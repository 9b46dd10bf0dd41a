"""Which data sets a cache file holds, in what shapes, in what blocks, and where.

    user block    magic line, SHA-256, contents                                              user_block.py
    HDF5          metadata and sealed data sets, which never change after creation and are covered by the SHA-256,
                  open data sets, which are filled block by block and covered by their ledgers' checksums    file.py

V slots, N samples, C classes, R integers of a view's record, k kept logits, T temperatures; a block is `block_rows`
consecutive samples of one slot.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from demkd.cache.errors import CacheDamagedError
from demkd.cache.shards import Shard

FORMAT_VERSION = 3
BLOCK_ROWS = 1024
# A ledger entry is 0 for a block that nobody wrote, else this bit and the block's checksum: one 8-byte write says both.
WRITTEN = 1 << 32

Array = NDArray[Any]
Shapes = Mapping[str, tuple[tuple[int, ...], str]]  # name -> shape, type


class Extent(NamedTuple):
    """A contiguous data set: where its bytes begin, and what they are."""

    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def slot_bytes(self) -> int:
        """Bytes of one entry of the first axis."""
        return (self.end - self.offset) // self.shape[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheShape:
    """How much one teacher's answers are, or those in one file of them.

    Attributes:
        num_views: V.
        samples: N, of the whole or of a shard.
        record_length: R, the integers of a view's record.
        keep: k, the largest logits that are kept of every answer; None for all C.
        rest_temperatures: at which the sum of the other logits is kept, if not all are.
        features: layer -> shape of one sample's features, (channels,) or (channels, height, width).
        first_sample: of a shard, as the whole counts them.
    """

    num_views: int
    samples: int
    classes: int
    record_length: int = 1
    keep: int | None = None
    rest_temperatures: tuple[float, ...] = ()
    features: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    block_rows: int = BLOCK_ROWS
    first_sample: int = 0

    @property
    def blocks(self) -> int:
        """Blocks per slot."""
        return -(-self.samples // self.block_rows)

    def rows(self, block: int) -> slice:
        """The rows of a block, in this file."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.samples))

    def samples_of(self, block: int) -> range:
        """The samples of a block, as the whole counts them."""
        rows = self.rows(block)
        return range(self.first_sample + rows.start, self.first_sample + rows.stop)

    @property
    def first_block(self) -> int:
        """The number of the first block in the whole: a ledger's entries are of blocks of the whole."""
        return self.first_sample // self.block_rows

    def part(self, shard: Shard) -> "CacheShape":
        """What a shard of this whole holds."""
        samples = shard.samples(self.samples, self.block_rows)
        return replace(self, samples=len(samples), first_sample=samples.start)

    def answers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """The data sets that teachers fill, each (V, N, ...): name -> shape, type."""
        plane = (self.num_views, self.samples)
        number = "<u2" if self.classes <= 1 << 16 else "<u4"
        parts: dict[str, tuple[tuple[int, ...], str]] = {"logits": ((*plane, self.keep or self.classes), "<f2")}
        if self.keep is not None:
            parts |= {
                "classes": ((*plane, self.keep), number),
                "label_logit": (plane, "<f2"),
                "rest": ((*plane, len(self.rest_temperatures)), "<f4"),
            }
        return {
            **parts,
            "entropy": (plane, "<f4"),
            "prediction": (plane, number),
            "view": ((*plane, self.record_length), "<u2"),
            **{f"features/{layer}": ((*plane, *shape), "<f2") for layer, shape in self.features.items()},
        }

    def ledgers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """One ledger (V, blocks) per data set of answers."""
        return {f"ledger/{name}": ((self.num_views, self.blocks), "<u8") for name in self.answers()}

    def payload_bytes(self) -> int:
        """Bytes of the answers alone."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.answers().values())

    def row_bytes(self) -> int:
        """Bytes of the answers to one sample in one slot."""
        return self.payload_bytes() // (self.num_views * self.samples)

    def union(self, other: "CacheShape") -> "CacheShape":
        """The smallest shape that covers both, in the other's blocks; all else must be the same."""
        views = max(self.num_views, other.num_views)
        features = {**self.features, **other.features}
        covering = replace(self, num_views=views, features=features, block_rows=other.block_rows)
        assert covering == replace(other, num_views=views, features=features)
        return covering

    def covers(self, wanted: "CacheShape") -> bool:
        """Whether a file of this shape has everything that is wanted."""
        return wanted.union(self) == self


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """A file's contents, as its user block says."""

    size: int
    block_rows: int
    contents: Mapping[str, Extent]
    sha256: str

    def open_extents(self) -> list[Extent]:
        """The extents whose bytes may change after creation, in file order."""
        answers = [name.removeprefix("ledger/") for name in self.contents if name.startswith("ledger/")]
        return sorted(extent for name, extent in self.contents.items() if name in answers or name.startswith("ledger/"))

    def shape(self, *, classes: int, rest_temperatures: tuple[float, ...], first_sample: int) -> CacheShape:
        """The shape of a teacher's file.

        Args:
            classes, rest_temperatures, first_sample: as its provenance says.

        Raises:
            CacheDamagedError: if the contents are not those of a teacher's file.
        """
        features = {
            name.removeprefix("features/"): extent.shape[2:]
            for name, extent in self.contents.items()
            if name.startswith("features/")
        }
        dimensions = self.contents["logits"].shape if "logits" in self.contents else ()
        record = self.contents["view"].shape[2:] if "view" in self.contents else ()
        if len(dimensions) == 3 and len(record) == 1:
            views, samples, kept = dimensions
            shape = CacheShape(
                num_views=views,
                samples=samples,
                classes=classes,
                record_length=record[0],
                keep=kept if "classes" in self.contents else None,
                rest_temperatures=rest_temperatures,
                features=features,
                block_rows=self.block_rows,
                first_sample=first_sample,
            )
            expected = {**shape.answers(), **shape.ledgers(), "label": ((samples,), "<i8")}
            found = {name: (extent.shape, extent.dtype) for name, extent in self.contents.items()}
            if found.items() - {("provenance", found["provenance"])} == expected.items():
                return shape
        raise CacheDamagedError("the file does not hold what a teacher's cache holds: remove it and make it again")


def ledger_entry(name: str, slot: int, block: int, data: Array) -> int:
    """What the ledger says of a written block: CRC-32 of its place and its bytes, so that a block in another's place
    fails as surely as a flipped bit; `block` is its number in the whole, so a shard in another's place fails too."""
    place = f"{name}/{slot}/{block}".encode()
    return WRITTEN | crc32(np.ascontiguousarray(data).data.cast("B"), crc32(place))
