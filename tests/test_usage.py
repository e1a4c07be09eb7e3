"""What a training takes of its machine, beside what the operating system says in other ways."""

import os
import time
from pathlib import Path

import pytest
import torch

from budgetnet import usage as module
from budgetnet.usage import NAMES, Usage


def test_what_is_used_has_names_that_are_explained_and_values_in_their_range(tmp_path):
    found = Usage(tmp_path, torch.device("cpu")).read()
    assert [*found] == [name for name in NAMES if not name.startswith("gpu")]
    for name, value in found.items():
        assert 0 <= value <= (100 if name in ("cpu_utilization_percentage", "system_memory_usage_percentage") else 1e9)
    status = os.statvfs(tmp_path)
    assert found["disk_available_megabytes"] == pytest.approx(status.f_bavail * status.f_frsize / 1e6, rel=0.05)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_is_what_the_kernel_counts_and_time_is_the_process_own(tmp_path):
    usage = Usage(tmp_path, torch.device("cpu"))
    began, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < 0.2:
        pass
    busy = 100 * (time.process_time() - cpu) / (time.monotonic() - began)
    found = usage.read()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert found["process_memory_usage_megabytes"] == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, rel=0.05)
    assert found["process_cpu_utilization_percentage"] == pytest.approx(busy, rel=0.3)


def test_a_machine_without_psutil_trains_and_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert Usage(tmp_path, torch.device("cpu")).read() == {}
