"""How long Chromium takes to open a report: until the page can be read and scrolled, and until its last chart is drawn.

    python benchmarks/report_opening.py results/report.html

Each time is of a new profile with an empty cache, at the width of a screen and at that of a phone.
"""

import shutil
import statistics
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

RUNS = 7
DRAWN = "html[data-drawn]"  # set when the last chart stands


def main() -> None:
    path = Path(sys.argv[1]).resolve()
    opened, drawn = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in (1280, 390):
            for _ in range(RUNS):
                context = browser.new_context(viewport={"width": width, "height": 800})
                tab = context.new_page()
                tab.goto(path.as_uri())
                tab.wait_for_selector(DRAWN, state="attached")
                drawn.append(tab.evaluate("performance.now()") / 1e3)
                opened.append(tab.evaluate("performance.getEntriesByType('navigation')[0].domInteractive") / 1e3)
                charts = tab.locator(".chart").count()
                context.close()
            print(
                f"{width} pixels wide, {charts} charts, {path.stat().st_size / 1e6:.2f} MB: "
                f"opened after {statistics.median(opened):.2f} s (longest {max(opened):.2f}), "
                f"last chart after {statistics.median(drawn):.2f} s (longest {max(drawn):.2f}), of {RUNS}"
            )
            opened.clear(), drawn.clear()
        browser.close()


if __name__ == "__main__":
    main()
