"""The README's picture, made from the running page.

python 04_user_interface/screenshot.py classifier
"""

import argparse
import sys
from pathlib import Path

from trial_page import find_chromium, served

PICTURE = Path(__file__).parent / "screenshot.png"
MESSAGE = "URGENT! You have won a £900 prize. Call 09061701461 now to claim. Sorry I am late, mum"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="screenshot.py", description="Make the README's picture from the running page."
    )
    parser.add_argument("folder", type=Path, help="classifier folder")
    parser.add_argument("--output", type=Path, default=PICTURE, help="PNG file to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        print(
            "screenshot.py: the package playwright is missing; install what the page needs with "
            "`python -m pip install -r 04_user_interface/requirements-extra.txt`.",
            file=sys.stderr,
        )
        return 1
    chromium = find_chromium()
    if chromium is None:
        print("screenshot.py: Chromium is missing; install it.", file=sys.stderr)
        return 1
    try:
        with served(args.folder) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1200, "height": 910})
            page.goto(address)
            page.get_by_label("Message").first.fill(MESSAGE)
            page.get_by_role("button", name="Classify", exact=True).click()
            page.locator("#words mark").first.wait_for()
            page.wait_for_timeout(2000)  # the bars have grown by then
            page.screenshot(path=args.output)
            browser.close()
    except (ValueError, FileNotFoundError) as error:
        print(f"screenshot.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
