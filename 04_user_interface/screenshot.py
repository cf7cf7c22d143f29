"""The README's picture: python 04_user_interface/screenshot.py classifier"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright
from trial_page import find_chromium, served

MESSAGE = "URGENT! You have won a £900 prize. Call 09061701461 now to claim. Sorry I am late, mum"

if __name__ == "__main__":
    with served(Path(sys.argv[1])) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 920})
        page.goto(address)
        page.get_by_label("Message").first.fill(MESSAGE)
        page.get_by_role("button", name="Classify", exact=True).click()
        page.locator("#others td").first.wait_for()  # the last thing that is shown
        page.wait_for_timeout(2000)  # the bars have grown by then
        page.screenshot(path=Path(__file__).parent / "screenshot.png")
        browser.close()
