"""The live page in a real browser: it draws what the router says, chats, and shows markup as text."""

from __future__ import annotations

import shutil

import pytest

from tests.support.http_server import ServedGateway

pytestmark = pytest.mark.clients
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_draws_and_chats(gateway: ServedGateway, scheme: str) -> None:
    complaints: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(gateway.url)
        page.wait_for_selector("#state.ready")
        assert "decode-0" in page.inner_text("#sites")
        page.fill("#prompt", "<img src=x onerror=alert(1)>")
        page.keyboard.press("Enter")
        page.wait_for_selector(".turn .how")
        dialog = page.inner_text("#dialog")
        assert "<img src=x" in dialog
        assert "Paris is the capital of France." in dialog
        assert "remote prefill on prefill-0" in dialog
        page.wait_for_selector(".trace")
        assert page.inner_text("#tile-threshold") == "2,048"
        page.set_viewport_size({"width": 400, "height": 800})
        assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
        browser.close()
    assert complaints == []
