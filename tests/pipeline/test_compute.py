"""Which device a process computes on, where torchrun started several; PyTorch is told of GPUs that are not there."""

import pytest
import torch

from demkd.pipeline.distributed import ComputeError, choose_compute


def start_as(patch: pytest.MonkeyPatch, *, local_rank: int, of: int, gpus: int) -> None:
    patch.setenv("LOCAL_RANK", str(local_rank))
    patch.setenv("LOCAL_WORLD_SIZE", str(of))
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: gpus)


def chosen(device: str) -> str:
    return str(choose_compute(device=device, precision="float32").device)


def test_each_process_takes_the_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(4):
        start_as(monkeypatch, local_rank=rank, of=4, gpus=4)
        assert chosen("auto") == chosen("cuda") == chosen(f"cuda:{rank}") == f"cuda:{rank}"


def test_a_gpu_that_all_would_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    start_as(monkeypatch, local_rank=1, of=2, gpus=4)
    said = "`device` is cuda:0, and the 2 processes on this machine would share it: leave it out, .* this one cuda:1"
    with pytest.raises(ComputeError, match=said):
        choose_compute(device="cuda:0")


@pytest.mark.parametrize(("processes", "gpus"), [(1, 4), (2, 1)])
def test_one_process_chooses_and_one_gpu_is_shared(monkeypatch: pytest.MonkeyPatch, processes: int, gpus: int) -> None:
    start_as(monkeypatch, local_rank=processes - 1, of=processes, gpus=gpus)
    assert chosen("cuda:0") == "cuda:0"
    assert chosen(f"cuda:{gpus - 1}") == f"cuda:{gpus - 1}"
