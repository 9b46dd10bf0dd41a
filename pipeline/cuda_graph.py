"""A step of training as a CUDA graph: captured once, then replayed.

With small images a step is some hundred kernels that run for microseconds each: launching them one by one takes
longer than running them. A replay launches all at once, on the captured tensors, into which each step's are copied.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from demkd.config import MethodConfig

Argument = TypeVar("Argument")

_EAGER_STEPS = 3  # before the capture, so that libraries have chosen their kernels and optimisers made their state


class CudaGraph(Generic[Argument]):
    """Calls a function of tensors on a GPU, by replaying it wherever the shapes are those of its first calls."""

    def __init__(
        self, function: Callable[[Argument], Tensor], device: torch.device, warn: Callable[[str], None]
    ) -> None:
        """The function does the same for equal shapes; what it returns is overwritten by the next call.

        One that waits for the GPU cannot be captured: after one warning, it is called in the ordinary way. Tensors that
        are those of the call before are not copied again: do not change them.
        """
        self._function, self._warn = function, warn
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._can_capture = True
        self._shapes: list[torch.Size] = []
        self._calls = 0
        self._argument: Argument | None = None
        self._last: list[Tensor] = []
        self._result: Tensor | None = None

    def __call__(self, argument: Argument) -> Tensor:
        shapes = [tensor.shape for tensor in _tensors(argument)]
        if self._graph is None and shapes != self._shapes:
            self._shapes, self._calls = shapes, 0
        if shapes != self._shapes or self._calls < _EAGER_STEPS or not self._can_capture:
            self._calls += shapes == self._shapes
            return self._on_stream(argument)
        if self._graph is None:
            self._can_capture = self._capture(argument)
            if not self._can_capture:
                return self._on_stream(argument)
        else:
            given = list(_tensors(argument))
            for static, tensor, last in zip(_tensors(self._argument), given, self._last, strict=True):
                if tensor is not last:
                    static.copy_(tensor)
            self._last = given
        assert self._graph is not None
        assert self._result is not None
        self._graph.replay()
        return self._result

    def _on_stream(self, argument: Argument) -> Tensor:
        """An ordinary call, on the stream of the capture: libraries keep memory by stream."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._function(argument)
        current.wait_stream(self._stream)
        return result

    def _capture(self, argument: Argument) -> bool:
        """Capture a call, which does not make it; False if it waits for the GPU, as a user's network may."""
        self._argument, self._last = _mapped(argument, torch.clone), list(_tensors(argument))
        torch.cuda.synchronize(self._stream.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._result = self._function(self._argument)
        except RuntimeError as error:
            torch.cuda.synchronize(self._stream.device)
            reason = str(error).partition("\n")[0] or type(error).__name__
            self._warn(
                f"the training step cannot be captured in a CUDA graph ({reason}): training runs without one, "
                "which is slower for small images"
            )
            return False
        self._graph = graph
        return True


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested dataclasses and sequences, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, MethodConfig):  # of the targets; has no tensors
        return
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same with every tensor replaced by what a function makes of it."""
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type | MethodConfig):
        return replace(value, **{field.name: _mapped(getattr(value, field.name), function) for field in fields(value)})
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_mapped(item, function) for item in value]
    return value
