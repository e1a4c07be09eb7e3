"""Where a training runs: the device, the arithmetic it is good at, the memory it reuses, and how it is recorded."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from pathlib import Path
from typing import Any, Literal

import torch

from budgetnet.errors import ConfigError


def find(name: str) -> torch.device:
    """The device that an option names: auto (the fastest there is), cpu, cuda, cuda:N or mps.

    Raises:
        ConfigError: there is no such device, or this machine does not have it.
    """
    if name == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    found = re.fullmatch(r"(cpu|mps|cuda)(?::(\d+))?", name)
    kind, index = found.groups() if found else ("", None)
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not found or (index and kind != "cuda"):
        raise ConfigError(f"device is {name!r}, expected auto, cpu, cuda, cuda:N or mps")
    if not there[kind] or (index and int(index) >= torch.cuda.device_count()):
        raise ConfigError(f"device is {name!r}, which this machine does not have: use --device auto")
    return torch.device(name)


def precision(asked: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """What auto means on this device: bf16 where it computes in it, else fp32.

    Raises:
        ConfigError: fp16 is asked for on a CPU, which does not train in it.
    """
    if asked == "fp16" and device.type == "cpu":
        raise ConfigError("precision is fp16, which CPUs do not train in: use bf16, fp32 or auto")
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    native = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bf16" if native else "fp32"


def tune(device: torch.device) -> None:
    """Settle in for many steps of the same shapes; changes no result beyond rounding.

    On a CPU with the GNU C library, freed memory is kept for the next step: by default each large tensor is given back
    to the system and fetched again, page by page, zeroed, which costs resnet_leaky 7 % of a step. On CUDA, the fastest
    convolution is looked for once a shape, and float32 products may round their factors to TF32.
    """
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    elif device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        keep, largest = 2**31 - 1, 2**30  # bytes: what may lie free at the end of the heap; blocks that come from it
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, keep)  # M_TRIM_THRESHOLD
        mallopt(-3, largest)  # M_MMAP_THRESHOLD


def require_threads(threads: int) -> None:
    """Refuse a number of CPU threads that would bring the machine to a halt, or the process to an end.

    Raises:
        ConfigError: it is below 0, or above 16 a core.
    """
    most = 16 * (os.cpu_count() or 1)
    if not 0 <= threads <= most:
        raise ConfigError(f"threads is {threads}, expected 1 to {most} (16 a core), or 0 for one a core")


def hardware(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """The device, processor, cores and threads that figures were measured on, and whether they are the same bits again.

    On a CPU, one machine (its vector instructions end `cpu`) and one number of threads give the same bits, in one
    process or two; the sums of more come in another order each time. Kernels of CUDA add in an order of their own,
    unless torch is told to use none of those.
    """
    found: dict[str, Any] = {"device": str(device), "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    found["cpu"] = f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"
    strict = torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    found["deterministic"] = (device.type == "cpu" or strict) and processes <= 2
    if processes > 1:
        found["processes"] = processes
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _cpu_name() -> str:
    """The processor as Linux names it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.machine()
