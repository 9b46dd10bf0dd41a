"""Long work in steps, so that several students can train in turn in one process.

A run is a generator that does a step of training between two yields, and returns what came of it. Whoever drives it
decides what else happens in between.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch

Result = TypeVar("Result")


class Turn(NamedTuple):
    """What a run is about to read from files: runs that announce the same do so together, others one after another.

    Attributes:
        phase: of the epoch: 0 for training, 1 for testing.
        views: says which views of which samples; equal texts, equal views.
    """

    epoch: int
    phase: int
    views: str


Steps = Generator[Turn | None, None, Result]  # announces a turn, or that a step was done


def to_the_end(steps: Steps[Result]) -> Result:
    """Do all steps, and nothing in between."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


def in_turn(runs: Sequence[Steps[Result]], device: torch.device) -> Iterator[tuple[int, Result]]:
    """Do a step of each run in turn, until all have come to an end: number and result of each, as they end.

    Each run draws its random numbers as if it were alone (on a CPU), and has a stream of its own on a GPU, where small
    students of several runs are computed at once. Where runs announce turns, those go on whose turn is the first: one
    that was resumed an epoch ahead waits for the others. If one fails the others are closed, and go on when called
    again.
    """
    left, begun = dict(enumerate(runs)), set[int]()
    turns = dict.fromkeys(left, Turn(0, 0, ""))
    states = dict.fromkeys(left, torch.get_rng_state())
    streams = {number: _stream(device) for number in left}
    try:
        while left:
            first = min(turns[number] for number in left)
            for number in [number for number in left if turns[number] == first]:
                torch.set_rng_state(states[number])
                try:
                    with _on(streams[number]):
                        turns[number] = next(left[number]) or turns[number]
                except StopIteration as end:
                    del left[number]
                    yield number, end.value
                states[number] = torch.get_rng_state()
                if streams[number] and number not in begun:
                    streams[number].synchronize()  # what one run makes first, such as padded pictures, others may use
                    begun.add(number)
    finally:
        for steps in left.values():
            steps.close()


def _stream(device: torch.device) -> Any:
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _on(stream: Any) -> AbstractContextManager[Any]:
    return nullcontext() if stream is None else torch.cuda.stream(stream)
