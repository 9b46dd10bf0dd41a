"""HDF5's own view of files: where it finds which data set. Also a program of its own, because HDF5 may not come back.

    python hdf5_view.py FILE ...        prints a line of JSON a file: {name: [offset, shape, type]}, or null

A crafted header can make the HDF5 library hang or end its process (measured). So `verify` asks it in another one, which
imports nothing of this project.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Data set -> offset, shape and type, as HDF5 says.
View = dict[str, tuple[int | None, tuple[int, ...], str]]

_PATIENCE = 60.0  # seconds; a sound file takes milliseconds


def hdf5_extent(dataset: Any) -> tuple[int, tuple[int, ...], str]:
    """Offset, shape and type of an open h5py data set; a text is bytes to us."""
    if dataset.dtype.kind == "S":
        return dataset.id.get_offset(), (dataset.dtype.itemsize,), "|u1"
    return dataset.id.get_offset(), dataset.shape, dataset.dtype.str


def ask_hdf5(paths: Sequence[Path]) -> dict[Path, View | None]:
    """What HDF5 finds in each file, in a process of its own; None for one that it cannot read, or does not survive."""
    found = _ask(paths) if paths else []
    if len(found) < len(paths):  # one of them ended the process: ask for each alone, to know which
        found = [next(iter(_ask([path])), None) for path in paths]
    return dict(zip(paths, found, strict=True))


def _ask(paths: Sequence[Path]) -> list[View | None]:
    """The answers that came, which are fewer than the paths if the process did not live to the end."""
    command = [sys.executable, "-P", __file__, *map(str, paths)]
    try:
        result = subprocess.run(  # noqa: S603 - our own interpreter and file
            command, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return []
    lines = result.stdout.split("\n")[:-1]  # what follows the last newline was cut short
    return [_parse(line) for line in lines]


def _parse(line: str) -> View | None:
    found = json.loads(line)
    if found is None:
        return None
    return {name: (offset, tuple(shape), dtype) for name, (offset, shape, dtype) in found.items()}


def _view(path: str) -> View | None:
    import h5py

    found: View = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = hdf5_extent(item)

    try:
        with h5py.File(path, "r", locking=False) as file:
            file.visititems(note)
    except Exception:  # whatever h5py makes of a strange file, it cannot be read
        return None
    return found


def _main(paths: Sequence[str]) -> None:
    for path in paths:
        print(json.dumps(_view(path)), flush=True)  # noqa: T201 - that is its answer


if __name__ == "__main__":
    _main(sys.argv[1:])
