"""The built site, seen in a browser that reaches no network: whole, quiet, fit for a phone, a screen reader and paper."""

import datetime
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import nbformat
import pytest
import yaml
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import sync_playwright
from pypdf import PdfReader

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
SITE = BOOK / "_build/html"
TOC = yaml.safe_load((BOOK / "_toc.yml").read_text())
HOST = "http://book.test/"
CHAPTERS = [f"{name}.html" for name in [TOC["root"], *(page["file"] for part in TOC["parts"] for page in part["chapters"])]]
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

# Without preload: axe would fetch every style sheet again.
BARRIERS = """async rules => {
    const {violations} = await axe.run({resultTypes: ["violations"], preload: false, ...(rules && {runOnly: rules})});
    return violations.filter(found => ["serious", "critical"].includes(found.impact))
        .flatMap(found => found.nodes.map(node => `${found.id} at ${node.target}: ${node.failureSummary}`));
}"""

FACTS = """() => ({
    description: document.querySelector("meta[name=description]")?.content ?? "",
    icon: document.querySelector("link[rel=icon]")?.href,
    notebook: document.querySelector(".btn-download-source-button")?.href,
    maths: document.querySelector(".math") !== null,
    untitled: [...document.querySelectorAll(".bibtex-citation a:not([title])")].map(link => link.textContent),
    crooked: [...document.querySelectorAll("table.dataframe:not(:has([colspan]))")].filter(({tHead, tBodies}) => {
        const heads = [...tHead.rows[0].cells];
        return [...tBodies[0].rows].some(row => [...row.querySelectorAll("td")].reverse()
            .some((cell, i) => heads.at(-1 - i).className !== cell.className));
    }).length,
    gaping: [...document.querySelectorAll("table.dataframe:not(:has([colspan]))")].filter(({tHead: {rows}}) =>
        rows.length > 1 && [...rows[0].cells].every((cell, i) => !cell.textContent || !rows[1].cells[i].textContent)).length,
    uncopied: [...document.querySelectorAll(".cell_input pre")].filter(code => !code.parentElement.querySelector("button.copybtn")).length,
})"""


