"""The processes that torchrun starts, on one machine or several."""

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Process:
    """This process among those that train together."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0


SINGLE = Process()


@contextlib.contextmanager
def distributed(device: str) -> Iterator[Process]:
    """Join the processes that torchrun started, if any."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Process(device=device)
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    # The others wait while the first encodes the pictures of a large set.
    wait = timedelta(days=2)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=wait)
    process = Process(dist.get_rank(), dist.get_world_size(), device)
    try:
        yield process
        dist.barrier()  # gloo aborts if one leaves while others communicate
    finally:
        # DistributedDataParallel is in reference cycles and keeps the group alive. The group's
        # threads must end before Python does: one that needs the GIL later aborts the process.
        gc.collect()
        dist.destroy_process_group()
