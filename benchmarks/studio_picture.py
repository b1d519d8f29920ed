"""Draws docs/images/studio.png: the page of `ddt-accel studio` on the embedded model, in Chromium.

Needs the extra `web`, Playwright, and Chromium; `make studio-picture` runs it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from ddt_accel.studio.app import open_studio

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "studio.png"
SEED = "11"


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not installed; on Debian: apt install chromium")
    studio = open_studio()
    _, address, _ = studio.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1120, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(address)
        page.wait_for_selector(".side.schedule.done")
        page.get_by_label("Seed").fill(SEED)
        page.get_by_label("number input for Pictures").fill("9")
        page.get_by_label("number input for Pictures").press("Tab")
        page.get_by_role("button", name="Draw").click()
        page.wait_for_function(f"document.querySelector('#status').textContent.includes('seed {SEED}.')")
        page.screenshot(path=PICTURE, full_page=True)
        browser.close()
    studio.page.close(verbose=False)
    print(PICTURE)


if __name__ == "__main__":
    main()
