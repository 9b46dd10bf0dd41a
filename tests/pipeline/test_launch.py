"""Which process of several this is, as torchrun says, and which GPU it takes; half of it is refused."""

import pytest
import torch

from demkd.pipeline.compute import choose_compute
from demkd.pipeline.launch import Launch, LaunchError, is_silent, launch


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_a_process_that_was_started_alone_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch() is None
    assert not is_silent()


def test_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert launch() == Launch(rank=5, world_size=8, local_rank=1)
    assert is_silent()
    monkeypatch.setenv("RANK", "0")
    assert not is_silent()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2"}, "has WORLD_SIZE='2' and no RANK: start with torchrun"),
        ({"RANK": "0"}, "has RANK='0' and no WORLD_SIZE: start with torchrun"),
        ({"LOCAL_RANK": "0"}, "has LOCAL_RANK='0' and no RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK='2', WORLD_SIZE='2', which is no process of several"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "which is no process of several"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x', WORLD_SIZE='2', which is no process of several"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"}, "which is no process of several"),
    ],
)
def test_half_of_it_is_refused(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=said):
        launch()


@pytest.mark.parametrize(("local_rank", "device"), [("0", "cuda:0"), ("1", "cuda:1"), ("3", "cuda:1")])
@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_each_process_takes_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, local_rank: str, device: str, asked: str
) -> None:
    """On a machine that says it has two; nothing is computed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_compute(device=asked, precision="float32").device == torch.device("cuda")
    for name, value in (("RANK", local_rank), ("WORLD_SIZE", "4"), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, value)
    assert choose_compute(device=asked, precision="float32").device == torch.device(device)
    assert choose_compute(device="cuda:0", precision="float32").device == torch.device("cuda:0")
    assert choose_compute(device="cpu", precision="float32").device == torch.device("cpu")
