"""The benchmark for accelerators is ready to run: all of it but CUDA itself runs on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_accelerator_benchmark_times_steps_and_trains_to_the_end(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--recipes", "smoke", "--modes", "eager"]
    command += ["--rounds", "2", "--steps", "2", "--seeds", "1", "--record", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    (row,), (run,) = found["steps"], found["runs"]
    assert 0 < row["min"] <= row["median"] <= row["max"]
    assert (row["recipe"], row["mode"], row["batch"], row["precision"]) == ("smoke", "eager", 32, "fp32")
    assert run["epochs"] == 3
    assert 0 < run["seconds"] < 120
    assert 0 < run["test_accuracy"] < 1
    assert found["hardware"]["device"] == "cpu"


def test_without_the_device_it_says_so_in_one_line():
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cuda:99", "--recipes", "smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == "device is 'cuda:99', which this machine does not have: use --device auto\n"
