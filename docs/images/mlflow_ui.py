"""Makes the pictures of MLflow's page in this folder, by the real commands and a real browser.

python docs/images/mlflow_ui.py

Two short runs on digits are trained in a temporary folder; it takes about a minute, and needs Chromium.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
RECIPE = HERE.parent.parent / "recipes" / "smoke.yaml"
RUNS = {"lr-0.03": "0.03", "lr-0.1": "0.1"}


def shoot(page: Page, name: str) -> None:
    """Take a picture of what is shown, in few enough colours for a small file."""
    page.wait_for_timeout(1000)  # what moves has come to rest
    path = HERE / f"mlflow-{name}.png"
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


def take(page: Page, url: str, run_id: str) -> None:
    """The runs of the experiment, and one of them."""
    page.goto(f"{url}/#/experiments/1/runs?workflowType=machine_learning")
    page.get_by_role("link", name="lr-0.1", exact=True).first.wait_for()
    page.locator('button[aria-label="Close"]').last.click()  # of what is said about the assistant
    shoot(page, "runs")
    run = f"{url}/#/experiments/1/runs/{run_id}"
    page.goto(run)
    page.get_by_text("test images are classified right").first.wait_for()
    shoot(page, "run")
    page.set_viewport_size({"width": 1280, "height": 1200})  # they are drawn when they are in sight
    page.goto(f"{run}/model-metrics")
    page.locator(".js-plotly-plot .trace .point").nth(4).wait_for(state="attached")
    page.get_by_text("final", exact=False).first.click()  # folds single points, which come first
    page.locator(".js-plotly-plot .trace .point").nth(30).wait_for(state="attached")
    shoot(page, "charts")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(f"{run}/artifacts/report.html")
    page.frame_locator("iframe").get_by_role("heading", name="lr-0.1: report").wait_for()
    shoot(page, "report")


def main() -> None:
    """Train, show, and take each picture."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        command = [sys.executable, "-m", "budgetnet"]
        for name, lr in RUNS.items():
            options = ["--epochs", "8", "--optimizer.lr", lr, "--output", name, "--quiet"]
            subprocess.run([*command, "train", str(RECIPE), *options], cwd=folder, env=environment, check=True)
        run_id = json.loads((Path(folder) / "lr-0.1" / "mlflow.json").read_text())["run_id"]
        with (
            subprocess.Popen(
                [*command, "ui", "--port", "0"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
            ) as server,
            sync_playwright() as playwright,
        ):
            assert server.stdout is not None
            url = server.stdout.readline().split()[0]
            chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = chromium.new_page(viewport={"width": 1280, "height": 800})
            try:
                take(page, url, run_id)
            finally:
                chromium.close()
                server.send_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
