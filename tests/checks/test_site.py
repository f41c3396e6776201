"""The built site, seen in a browser that reaches no network: whole, quiet, and fit for a phone."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from playwright.sync_api import sync_playwright

SITE = Path(__file__).parents[2] / "book/_build/html"
HOST = "http://book.test/"
PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html") if "_static" not in path.parts)

FLAT_IMAGES = """async () => {
    const flat = [];
    for (const image of document.images) {
        image.loading = "eager";
        await image.decode().catch(() => {});
        const canvas = Object.assign(document.createElement("canvas"), {width: 64, height: 64});
        const context = canvas.getContext("2d");
        if (image.naturalWidth) context.drawImage(image, 0, 0, 64, 64);
        const pixels = new Uint32Array(context.getImageData(0, 0, 64, 64).data.buffer);
        if (pixels.every(pixel => pixel === pixels[0])) flat.push(image.src);
    }
    return flat;
}"""

BROKEN_MATHS = """async () => {
    await window.MathJax?.startup?.promise;
    const formulas = [...document.querySelectorAll(".math")];
    return formulas.filter(f => !f.querySelector("mjx-container") || f.querySelector("mjx-merror")).map(f => f.textContent);
}"""

TOO_WIDE = """() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    const wide = [...document.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > width + 1);
    return wide.length ? wide.slice(0, 3).map(e => e.outerHTML.slice(0, 200)) : ["the page"];
}"""


def unavailable(reason):
    """A missing tool skips a check on a reader's machine, but never where every check must have run."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@dataclass
class Visit:
    """What one page did and holds."""

    errors: list = field(default_factory=list)
    refused: list = field(default_factory=list)
    flat_images: list = field(default_factory=list)
    broken_maths: list = field(default_factory=list)
    too_wide: list = field(default_factory=list)
    links: list = field(default_factory=list)
    ids: set = field(default_factory=set)


@pytest.fixture(scope="module")
def browser():
    if not PAGES:
        unavailable("there is no site yet: run `make book` first")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        unavailable("no Chromium here: on Debian, apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        yield browser
        browser.close()


def open_page(browser, visit, address, **settings):
    """Serve the site from the folder under a made-up host name; whatever else is asked for is refused and written down."""

    def answer(route):
        url = route.request.url
        path = SITE / unquote(urlsplit(url).path).lstrip("/")
        if url.startswith(HOST) and path.is_file():
            return route.fulfill(path=path)
        visit.refused.append(url)
        route.abort()

    page = browser.new_page(**settings)
    page.route("**/*", answer)
    page.on("console", lambda message: visit.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    page.goto(HOST + address, wait_until="load")
    return page


@pytest.fixture(scope="module")
def visits(browser):
    visits = {}
    for address in PAGES:
        visit = visits[address] = Visit()
        page = open_page(browser, visit, address, viewport={"width": 1280, "height": 900})
        visit.flat_images = page.evaluate(FLAT_IMAGES)
        visit.broken_maths = page.evaluate(BROKEN_MATHS)
        visit.links = page.evaluate("() => [...document.querySelectorAll('a[href]')].map(a => a.href)")
        visit.ids = set(page.evaluate("() => [...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name)"))
        page.set_viewport_size({"width": 375, "height": 800})
        visit.too_wide = page.evaluate(TOO_WIDE)
        page.close()
    return visits


@pytest.mark.parametrize("what", ["errors", "refused", "flat_images", "broken_maths", "too_wide"])
def test_no_page_has(visits, what):
    found = {address: getattr(visit, what) for address, visit in visits.items() if getattr(visit, what)}
    assert not found


def test_every_internal_link_leads_somewhere(visits):
    dead = set()
    for address, visit in visits.items():
        for link in visit.links:
            target, anchor = urldefrag(link)
            if not target.startswith(HOST):
                continue
            path = unquote(urlsplit(target).path).lstrip("/") or "index.html"
            if not (SITE / path).is_file() or (anchor and path in visits and unquote(anchor) not in visits[path].ids):
                dead.add(f"{address} -> {path}#{anchor}")
    assert not dead


def test_search_needs_no_network(browser):
    visit = Visit()
    page = open_page(browser, visit, "search.html?q=duplication")
    page.locator("#search-results li").first.wait_for(timeout=10_000)
    assert not visit.refused and not visit.errors
