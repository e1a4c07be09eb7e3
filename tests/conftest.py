"""What every test can use."""

import os
import pathlib

# On networks as small as those of tests, threads cost more than they save; for commands that tests run, too.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real CIFAR-10, for tests marked `real_data`."""
    folder = os.environ.get("BUDGETNET_DATA")
    if not folder:
        pytest.skip("BUDGETNET_DATA is not set: no real CIFAR-10 to test on")
    return pathlib.Path(folder)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # whatever the test before has asked for
