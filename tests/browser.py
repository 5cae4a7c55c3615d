"""A real headless browser for the pages the study writes: the system's Chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def opened(page_path: Path, width: int = 1280, height: int = 900) -> Iterator:
    """The page in a fresh browser. Fails at the end if it logged an error or asked for anything beyond its own file.

    Skips the test where there is no Chromium.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install -e '.[test]'")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    complaints: list[str] = []
    url = page_path.resolve().as_uri()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(60_000)  # a busy machine is not a failure
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on(
            "request",
            lambda request: (
                complaints.append(f"request: {request.url[:80]}")
                if request.url.split("#")[0] != url and not request.url.startswith(("data:", "blob:"))
                else None
            ),
        )
        page.goto(url)
        yield page
        browser.close()
    assert complaints == []


def showing(page, model: str, prompt: str, length: int, threshold: float) -> None:
    """Choose on the explorer's page and wait until it shows the choice."""
    page.select_option("#model", label=model)
    label = page.locator("#prompt option").filter(has_text="all " if prompt == "all" else f"{prompt} (").first
    page.select_option("#prompt", value=label.get_attribute("value"))
    page.wait_for_function(
        "([model, prompt]) => document.body.dataset.shown?.startsWith(`${model}; ${prompt}; `)", arg=[model, prompt]
    )
    stops = page.evaluate("JSON.parse(document.getElementById('study').textContent).thresholds")
    page.locator("#threshold").fill(str(stops.index(threshold)))
    page.locator("#length").fill(str(length - 1))  # every length from 1 on has a stop
    page.wait_for_function(
        "(start) => document.body.dataset.shown?.startsWith(start)", arg=f"{model}; {prompt}; {length}; {threshold:g}; "
    )
