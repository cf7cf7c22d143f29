"""The README's picture, made from the running page.

python 04_user_interface/screenshot.py classifier
"""

import argparse
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright
from trial_page import find_chromium, served

from command_line import make_parser, run_command

MESSAGE = "URGENT! You have won a £900 prize. Call 09061701461 now to claim. Sorry I am late, mum"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser("screenshot.py", "Make the README's picture from the running page.")
    parser.add_argument("folder", type=Path, help="classifier folder")
    return parser.parse_args(argv)


def take_picture(args: argparse.Namespace) -> None:
    with served(args.folder) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 920})
        page.goto(address)
        page.get_by_label("Message").first.fill(MESSAGE)
        page.get_by_role("button", name="Classify", exact=True).click()
        page.locator("#others td").first.wait_for()  # the last thing that is shown
        page.wait_for_timeout(2000)  # the bars have grown by then
        page.screenshot(path=Path(__file__).parent / "screenshot.png")
        browser.close()


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command("screenshot.py", lambda: take_picture(args))


if __name__ == "__main__":
    sys.exit(main())
