"""The live page in a real browser, light and dark: it draws what the router says, chats, and shows markup as text.

SCREENSHOT names a file that gets a picture of the light page.
"""

import os
import shutil

from playwright.sync_api import Browser, Page, sync_playwright

URL = os.environ["ANTHROPIC_BASE_URL"]  # the service without a dialect's path
MARKUP = "Repeat: <img src=x onerror=alert(1)>"


def ask(page: Page, text: str) -> str:
    """Ask in the chat box; returns what the dialog shows of the answer."""
    before = page.locator(".turn .how").count()
    page.fill("#prompt", text)
    page.keyboard.press("Enter")
    page.wait_for_function("before => document.querySelectorAll('.turn .how').length > before", arg=before, timeout=120_000)
    return page.locator(".turn").last.inner_text()


def look(browser: Browser, scheme: str) -> None:
    complaints: list[str] = []
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1280, "height": 1000})
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"{request.url} failed"))
    outside = []
    page.on("request", lambda request: None if request.url.startswith(URL) else outside.append(request.url))
    page.goto(URL)
    page.wait_for_selector("#state.ready")
    assert "decode" in page.inner_text("#sites")
    for question in ("What is the capital of France? Answer in one sentence.", "Name three rivers."):
        assert "prefill" in ask(page, question)
    page.wait_for_selector(".trace")
    assert page.inner_text("#tile-threshold").replace(",", "").isdigit()
    if scheme == "light" and "SCREENSHOT" in os.environ:
        page.wait_for_timeout(1500)
        page.screenshot(path=os.environ["SCREENSHOT"])
    ask(page, MARKUP)
    assert MARKUP in page.inner_text("#dialog")
    assert page.locator("#dialog img").count() == 0
    page.set_viewport_size({"width": 400, "height": 800})
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), "the page is wider than a telephone"
    page.close()
    assert not complaints, complaints
    assert not outside, outside


if __name__ == "__main__":
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is not installed: apt-get install chromium"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            look(browser, scheme)
        browser.close()
    print("the live page passed")
