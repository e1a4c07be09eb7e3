"""What the files in a run's folder are called, wherever one is written, read, copied or guarded."""

from __future__ import annotations

CONFIG = "config.yaml"  # the complete recipe, written before all else
METRICS = "metrics.csv"  # a row an epoch
SYSTEM = "system.csv"  # likewise, of the machine
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"  # a whole training, to go on from: as it is, and the one before it
DAMAGED = "damaged.ckpt"  # what `last.ckpt` is called then
WEIGHTS = "best.safetensors"  # the chosen weights: the model
SUMMARY = "summary.json"  # its scores; there when the run is finished
PREDICTIONS = "predictions.safetensors"  # what the model said of the test images
CORRUPTION = "corruption.json"  # how it does under corruption, in a study
SHIFT = "shift.json"  # likewise, as `evaluate --shift --output` writes it for the report
REPORT, PICTURES = "report.html", "pictures"  # the page, and the folder of its pictures
MLFLOW = "mlflow.json"  # which MLflow has a copy of the run

COPIED = (CONFIG, METRICS, SYSTEM, SUMMARY, WEIGHTS, REPORT, PICTURES)
"""What of a finished run MLflow's copy gets, where it is there."""
NEEDED = (CONFIG, METRICS, SYSTEM, LAST, PREVIOUS, WEIGHTS, SUMMARY, MLFLOW)
"""What no command writes over: the run could not be read, gone on with or copied without it."""
