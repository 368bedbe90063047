"""Take the README's picture of the search page.

hashlens serve groceries.idx --hide-files &
python docs/take_screenshot.py "http://127.0.0.1:8080/?id=2100&mode=hds" docs/images/page.jpg
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

_ALL_SEEN_ARE_LOADED = """[...document.images].every(
    image => image.complete || image.getBoundingClientRect().top > innerHeight
)"""
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Open an address, wait for its pictures, save what is seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=860)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    browser_path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": options.width, "height": options.height},
            color_scheme="dark" if options.dark else "light",
            device_scale_factor=1.5,
            bypass_csp=True,  # else nothing can be waited for on this page
        )
        page.goto(options.address)
        page.wait_for_selector("#content .card a img")
        page.wait_for_load_state("networkidle")
        page.wait_for_function(_ALL_SEEN_ARE_LOADED)
        page.screenshot(path=options.out)
        browser.close()


if __name__ == "__main__":
    main()
