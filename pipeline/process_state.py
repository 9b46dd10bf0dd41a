"""State of the whole process that training changes, and that belongs to the user."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def restored_process_state() -> Iterator[None]:
    """Restore PyTorch's global generators and cuDNN's choice of kernels after the block, also after an error.

    Training seeds the generators in every epoch; the user's own random numbers must not depend on that.
    """
    cpu, benchmark = torch.get_rng_state(), torch.backends.cudnn.benchmark
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        torch.backends.cudnn.benchmark = benchmark
