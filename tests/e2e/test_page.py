"""The page at `/` and the API pages, in a real browser, with nothing fetched from elsewhere."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from services.page import State, page

if TYPE_CHECKING:
    from tests.e2e.conftest import Running
else:
    Running = Any

SERVICES = ("schedule", "participants", "notifications")
PATIENCE = 180_000.0
"""Milliseconds."""
COPIED = """
() => new MutationObserver(() => { window.copied = window.copied || document.body.innerText.includes("Copied"); })
    .observe(document.body, {childList: true, characterData: true, subtree: true})
"""


@dataclass
class Looked:
    """A page, and what went wrong while it was looked at: console, script, and requests to anywhere else."""

    page: Page
    wrong: list[str] = field(default_factory=list)

    def watch(self, base: str) -> None:
        """From now on, note what should not be."""
        self.page.on(
            "console", lambda told: self.wrong.append(told.text) if told.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on(
            "request",
            lambda asked: None if asked.url.startswith((base, "data:")) else self.wrong.append(asked.url),
        )


@pytest.fixture(scope="module")
def browser(chromium: str, running: Running) -> Iterator[Browser]:
    """For this module alone, and after `running`: while Playwright runs, nothing else can run an event loop here."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments, timeout=PATIENCE)
        yield browser
        browser.close()


def _new_page(browser: Browser) -> Page:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    return page


@pytest.fixture(params=["light", "dark", "phone", "without script"])
def looked(request: pytest.FixtureRequest, browser: Browser, running: Running) -> Iterator[Looked]:
    """The page at `/`, in four ways of looking at it."""
    context = browser.new_context(
        color_scheme="dark" if request.param == "dark" else "light",
        viewport={"width": 390 if request.param == "phone" else 1200, "height": 900},
        java_script_enabled=request.param != "without script",
    )
    context.set_default_timeout(PATIENCE)
    looked = Looked(context.new_page())
    looked.watch(running.run["base"])
    looked.page.goto(running.run["base"])
    yield looked
    context.close()


def test_the_page_shows_the_trip_and_every_feed(looked: Looked, running: Running) -> None:
    shown = looked.page
    assert shown.get_by_role("heading", level=1).inner_text() == (
        "Secretary of State to the Middle East and the Indo-Pacific"
    )
    assert shown.get_by_role("status").inner_text() == "Ready Every feed is up to date."
    assert shown.locator("code.address").all_inner_texts() == [feed["url"] for feed in running.run["feeds"]]
    for feed in running.run["feeds"]:
        link = shown.get_by_role("link", name=f"Subscribe to the feed of {feed['delegation']}", exact=True)
        assert link.get_attribute("href") == "webcal:" + feed["url"].removeprefix("http:")
    assert shown.locator(".place").all_inner_texts() == [
        "Tel Aviv, Israel",
        "Amman, Jordan",
        "Ramallah, West Bank",
        "Baghdad, Iraq",
        "Ankara, Türkiye",
        "Tokyo, Japan",
        "Seoul, Republic of Korea",
        "New Delhi, India",
    ]
    shown.locator("summary", has_text="Tokyo").click()
    row = shown.get_by_role("row", name="dialogue with Central Asia")
    assert row.is_visible()
    assert "14:15" in row.inner_text()
    wider: bool = shown.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    assert not wider
    assert looked.wrong == []


def test_every_link_of_the_page_leads_somewhere(running: Running, browser: Browser) -> None:
    with running.client() as client:
        shown = _new_page(browser)
        shown.goto(running.run["base"])
        links: list[str] = shown.eval_on_selector_all("a[href]", "found => found.map(a => a.href)")
        shown.close()
        expected = {f"/{name}/{what}" for name in SERVICES for what in ("docs", "openapi.json", "readyz", "metrics")}
        assert expected <= {httpx.URL(link).path for link in links}
        answers = {link: _status(client, link.replace("webcal:", "http:")) for link in links}
    assert {link: status for link, status in answers.items() if status >= 400} == {}


def _status(client: httpx.Client, address: str) -> int:
    """What is answered once nothing stands still: a busy machine is not ready for a moment."""
    end = time.monotonic() + PATIENCE / 1000
    while (status := client.get(address).status_code) == 503 and time.monotonic() < end:
        time.sleep(0.1)
    return status


def test_an_address_is_copied_by_its_button(running: Running, browser: Browser) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(PATIENCE)
    shown = context.new_page()
    shown.goto(running.run["base"])
    button = shown.get_by_role("button", name="Copy the address of the feed of Press pool")
    shown.evaluate(COPIED)  # who looks may be held up for longer than it is said
    button.click()
    shown.wait_for_function("window.copied")
    press = next(feed["url"] for feed in running.run["feeds"] if feed["delegation"] == "Press pool")
    assert shown.evaluate("navigator.clipboard.readText()") == press
    context.close()


@pytest.mark.parametrize("service", SERVICES)
def test_the_api_pages_render_without_the_internet(running: Running, browser: Browser, service: str) -> None:
    looked = Looked(_new_page(browser))
    looked.watch(running.run["base"])
    looked.page.goto(f"{running.run['base']}/{service}/docs")
    looked.page.wait_for_selector(".opblock-summary-path")
    with running.client() as client:
        described = client.get(f"/{service}/openapi.json").json()
    operations = sum(len(methods) for methods in described["paths"].values())
    assert looked.page.locator(".opblock").count() == operations
    assert looked.wrong == []
    looked.page.close()


def test_the_page_keeps_to_itself(running: Running) -> None:
    with running.client() as client:
        answer = client.get("/")
        other = client.get("/", headers={"Host": "rebound.example"})
        posted = client.post("/")
    assert {name: answer.headers[name] for name in ("cache-control", "referrer-policy", "x-content-type-options")} == {
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert running.run["token"] not in answer.text
    assert (other.status_code, "/feeds/" in other.text) == (404, False)
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET, HEAD")


def test_the_page_refreshes_itself_until_all_is_ready() -> None:
    loading = page(State(done=7, total=211), SERVICES, None)
    assert '<meta http-equiv="refresh" content="2">' in loading
    assert "Step 7 of 211" in loading
    assert 'http-equiv="refresh"' not in page(State(ready=True, done=211, total=211), SERVICES, None)


def test_the_page_escapes_what_it_shows() -> None:
    feed = {"delegation": "<b>&", "kind": "own", "level": "full", "link": "1", "url": 'http://127.0.0.1/"><i>'}
    shown = page(State(ready=True, feeds=[feed]), SERVICES, None)
    assert "<b>" not in shown
    assert "<i>" not in shown
