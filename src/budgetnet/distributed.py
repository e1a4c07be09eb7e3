"""Several processes that train one network: which part of a batch each has, and what they tell each other.

Every process holds the network, the optimizer and all that follows the weights, computes the loss of its part of each
batch, and takes the same step: gradients are averaged within the backward pass (torch's DistributedDataParallel, Li et
al. 2020, arXiv:2006.15704). So a batch is the recipe's whatever the number of processes, and a checkpoint, which the
first process writes, is that of one process. Which images those are, and how they are augmented and mixed, is drawn for
the whole batch (`draws`).

`Group` is a process alone, for which all of this costs nothing; `join` finds the others that torchrun or
`launcher.launch` has started.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor, nn

from budgetnet import devices, launcher
from budgetnet.config import Config
from budgetnet.errors import BudgetnetError, ConfigError, TrainingError, one_line

T = TypeVar("T")

# The longest that a process waits for another, which may be fetching a data set.
_PATIENCE = timedelta(minutes=30)

# What torch says when a process that it talks to is gone. It has a type for it only now and then.
_LOST = re.compile(r"connection (was )?(closed|reset|refused)|broken pipe|/gloo/|nccl|timed out", re.I)


@dataclass(frozen=True)
class Part:
    """Some consecutive images of a batch."""

    start: int
    """Place of the first in the batch."""
    stop: int
    """Place after the last."""
    total: int
    """Images of the batch."""

    @property
    def whole(self) -> bool:
        """Whether the part is all of the batch."""
        return self.stop - self.start == self.total

    @property
    def share(self) -> float:
        """How much of the batch it is, in (0, 1]."""
        return (self.stop - self.start) / self.total

    def rows(self, before: int, device: torch.device) -> Tensor:
        """int64 (before + n,): the places in the batch of its n images, and of so many before them, round the end."""
        return torch.arange(self.start - before, self.stop, device=device) % self.total


class Group:
    """The processes of a training; this one is alone."""

    rank = 0
    """Which process this is."""
    size = 1
    """How many there are."""

    @property
    def leader(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def require_shareable(self, config: Config, smallest_batch: int) -> None:
        """Make sure that batches are large enough to be shared out.

        Raises:
            ConfigError: a part of the smallest batch would have fewer than two images.
        """
        parts = self.size * config.accumulate
        if parts > 1 and smallest_batch < 2 * parts:
            among = f"{self.size} processes" if self.size > 1 else "one process"
            among += f" and accumulate {config.accumulate}" if config.accumulate > 1 else ""
            raise ConfigError(
                f"the smallest batch has {smallest_batch} images, expected {2 * parts} or more for {among}: each part "
                "needs two; raise batch_size, or use fewer"
            )

    def parts(self, images: int, each: int) -> list[Part]:
        """The parts of a batch of so many images that this process has, `each` of them, in their order.

        All parts of all processes together are the batch, and differ by one image at most.
        """
        count = self.size * each
        edges = [images * place // count for place in range(count + 1)]
        own = range(self.rank * each, (self.rank + 1) * each)
        return [Part(edges[place], edges[place + 1], images) for place in own]

    def connect(self, network: nn.Module, config: Config) -> Callable[[Tensor], Tensor]:
        """A forward pass of `network` whose backward pass averages the gradients over the processes.

        The weights of all processes become those of the first.
        """
        return network

    def holding(self, forward: Callable[[Tensor], Tensor], held: bool) -> AbstractContextManager[Any]:
        """Within it, gradients of `forward` stay with each process, if they are `held`, until those of another part."""
        return nullcontext()

    def average_norms(self, network: nn.Module) -> None:
        """Make running statistics of norms, each process's from its own images, their mean over the processes."""

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, as true as in any of the processes."""
        return flags

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` (any shape, the same in all processes) over the processes; they are changed."""
        return values

    def lead(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process; in the others it is not called. Our errors are raised in all."""
        return make()

    def in_turn(self) -> AbstractContextManager[Any]:
        """Within it, the first process on each machine comes first, and the others find what it has left."""
        return nullcontext()

    def leave(self) -> None:
        """Be alone from here on; all processes do this at the same place."""

    def logits(self, predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """`predict(images)`, where each process predicts some of them.

        Args:
            predict: maps (n, ...) to (n, classes) float on the CPU, each row by itself, also where n is 0.
            images: (n, ...).
        """
        return predict(images)


class Processes(Group):
    """This process and the others that it is joined with.

    Args:
        device: where this process computes.
    """

    def __init__(self, device: torch.device) -> None:
        import torch.distributed as dist

        self._dist = dist
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device = device
        self._norms_differ = False
        self._connected: WeakSet[nn.parallel.DistributedDataParallel] = WeakSet()

    def connect(self, network: nn.Module, config: Config) -> Callable[[Tensor], Tensor]:
        """See `Group`; with `sync_norm`, the network has norms of the whole batch from here on."""
        if config.sync_norm:
            synchronise_norms(network)
        self._norms_differ = not config.sync_norm
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of another name for an option, which older versions lack
            parallel = nn.parallel.DistributedDataParallel(
                network,
                device_ids=[self._device] if self._device.type == "cuda" else None,
                broadcast_buffers=False,  # see average_norms
                gradient_as_bucket_view=True,
            )
        self._connected.add(parallel)
        if config.exchange == "bf16":
            parallel.register_comm_hook(None, lambda state, bucket: self._exchange_rounded(bucket))
        return parallel

    def _exchange_rounded(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Average a bucket of gradients in bfloat16; torch's own hook does so on GPUs only."""
        whole: Tensor = bucket.buffer()
        sent = whole.to(torch.bfloat16).div_(self.size)
        arrived = self._dist.all_reduce(sent, async_op=True).get_future()
        averaged: torch.futures.Future[Tensor] = arrived.then(lambda done: whole.copy_(done.value()[0]))
        return averaged

    def holding(self, forward: Callable[[Tensor], Tensor], held: bool) -> AbstractContextManager[Any]:
        """See `Group`."""
        parallel: Any = getattr(forward, "_orig_mod", forward)  # within what torch.compile makes of it
        found: AbstractContextManager[Any] = parallel.no_sync() if held else nullcontext()
        return found

    @torch.no_grad()
    def average_norms(self, network: nn.Module) -> None:
        """See `Group`; after each step, so that all processes always have the same state."""
        statistics = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        if not (self._norms_differ and statistics):
            return
        flat = torch.cat([buffer.flatten() for buffer in statistics])
        mean = self.sum(flat).div_(self.size)
        for buffer, values in zip(
            statistics, torch.split(mean, [buffer.numel() for buffer in statistics]), strict=True
        ):
            buffer.copy_(values.view_as(buffer))

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """See `Group`. Between the hosts: no accelerator is waited for."""
        found = torch.tensor(flags, dtype=torch.int32)
        self._dist.all_reduce(found, self._dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in found.tolist())

    def sum(self, values: Tensor) -> Tensor:
        """See `Group`."""
        self._dist.all_reduce(values)
        return values

    def lead(self, make: Callable[[], T]) -> T:
        """See `Group`."""
        box: list[Any] = [None, None]
        if self.leader:
            try:
                box[0] = make()
            except BudgetnetError as error:
                box[1] = error
        self._dist.broadcast_object_list(box, device=torch.device("cpu"))
        if box[1] is not None:
            raise box[1]
        found: T = box[0]
        return found

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """See `Group`."""
        if launcher.local_rank():
            self.agree(True)
        yield
        if not launcher.local_rank():
            self.agree(True)

    def leave(self) -> None:
        """See `Group`; it ends the group's threads.

        One that lets go of a tensor while the interpreter ends would take the process down with it, by SIGABRT. They
        end with the last that refers to the group, which may not be torch's reducer: it would wait for them with the
        interpreter's lock, for which they wait.
        """
        for parallel in self._connected:
            del parallel.reducer, parallel.logger, parallel.process_group
        self._connected.clear()
        if self._dist.is_initialized():
            self._dist.destroy_process_group()

    def logits(self, predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """See `Group`. Every so-many-th image is this process's."""
        n = len(images)
        own = predict(images[self.rank :: self.size])
        padded = own.new_zeros((-(-n // self.size), own.shape[1]))
        padded[: len(own)] = own
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        self._dist.all_gather(gathered, padded)
        return torch.stack(gathered, 1).flatten(0, 1)[:n]


@contextmanager
def join(device: torch.device) -> Iterator[Group]:
    """Find the other processes of this training, and stay with them for the block; alone if there are none.

    An error of any process ends all, and one of them says why.

    Raises:
        TrainingError: another process is gone, or does not answer.
        SystemExit: another process has failed and has said why.
    """
    if launcher.size() == 1:
        yield Group()
        return
    # Functions in there have whatever group there is by then as their default, and would keep it for good.
    import torch._dynamo
    import torch.distributed

    dist: Any = torch.distributed  # parts of which it does not declare
    store, rank, size = next(dist.rendezvous("env://"))
    # It may outlive the processes: those that torchrun has restarted shall find no word of those before.
    store = dist.PrefixStore(f"training {launcher.restarts()[0]}", store)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
    )
    group = Processes(device)
    try:
        yield group
    except (BudgetnetError, RuntimeError, OSError) as error:
        lost = isinstance(error, RuntimeError) and _LOST.search(str(error))
        try:
            first = store.compare_set("failed", "", str(rank)) == str(rank).encode()
        except RuntimeError:  # who kept it is gone, too
            first = rank == 0
        if not first and (lost or isinstance(error, BudgetnetError)):
            raise SystemExit(1) from error
        if lost:
            raise TrainingError(
                f"another process of this training is gone ({one_line(error)[:120]}): what was saved before is kept, "
                "and --resume goes on from there"
            ) from error
        raise
    finally:
        group.leave()


def device(name: str) -> torch.device:
    """Where this process computes, of those on this machine; `name` as in `devices.find`.

    Raises:
        ConfigError: this machine has not enough of them, or several processes cannot share it.
    """
    found = devices.find(name)
    if launcher.size() == 1:
        return found
    if found.type == "mps":
        raise ConfigError("device is mps, which several processes cannot share: use --device cpu, or one process")
    if found.type == "cuda":
        if found.index is not None:
            raise ConfigError(f"device is {name!r}, but each process has a GPU of its own: use --device cuda")
        there = torch.cuda.device_count()
        if launcher.local_size() > there:
            raise ConfigError(
                f"{launcher.local_size()} processes are to train on this machine, which has {there} GPUs: start fewer, "
                "or use --device cpu"
            )
        found = torch.device("cuda", launcher.local_rank())
        torch.cuda.set_device(found)
    return found


def set_threads(threads: int) -> None:
    """Divide a machine's CPU threads among the processes that train on it, one each at least.

    Args:
        threads: of all of them; 0 is one a core, and for a process alone what torch chooses.
    """
    if launcher.size() > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = max(1, (threads or cores) // launcher.local_size())
    if threads:
        torch.set_num_threads(threads)


class SyncNorm(nn.BatchNorm2d):
    """Batch norm by the statistics of the images of all processes: torch's, had one process the whole batch.

    torch's own SyncBatchNorm computes on GPUs only. In evaluation, the plain norm.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to the same shape; n may differ between the processes."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        var, mean = torch.var_mean(values, (0, 2, 3), correction=0)
        count = values.numel() // values.shape[1]
        # In doubles, as the mean of squares less the square of the mean is a difference of close numbers.
        moments = torch.stack([mean, var + mean**2, torch.ones_like(mean)]).double() * count
        total, squares, number = _Sum.apply(moments)  # type: ignore[no-untyped-call]
        mean = total / number
        var = squares / number - mean**2
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                step = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
                self.running_mean += step * (mean - self.running_mean).to(self.running_mean.dtype)
                unbiased = var * (number / (number - 1))
                self.running_var += step * (unbiased - self.running_var).to(self.running_var.dtype)
        scale = torch.rsqrt(var + self.eps)
        shift = -mean * scale
        if self.affine:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        scale, shift = (values.float().view(1, -1, 1, 1) for values in (scale, shift))
        return torch.addcmul(shift, values, scale).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over the processes of a tensor that each has; what depends on it in any of them is its gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


def synchronise_norms(network: nn.Module) -> None:
    """Make the batch norms of a network `SyncNorm`s, with the weights, statistics and names that they have."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SyncNorm  # it only computes otherwise
