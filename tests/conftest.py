"""What every test can use, and what none can: the network."""

import os
import pathlib

# On networks as small as those of tests, threads cost more than they save; for commands that tests run, too.
os.environ["OMP_NUM_THREADS"] = "1"

import no_network
import pytest
import torch

# Here, and in every Python that a test starts, by the sitecustomize.py that stands there.
no_network.install()
_OFFLINE = str(pathlib.Path(no_network.__file__).parent)
if _OFFLINE not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_OFFLINE, os.environ.get("PYTHONPATH")]))


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


@pytest.fixture(autouse=True)
def _no_network():
    """A connection that was refused fails the test, also where the code under test swallowed the error."""
    no_network.refused.clear()
    yield
    assert no_network.refused == []
