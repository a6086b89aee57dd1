"""`python -m tests.support.screenshot`: draws docs/images/page.png, the page with an answer of the shipped model."""

from __future__ import annotations

import io

from PIL import Image
from playwright.sync_api import expect

from tests.support.browser import chromium, opened, site
from tests.support.paths import DOCS

TARGET = DOCS / "images" / "page.png"
SIZE = {"width": 1024, "height": 720}


def main() -> None:
    """Writes the picture, with 52 levels per channel: with all 256 the file is half as large again."""
    with site() as found, chromium() as browser, opened(browser, found, viewport=SIZE) as watched:
        page = watched.page
        expect(page.locator("#facts")).to_be_visible()
        for _ in range(3):  # the last answer is that of a warm service
            with page.expect_response("**/classify"):
                page.click("[data-sample='rocket.jpg']")
            expect(page.locator("#controls")).to_be_visible()
            expect(page.locator("#frame")).to_have_attribute("aria-busy", "false")
        page.evaluate("document.activeElement.blur()")
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    picture.point([5 * round(level / 5) for level in range(256)] * 3).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
