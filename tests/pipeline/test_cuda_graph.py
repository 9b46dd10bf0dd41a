"""A step that cannot be captured, with a GPU that is simulated; test_gpu.py has a real one."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from demkd.pipeline.cuda_graph import CudaGraph


@contextmanager
def refused(*_: Any, **__: Any) -> Iterator[None]:
    raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
    yield


def test_what_cannot_be_captured_is_said_once_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(wait_stream=lambda _: None, device="cuda")
    fakes = {"Stream": lambda _: stream, "current_stream": lambda _: stream, "stream": lambda _: nullcontext(),
             "synchronize": lambda _: None, "CUDAGraph": object, "graph": refused}  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    warnings: list[str] = []
    replay = CudaGraph(lambda numbers: numbers.sum(), torch.device("cuda"), warnings.append)
    assert [float(replay(torch.full((2,), float(step)))) for step in range(7)] == [0, 2, 4, 6, 8, 10, 12]
    assert len(warnings) == 1
    assert "(operation not permitted when stream is capturing): training runs without one" in warnings[0]
