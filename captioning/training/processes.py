"""Joins the processes that torchrun starts, on one machine or several."""

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
    """This process, and its place among the processes that train together."""

    rank: int = 0  # 0 to world_size - 1
    world_size: int = 1  # the number of processes
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes files, which the others do not."""
        return self.rank == 0


SINGLE = Process()


@contextlib.contextmanager
def distributed(device: str) -> Iterator[Process]:
    """Joins the other processes if torchrun started this one; leaves them at the end."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Process(device=device)
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    # The other processes wait while the first encodes all pictures, which can take long.
    wait = timedelta(days=2)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=wait)
    try:
        yield Process(dist.get_rank(), dist.get_world_size(), device)
        dist.barrier()  # gloo aborts if a process leaves while others communicate
    finally:
        # The group must end before the interpreter does. Otherwise a thread of the group may ask
        # for the GIL of an interpreter that has ended, which aborts the process. Reference cycles
        # keep DistributedDataParallel alive, which keeps the group alive, so they are collected.
        gc.collect()
        dist.destroy_process_group()
