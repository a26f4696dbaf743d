"""A real headless Chromium, shared by the tests that look at pages as a reader does."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

REPOSITORY = Path(__file__).parent.parent.parent
AXE = REPOSITORY / "node_modules" / "axe-core" / "axe.min.js"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not executable:
        pytest.fail(
            f"none of {', '.join(NAMES)} is installed: these tests look at the reports in a real browser; "
            "on Debian 'apt-get install chromium', elsewhere set CHROMIUM to the path of one",
            pytrace=False,
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


class Reader:
    """Opens a page as a reader would, and notes whatever a page of ours has no business to do."""

    def __init__(self, browser: Browser, folder: Path) -> None:
        self.browser = browser
        self.folder = folder
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.contexts: list = []

    def open(
        self, text: str, device: str = "desktop", scheme: str = "light", *, script: bool = True, axe: bool = False
    ) -> Page:
        """`axe`: lift the page's own policy, which forbids every script but its own, so that axe can run in it."""
        path = self.folder / "report.html"
        path.write_text(text, encoding="utf-8")
        width, height = SIZES[device]
        context = self.browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            java_script_enabled=script,
            bypass_csp=axe,
        )
        self.contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())
        return page

    def violations(self, page: Page) -> list[str]:
        """What axe finds wrong, every rule switched on."""
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        return [f"{one['id']}: {one['help']} {[node['target'] for node in one['nodes']][:3]}" for one in found]


@pytest.fixture
def reader(browser: Browser, tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(browser, tmp_path)
    yield reader
    for context in reader.contexts:
        context.close()


@pytest.fixture
def opened(reader: Reader) -> Callable[..., Page]:
    return reader.open
