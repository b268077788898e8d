"""The processes of a run: one, or those that torchrun started. What they share is sums.

R1: every process computes its rows of each batch; the sums are taken over all, so that any number gives one curve.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pellucid.errors import InputError, PellucidError

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # for one that is stuck; one that is gone is noticed at once


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's number among all of them."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, rows: range) -> range:
        """Which of a batch's rows are this process's: neighbours, in numbers that differ by one at most."""
        start, end = (len(rows) * rank // self.world for rank in (self.rank, self.rank + 1))
        return rows[start:end]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, which each of them gets."""
        if self.world > 1:
            with said():
                dist.all_reduce(value)
        return value

    def agree(self, value: int | None) -> int | None:
        """The largest of what the processes have, which each of them gets; None: none of them has any."""
        if self.world == 1:
            return value
        largest = self.largest(-1 if value is None else value)
        return None if largest < 0 else int(largest)

    def largest(self, value: float) -> float:
        """The largest of the processes' values, which each of them gets."""
        if self.world == 1:
            return value
        largest = torch.tensor(value, dtype=torch.float64, device="cuda" if torch.cuda.is_available() else "cpu")
        with said():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return float(largest)

    def first_before(self, make: Callable[[], T]) -> T:
        """What `make` gives, which the first process calls before the others do: they find what it has written."""
        if not self.first:
            self.agree(None)
        made = make()
        if self.first:
            self.agree(None)
        return made

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds up every parameter's gradient over all processes, in one message; none counts as zero."""
        if self.world == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:  # this process had no rows
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        together = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


@contextmanager
def join() -> Iterator[Ranks]:
    """The processes that torchrun started together, or this one alone."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        yield Ranks()
        return
    lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if lacking:
        raise InputError(
            f"WORLD_SIZE = {world} is set, for several processes, and {' and '.join(lacking)} not: start with "
            "torchrun, or unset it"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with said():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def said() -> Iterator[None]:
    """A process that is gone is one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise PellucidError(
            f"another process of this run is gone or stuck ({str(error).splitlines()[0]}): "
            "start all of them again, and the run goes on from its last checkpoint"
        ) from error
