"""Work done in worker processes and taken in order, by PyTorch's DataLoader: it knows what happens when one is killed.

A worker that meets what a user can repair hands the sentence back; it is raised here without the worker's traceback.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from demkd.dataset.errors import DataError
from demkd.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST = 16
_AHEAD = 2  # items that every worker is given before they are asked for


def default_workers() -> int:
    """One for each core that this process may use but one, which computes; at least 1, at most 16.

    The processes that torchrun started on a machine share its cores.
    """
    # macOS has no affinity of a process.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = usable // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(1, min(cores - 1, _MOST))


class Workers(Generic[Item, Result]):
    """Calls a function on items, in other processes, which start when they are first needed and stay until `close`.

    A context manager, which closes.
    """

    def __init__(self, function: Callable[[Item], Result], workers: int) -> None:
        """Prepare; with 0 workers everything happens in this process.

        Args:
            function: with everything that it needs; results travel, so arrays should be tensors.
        """
        self._function, self._workers = function, workers
        self._feed = _Feed()
        self._loader: DataLoader[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, whatever they are at; the next `map` starts others."""
        loader, self._loader, self._feed.items = self._loader, None, ()
        if loader is not None and loader._iterator is not None:
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]  # else they last as long as any reference

    def map(self, items: Iterable[Item], *, pin: bool = False) -> Iterator[Result]:
        """The results in the order of the items, which are taken some ahead of their results.

        Args:
            pin: put tensors into memory from which a GPU copies faster.

        Raises:
            UserError: that the function raised.
            DataError: if a worker was killed.
        """
        if not self._workers:
            yield from map(self._function, items)
            return
        self._feed.items = items
        if self._loader is None:
            self._loader = DataLoader(
                _Calls(self._function),
                sampler=self._feed,
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=self._workers,
                persistent_workers=True,
                prefetch_factor=_AHEAD,
                pin_memory=pin,
                generator=torch.Generator(),  # its own: to begin draws a number, which a network's dropout would miss
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this process has threads: workers never touch what those hold
            results = iter(self._loader)
        while True:
            try:
                result = next(results)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise DataError(
                    f"a process that decodes pictures was ended from outside ({error}): is memory short? Give fewer "
                    "`workers`, and run the same again"
                ) from None
            if isinstance(result, UserError):
                raise result
            yield result


class _Feed:
    """What a DataLoader takes as its sampler: whatever items are next."""

    def __init__(self) -> None:
        self.items: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def _as_it_is(result: Any) -> Any:
    return result


class _Calls(Dataset[Any]):
    """A data set whose items are results."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __getitem__(self, item: Any) -> Any:
        try:
            return self._function(item)
        except UserError as error:
            return error
