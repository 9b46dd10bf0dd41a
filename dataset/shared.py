"""Pictures for several students that train in turn: who asks for the same views gets those of one decode.

Students that take steps in turn ask for an epoch's views before any of them takes the first batch; those whose tasks
are equal, but for their sizes, share a stream. A batch lives until all have taken it, so that they must take turns.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from demkd.dataset.source import StreamedImages, Views, ViewTask
from demkd.dataset.views import ViewPolicy


@dataclass(frozen=True, kw_only=True)
class SharedImages(StreamedImages):
    """Pictures that are read when they are needed, once for all who ask for the same."""

    _last: list["_Stream"] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def of(cls, source: StreamedImages, **changes: Any) -> Self:
        return cls(**{one.name: getattr(source, one.name) for one in fields(source)} | changes)

    def views(self, policy: ViewPolicy, tasks: Iterable[ViewTask], device: torch.device) -> Iterator[Views]:
        asked = tuple(tasks)
        if not (self._last and self._last[0].joins(policy, asked, device)):
            self._last[:] = [_Stream(policy, asked, device)]
        return self._last[0].read(self, asked[0].sizes if asked else ())

    def read_alone(self, policy: ViewPolicy, tasks: Iterable[ViewTask], device: torch.device) -> Iterator[Views]:
        """The views for one stream."""
        return super().views(policy, tasks, device)


class _Stream:
    """The views of some tasks, in all sizes that somebody wants."""

    def __init__(self, policy: ViewPolicy, tasks: tuple[ViewTask, ...], device: torch.device) -> None:
        self._policy, self._tasks, self._device = policy, tasks, device
        self._sizes: dict[int | None, None] = {}  # in the order in which they were asked for
        self._views: Iterator[Views] | None = None
        self._place = -1
        self._batch: Views = {}
        self._uploaded: torch.cuda.Event | None = None

    def joins(self, policy: ViewPolicy, tasks: tuple[ViewTask, ...], device: torch.device) -> bool:
        """Whether somebody else wants these very views, and none was made so far."""
        if self._views is not None or (policy, device, len(tasks)) != (self._policy, self._device, len(self._tasks)):
            return False
        return all(
            torch.equal(mine.indices, other.indices) and torch.equal(mine.records, other.records)
            for mine, other in zip(self._tasks, tasks, strict=True)
        )

    def read(self, source: SharedImages, sizes: tuple[int | None, ...]) -> Iterator[Views]:
        """The views for one of those who share them."""
        self._sizes |= dict.fromkeys(sizes)
        return self._read(source, sizes)

    def _read(self, source: SharedImages, sizes: tuple[int | None, ...]) -> Iterator[Views]:
        for place in range(len(self._tasks)):
            if self._views is None:
                wanted = tuple(self._sizes)
                self._views = source.read_alone(
                    self._policy, (replace(task, sizes=wanted) for task in self._tasks), self._device
                )
            if place == self._place + 1:
                self._place, self._batch = place, next(self._views)
                self._note_upload()
            if place != self._place:
                raise RuntimeError(f"batch {place} was asked for, and {self._place} is there: take batches in turn")
            yield {size: self._taken(self._batch[size]) for size in sizes}

    def _note_upload(self) -> None:
        """Remember when a batch is there: on a GPU whoever takes a step has a stream of its own."""
        if self._device.type == "cuda":
            self._uploaded = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._uploaded.record()

    def _taken(self, views: Sequence[Tensor]) -> Sequence[Tensor]:
        """Views that may be read on the current stream, and whose memory stays until it has done so."""
        if self._uploaded:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._uploaded)
            for view in views:
                view.record_stream(stream)
        return views
