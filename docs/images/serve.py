"""Makes the pictures of the demo page in this folder, by the real command and a real browser.

budgetnet train recipes/digits.yaml --output runs/digits
python docs/images/serve.py runs/digits
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
# Name, width in pixels, light or dark, and the sliders that are moved.
SHOTS = [
    ("serve", 1100, "light", {"noise": "2", "rotation": "25"}),
    ("serve-phone-dark", 390, "dark", {}),
]


def shoot(page: Page, path: Path, sliders: dict[str, str]) -> None:
    """Take a picture once everything on the page has been answered."""
    page.locator("#noise-curve .curve").wait_for(state="attached")
    page.locator("#where:not(:empty)").wait_for()
    for name, value in sliders.items():
        with page.expect_response(re.compile("/api/attention")) as answer:
            page.locator(f"#{name}").fill(value)
        answer.value.finished()
    page.locator("h1").click()  # away from the sliders
    page.wait_for_load_state("networkidle")
    page.screenshot(path=path, full_page=True)
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Serve a model, and take each picture."""
    command = [sys.executable, "-m", "budgetnet", "serve", *sys.argv[1:], "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        url = server.stdout.readline().split()[0]
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, width, scheme, sliders in SHOTS:
            page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page.goto(url)
            shoot(page, HERE / f"{name}.png", sliders)
            page.close()
        chromium.close()
        server.terminate()


if __name__ == "__main__":
    main()
