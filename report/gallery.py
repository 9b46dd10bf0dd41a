"""Galleries: samples worth a look, with their pictures where there are some.

N samples, H and W pixels.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demkd.report.samples import SampleListing, SampleRow
from demkd.report.tables import Cell, Column, Table, number, word

LARGEST_SIDE = 64
Picture = Callable[[int], NDArray[np.uint8]]  # number of a sample -> (H, W, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exhibit:
    """A sample with its picture as a data URI, and whether it was made smaller."""

    row: SampleRow
    picture: str
    shrunk: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Gallery:
    """Samples of one listing; without pictures, a table of them."""

    key: str
    title: str
    caption: str
    exhibits: Sequence[Exhibit]
    table: Table


def gallery(listing: SampleListing, picture: Picture | None, *, key: str, title: str, caption: str) -> Gallery:
    """Show a listing, with pictures where there are some."""
    exhibits = () if picture is None else [_exhibit(row, picture(row.index)) for row in listing.rows]
    table = _table(listing, key=f"{key}-table", title=title, caption=caption)
    return Gallery(key=key, title=title, caption=caption, exhibits=exhibits, table=table)


def _exhibit(row: SampleRow, picture: NDArray[np.uint8]) -> Exhibit:
    return Exhibit(row=row, picture=_data_uri(picture), shrunk=max(picture.shape[:2]) > LARGEST_SIDE)


def shrink(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) with at most `LARGEST_SIDE` pixels a side, of means over squares; a last part is cut off."""
    factor = -(-max(picture.shape[:2]) // LARGEST_SIDE)
    height, width = (max(side // factor, 1) for side in picture.shape[:2])
    if factor == 1:
        return picture
    cut = picture[: height * factor, : width * factor]
    squares = cut.reshape(height, cut.shape[0] // height, width, cut.shape[1] // width, 3)
    means: NDArray[np.uint8] = np.round(squares.mean((1, 3))).astype(np.uint8)
    return means


def _data_uri(picture: NDArray[np.uint8]) -> str:
    from matplotlib.image import imsave  # the extra `report` has it; listings are shown without

    content = io.BytesIO()
    settings: dict[str, Any] = {"metadata": {"Software": None}}
    imsave(content, shrink(picture), format="png", **settings)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _table(listing: SampleListing, *, key: str, title: str, caption: str) -> Table:
    columns = [Column(text="sample", numeric=False), Column(text="label", numeric=False), Column(text="score")]
    columns += [Column(text="trusted", numeric=False)] if _names_the_trusted(listing) else []
    for name in listing.teachers:
        columns += [Column(text=f"{name}: answer", numeric=False), Column(text="entropy"), Column(text="weight")]
    rows = [_table_row(row) for row in listing.rows]
    return Table(key=key, title=title, caption=caption, columns=columns, rows=rows, tall=True)


def _names_the_trusted(listing: SampleListing) -> bool:
    return any(row.trusted is not None for row in listing.rows)


def _table_row(row: SampleRow) -> list[Cell]:
    cells = [word(row.index), word(row.label), number(row.score, "score")]
    cells += [] if row.trusted is None else [word(row.trusted)]
    for teacher in row.teachers:
        answer = f"{teacher.prediction} in {teacher.share:.0%} of views"
        cells += [word(answer), number(teacher.entropy, "entropy"), number(teacher.weight, "weight")]
    return cells
