"""One cell for Kaggle or Colab: paste it, set the names below, run it; after the session has ended, run it again.

Kaggle (accelerator on, internet on): the run is in the notebook's output. To go on in another session, add that output
as an input. Colab: the run is in Google Drive. Either way the training saves and stops before the session's end.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

SOURCE = "https://github.com/YOU/budgetnet"  # where the project is cloned from
RECIPE = "recipes/quick.yaml"
OPTIONS = ["--no-track"]  # any options of `budgetnet train`
HOURS = 11.5 if os.path.isdir("/kaggle") else 11.0  # sessions last at most 12

if os.path.isdir("/kaggle"):
    storage, earlier = pathlib.Path("/kaggle/working"), pathlib.Path("/kaggle/input")
else:
    storage, earlier = pathlib.Path("/content/drive/MyDrive"), None
    from google.colab import drive

    drive.mount("/content/drive")
project, run = pathlib.Path("budgetnet").resolve(), storage / f"run-{pathlib.Path(RECIPE).stem}"
if not project.is_dir():
    subprocess.run(["git", "clone", "--depth", "1", SOURCE, str(project)], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", str(project)], check=True)
if earlier and not run.exists() and (found := sorted(earlier.glob(f"**/{run.name}/config.yaml"))):
    shutil.copytree(found[-1].parent, run)  # what an earlier session has left

again = ["--resume"] if (run / "config.yaml").is_file() else []
training = subprocess.Popen(
    [sys.executable, "-m", "budgetnet", "train", str(project / RECIPE), "--output", str(run), *again, *OPTIONS]
)
try:
    code = training.wait(HOURS * 3600)
except (subprocess.TimeoutExpired, KeyboardInterrupt):  # the latter is the stop button
    training.send_signal(signal.SIGTERM)
    code = training.wait()
print({0: f"finished: {run}", 143: f"saved in {run}: run this cell again to go on"}.get(code, f"failed with {code}"))
