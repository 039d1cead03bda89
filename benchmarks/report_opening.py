"""How long Chromium takes to open a report: until its first screen is painted, and until the whole page is laid out,
with all its charts, and answers.

    python benchmarks/report_opening.py results/report.html

Each time is of a new profile with an empty cache, at the width of a screen and at that of a phone.
"""

import shutil
import statistics
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

RUNS = 7
# Seconds since the request. The second frame after the page is complete begins when the first one has been painted.
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1e3"
COMPLETE = """new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(
    () => done(performance.now() / 1e3))))"""


def main() -> None:
    path = Path(sys.argv[1]).resolve()
    painted, complete = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in (1280, 390):
            for _ in range(RUNS):
                context = browser.new_context(viewport={"width": width, "height": 800})
                tab = context.new_page()
                tab.goto(path.as_uri())
                complete.append(tab.evaluate(COMPLETE))
                painted.append(tab.evaluate(PAINTED))
                charts = tab.locator(".chart").count()
                context.close()
            print(
                f"{width} pixels wide, {charts} charts, {path.stat().st_size / 1e6:.2f} MB: "
                f"first screen after {statistics.median(painted):.2f} s (longest {max(painted):.2f}), "
                f"all of it after {statistics.median(complete):.2f} s (longest {max(complete):.2f}), of {RUNS}"
            )
            painted.clear(), complete.clear()
        browser.close()


if __name__ == "__main__":
    main()