def unavailable(reason):
    """A missing tool skips a check on a reader's machine, but never where every check must have run."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@dataclass
class Visit:
    """What one page did and holds."""

    errors: list = field(default_factory=list)
    refused: list = field(default_factory=list)
    loaded: dict = field(default_factory=dict)
    flat_images: list = field(default_factory=list)
    broken_maths: list = field(default_factory=list)
    too_wide: list = field(default_factory=list)
    barriers: list = field(default_factory=list)
    messages: list = field(default_factory=list)
    facts: dict = field(default_factory=dict)
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
            visit.loaded[str(path.relative_to(SITE))] = path.stat().st_size
            return route.fulfill(path=path)
        visit.refused.append(url)
        route.abort()

    page = browser.new_page(**settings)
    # a busy machine is slow, not broken
    page.set_default_timeout(120_000)
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
        page.evaluate(AXE_SCRIPT)
        visit.barriers = page.evaluate(BARRIERS)
        page.emulate_media(color_scheme="dark")
        # the theme's colours change within a third of a second
        page.wait_for_timeout(500)
        visit.barriers += page.evaluate(BARRIERS, ["color-contrast"])
        visit.facts = page.evaluate(FACTS)
        # what libraries say to the one who runs a page is nothing for its readers
        visit.messages = page.locator(".output.stderr").all_inner_texts()
        visit.flat_images = page.evaluate(FLAT_IMAGES)
        visit.broken_maths = page.evaluate(BROKEN_MATHS)
        visit.links = page.evaluate("() => [...document.querySelectorAll('a[href]')].map(a => a.href)")
        visit.ids = set(page.evaluate("() => [...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name)"))
        page.set_viewport_size({"width": 375, "height": 800})
        visit.too_wide = page.evaluate(TOO_WIDE)
        # the theme looks for what has to scroll a moment after the window has changed
        page.wait_for_timeout(500)
        visit.barriers += page.evaluate(BARRIERS, ["scrollable-region-focusable", "button-name", "link-name", "aria-hidden-focus"])
        page.close()
    return visits


@pytest.mark.parametrize("what", ["errors", "refused", "flat_images", "broken_maths", "too_wide", "barriers", "messages"])
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


def test_links_to_other_sites_are_listed(visits):
    """Nothing is asked of the network: the list, with its date, is for a person to go through."""
    found = {}
    for address, visit in visits.items():
        for link in visit.links:
            if not link.startswith(HOST):
                found.setdefault(link, set()).add(address)
    assert found and all(urlsplit(link).scheme == "https" and "." in urlsplit(link).netloc for link in found), found
    lines = [f"{link}  ({', '.join(sorted(pages))})" for link, pages in sorted(found.items())]
    listing = ROOT / "build/external-links.txt"
    listing.parent.mkdir(exist_ok=True)
    listing.write_text(f"Links of the site to other sites, {datetime.date.today()}; none was followed.\n\n" + "\n".join(lines) + "\n")


def test_every_chapter_says_what_it_is_about(visits):
    said = {address: visits[address].facts["description"] for address in CHAPTERS}
    assert {address: text for address, text in said.items() if not 50 <= len(text) <= 202} == {}
    assert len(set(said.values())) == len(said), "two pages describe themselves alike"
    assert all((SITE / urlsplit(visits[address].facts["icon"]).path.lstrip("/")).is_file() for address in CHAPTERS)


def test_tables_are_counted_through_the_book(visits):
    """Captions of data frames have numbers of their own, each once, in the order of reading."""
    numbers = re.compile(r'<span class="caption-number">Tab\. (\d+) </span>')
    found = [int(number) for address in CHAPTERS for number in numbers.findall((SITE / address).read_text())]
    assert found and found == list(range(1, len(found) + 1))
    assert {address for address in CHAPTERS if visits[address].facts["crooked"]} == set(), "headings stand as their columns"
    assert {address for address in CHAPTERS if visits[address].facts["gaping"]} == set(), "names of rows stand in the line of those of columns"


def test_every_citation_shows_its_source(visits):
    assert {address: visit.facts["untitled"] for address, visit in visits.items() if visit.facts["untitled"]} == {}


def test_every_notebook_can_be_taken_along(visits):
    for address in CHAPTERS:
        notebook = Path(address).with_suffix(".ipynb")
        if (BOOK / notebook).is_file():
            link = visits[address].facts["notebook"]
            assert link and link.endswith(str(notebook)), address
            nbformat.validate(nbformat.read(SITE / urlsplit(link).path.lstrip("/"), as_version=4))
        assert not visits[address].facts["uncopied"], address


def test_pages_are_light(visits):
    """Scripts, styles, fonts and text of a page; its pictures come as they are scrolled to."""
    for address, visit in visits.items():
        weight = sum(size for name, size in visit.loaded.items() if not name.startswith(("_images/", "_static/explorer/")))
        assert weight < 2.5e6, f"{address}: {visit.loaded}"
        assert sum(size for name, size in visit.loaded.items() if name.startswith("_images/")) < 2e6, f"pictures of {address}"
        assert any("explorer" in name for name in visit.loaded) == (address == "explorer.html")
        assert any("mathjax" in name for name in visit.loaded) == visit.facts["maths"], address
    assert sum(path.stat().st_size for path in SITE.rglob("*") if path.is_file()) < 30e6


def test_search_needs_no_network(browser):
    visit = Visit()
    page = open_page(browser, visit, "search.html?q=duplication")
    page.locator("#search-results li").first.wait_for(timeout=10_000)
    assert not visit.refused and not visit.errors


def test_paper_is_light(browser):
    page = open_page(browser, Visit(), CHAPTERS[1], color_scheme="dark")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(ground) == "rgb(255, 255, 255)" != dark
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(ground) == dark


def test_two_pages_as_a_pdf(browser, tmp_path):
    """Whole, in order, with bookmarks, numbers and links that lead inside; folded solutions open, buttons gone."""
    first, second = "why/what-duplication-is", "notation"
    toc = {"root": "index", "parts": [{"caption": "Why", "chapters": [{"file": first}]}, {"caption": "Reference", "chapters": [{"file": second}]}]}
    (tmp_path / "toc.yml").write_text(yaml.safe_dump(toc))
    command = [sys.executable, BOOK / "_ext/pdf.py", "--toc", tmp_path / "toc.yml", "--out", tmp_path / "book.pdf"]
    subprocess.run(command, check=True)
    pdf = PdfReader(tmp_path / "book.pdf")
    outline = pdf.outline
    titles = [[mark.title for mark in entry] if isinstance(entry, list) else entry.title for entry in outline]
    assert titles == ["Duplication matters more", "Why", ["What duplication is"], "Reference", ["Notation"]]
    starts = [pdf.get_destination_page_number(outline[0]), *(pdf.get_destination_page_number(marks[0]) for marks in (outline[2], outline[4]))]
    assert starts[0] == 0 < starts[1] < starts[2] < len(pdf.pages)

    sheets = [sheet.extract_text() for sheet in pdf.pages]
    assert [text.split()[0] for text in sheets] == [str(number) for number in range(1, len(sheets) + 1)]
    chapter = " ".join(" ".join(sheets[starts[1]:starts[2]]).split())
    packed = chapter.replace(" ", "")
    notebook = nbformat.read(BOOK / f"{first}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code" and not {"remove-input", "hide-input", "remove-cell"} & set(cell.metadata.get("tags", [])):
            lost = [line for line in cell.source.splitlines() if "".join(line.split()) not in packed]
            assert not lost, f"cell {cell.id} is not printed whole"
    assert "Solution to" in chapter and "Show code cell" not in chapter and "Click to" not in chapter

    links = [note.get_object() for sheet in pdf.pages for note in sheet.get("/Annots", [])]
    assert not [link for link in links if str(link.get("/A", {}).get("/URI", "")).startswith("file:")]
    led = {pdf.get_page_number(link["/Dest"][0].get_object()) for link in links if "/Dest" in link}
    sources = max(number for number, text in enumerate(sheets) if "Sources" in text.splitlines())
    assert any(page >= sources for page in led), "citations lead to the sources at the end"
