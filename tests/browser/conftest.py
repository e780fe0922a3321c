"""A browser without a network, and pages to open in it: `make test-browser`."""

import os
import shutil
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("INWARD_CHROMIUM") or shutil.which("chromium")
AXE = Path(__file__).parents[2] / ".browser" / "package" / "axe.min.js"


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium; apt-get install chromium, or name one: INWARD_CHROMIUM")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def demo(browser, tmp_path_factory):
    """The page that `inward demo` ends with."""
    from inward.demo.pages import demo_page

    return demo_page(tmp_path_factory.mktemp("demo"), seed=1_000_000)


class Opened:
    """A page with all that it asked for and complained of."""

    def __init__(self, browser, path, hash_="", *, width=1200, height=800, scheme="light"):
        self.context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            offline=True,
            accept_downloads=True,
        )
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda said: (
                self.errors.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"file://{path}{hash_}")

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()


@pytest.fixture
def opened(browser):
    """Opens pages, and closes them after the test."""
    made = []

    def open_page(path, hash_="", **options) -> Opened:
        made.append(Opened(browser, path, hash_, **options))
        return made[-1]

    yield open_page
    for one in made:
        one.context.close()
