"""Work in worker processes whose results come in order, by PyTorch's DataLoader."""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from demkd.errors import DataError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST = 16
_AHEAD = 2  # items that every worker gets before they are needed


def default_workers() -> int:
    """The cores that this process may use, minus one that computes; at least 1, at most 16.

    The processes that torchrun starts on a machine share its cores.
    """
    # macOS has no affinity of a process.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable // local_processes() - 1, _MOST))


def local_processes() -> int:
    """The processes that torchrun started on this machine; 1 without torchrun, or if its variable is not a number."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(int(text), 1) if text.isdecimal() else 1


class Workers(Generic[Item, Result]):
    """Calls a function on items, in processes that start when they are first needed and stay until `close`."""

    def __init__(self, function: Callable[[Item], Result], workers: int) -> None:
        """With 0 workers all happens in this process; else the function is pickled, and arrays should be tensors."""
        self._function, self._workers = function, workers
        self._feed = _Feed()
        self._loader: DataLoader[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, even in the middle of an item; the next `map` starts others."""
        loader, self._loader, self._feed.items = self._loader, None, ()
        if loader is not None and loader._iterator is not None:
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]  # else they last as long as any reference

    def map(self, items: Iterable[Item], *, pin: bool = False) -> Generator[Result, None, None]:
        """Results in the order of the items, which are taken ahead; `pin` puts tensors where a GPU copies faster."""
        if not self._workers:
            yield from map(self._function, items)
            return
        self._feed.items = items
        if self._loader is None:
            self._loader = DataLoader(
                _Results(self._function),
                sampler=self._feed,
                batch_size=None,
                collate_fn=_unchanged,
                num_workers=self._workers,
                persistent_workers=True,
                prefetch_factor=_AHEAD,
                pin_memory=pin,
                generator=torch.Generator(),  # its own: to start draws a number, which a network's dropout would miss
            )
        try:
            # PyTorch's SIGCHLD handler would raise in whatever runs when a worker is killed, the caller's code too;
            # without it the loader itself notices, within seconds, when it waits for that worker.
            handler = signal.getsignal(signal.SIGCHLD)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that this process has threads: workers never use what those hold
                results = iter(self._loader)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
            for result in results:
                if isinstance(result, UserError):
                    raise result
                yield result
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            self.close()
            raise DataError(
                f"a process that decodes images was killed ({error}), probably out of memory: lower `workers`, and "
                "run the same command to resume"
            ) from None


class _Feed:
    """The sampler of the DataLoader: whatever items are next."""

    items: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class _Results(Dataset[Any]):
    """The results by item; a UserError is returned, because a raised one would get the worker's traceback."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __getitem__(self, item: Any) -> Any:
        try:
            return self._function(item)
        except UserError as error:
            return error


def _unchanged(result: Any) -> Any:
    return result
