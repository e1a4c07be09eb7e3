"""What a training takes of its machine: processor, memory, disk, and an accelerator's memory."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

NAMES = {
    "cpu_utilization_percentage": "of all cores, by all processes, since the epoch before",
    "process_cpu_utilization_percentage": "the same by this process alone; 100 is one core",
    "system_memory_usage_percentage": "of the machine's memory, at the end of the epoch",
    "process_memory_usage_megabytes": "of this process, at the end of the epoch (10^6 bytes)",
    "disk_available_megabytes": "where the run's folder is, at the end of the epoch (10^6 bytes)",
    "gpu_memory_usage_megabytes": "the most that torch has held on the device in the epoch (10^6 bytes)",
}
"""What `Usage.read` gives, and what it means; names as MLflow forms those of its own system metrics."""


class Usage:
    """How busy the machine is with a training, from one look to the next; a look takes well under a millisecond.

    It never waits for an accelerator: torch counts the memory that it holds on the host.

    Args:
        folder: the run's; there.
        device: where the training computes.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder = folder
        self._device = device
        self._process = None
        if find_spec("psutil"):  # training goes without: a machine with a GPU may have little more than torch
            import psutil

            self._process = psutil.Process()
        self.read()

    def read(self) -> dict[str, float]:
        """What was used since the last time, under the names of `NAMES`; the last only on CUDA, none without psutil."""
        if self._process is None:
            return {}
        import psutil

        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "process_cpu_utilization_percentage": self._process.cpu_percent(),
            "system_memory_usage_percentage": psutil.virtual_memory().percent,
            "process_memory_usage_megabytes": self._process.memory_info().rss / 1e6,
            "disk_available_megabytes": psutil.disk_usage(str(self._folder)).free / 1e6,
        }
        if self._device.type == "cuda":
            found["gpu_memory_usage_megabytes"] = torch.cuda.max_memory_reserved(self._device) / 1e6
            torch.cuda.reset_peak_memory_stats(self._device)
        return {name: float(value) for name, value in found.items()}
