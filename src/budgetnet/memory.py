"""How many images a training step may have: what memory there is, and what a step takes of it."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

_PROBE = 8  # images; a step of so few, and one of twice as many, tell what each image more takes
# What a step takes at its peak, as a multiple of what it keeps for the backward pass: 1.0 to 1.1 was measured of five
# networks as they are trained, 1.5 of a small one whose images are not in channels-last order.
_TEMPORARY = 2.0
_SHARE = 0.8  # of the available memory, as the machine has other uses for it; of an accelerator's, 0.95
_GROUP_FILES = (  # of control groups, versions 2 and 1: the limit, and what is used of it
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory is full; of CPUs and Apple's, torch has no type for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    says = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in says)


def available() -> int | None:
    """Bytes of main memory that may still be taken, of the machine and of this process's control group.

    None where the system does not say; only Linux does.
    """
    found: list[int] = []
    with contextlib.suppress(OSError):
        line = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
        found += [1024 * int(line[1])] if line else []
    for limit, used in _GROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # no such group, or its limit is "max"
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, min(found)) if found else None


def fitting_batch(asked: int, step: Callable[[int], None], device: torch.device) -> int:
    """The largest of asked, asked/2, asked/4, ... of which a training step fits in memory; 2 at least.

    On an accelerator a step is tried. A CPU's memory is asked for nothing that large, since the system would sooner
    end the process than refuse: what tensors steps of 8 and 16 images keep for their backward pass says what an image
    takes, and twice that must fit into 80 % of the memory that is available.

    Args:
        asked: images of the largest step.
        step: builds all that a training has on the device, makes a step of so many images, and forgets it.
        device: where.

    Raises:
        RuntimeError: what the step raised: memory for two images is missing, or it was about something else.
    """
    size, room = asked, available() if device.type == "cpu" else None
    if room is not None and size > 2 * _PROBE:
        little, more = (_kept(step, n) for n in (_PROBE, 2 * _PROBE))
        an_image = (more - little) / _PROBE
        while size > 2 and _TEMPORARY * (little + (size - _PROBE) * an_image) > _SHARE * room:
            size //= 2
        return max(2, size)
    while not _fits(step, size, device):
        size = max(2, size // 2)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return size


def _fits(step: Callable[[int], None], size: int, device: torch.device) -> bool:
    try:
        step(size)
    except (RuntimeError, MemoryError) as error:
        if size <= 2 or not is_out_of_memory(error):
            raise
        return False
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return size <= 2 or free > 0.05 * total
    return True


def _kept(step: Callable[[int], None], size: int) -> int:
    """Bytes of the tensors that the backward pass of a step needs."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(size)
    return sum(storages.values())
