"""One PDF of the built site: its pages in the order of the contents, printed by headless Chromium, with a bookmark each."""

import argparse
import io
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import yaml
from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, FloatObject, NameObject, NullObject

BOOK = Path(__file__).parents[1]
MARGIN = {"top": "18mm", "bottom": "20mm", "left": "16mm", "right": "16mm"}
# Chromium notes the places of those anchors alone to which a link on the same page leads, hidden ones too.
READY = """async () => {
    const links = document.body.appendChild(Object.assign(document.createElement("nav"), {hidden: true}));
    for (const {id} of document.querySelectorAll("article [id]"))
        links.append(Object.assign(document.createElement("a"), {href: "#" + encodeURIComponent(id)}));
    for (const image of document.images) image.loading = "eager";
    await Promise.all([...document.images].map(image => image.decode().catch(() => {})));
    await window.MathJax?.startup?.promise;
    await document.fonts.ready;
}"""


def chapters(toc):
    """(caption of the part or None, name of the page), in the order of reading."""
    return [(None, toc["root"])] + [(part["caption"], page["file"]) for part in toc["parts"] for page in part["chapters"]]


def print_page(tab, path, first_number=1):
    """A page of the site as a PDF, its sheets numbered from `first_number`."""
    tab.goto(path.resolve().as_uri(), wait_until="load")
    tab.evaluate(READY)
    tab.add_style_tag(content=f"html {{ counter-reset: page {first_number - 1} }}")
    return PdfReader(io.BytesIO(tab.pdf(format="A4", margin=MARGIN, print_background=True, outline=False)))


def lead_inside(writer, starts, targets, site):
    """Make links between pages of the site links inside the PDF: to the place where it is known, else to the page's first sheet."""
    for name, (first, end) in starts.items():
        for sheet in writer.pages[first:end]:
            for note in sheet.get("/Annots", []):
                note = note.get_object()
                address = note.get("/A", {}).get("/URI")
                path, anchor = urldefrag(address) if address else (f"{site}{name}.html", note.get("/Dest"))
                page = unquote(path).removeprefix(site).removesuffix(".html")
                if page not in starts:
                    # what the site has beside its pages, such as the index, is not in the book
                    if address and address.startswith("file:"):
                        del note["/A"]
                    continue
                number, left, top = targets[page].get(unquote(str(anchor or "")).removeprefix("/"), (0, 0, None))
                place = [FloatObject(left), NullObject() if top is None else FloatObject(top), NullObject()]
                target = writer.pages[starts[page][0] + number].indirect_reference
                note.pop("/A", None)
                note[NameObject("/Dest")] = ArrayObject([target, NameObject("/XYZ"), *place])


def make(site, toc, out):
    """Print the pages of `toc` from the folder `site` into the file `out`."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("The PDF is printed by Chromium, and there is none here. On Debian: apt install chromium")
    missing = [name for _, name in chapters(toc) if not (site / f"{name}.html").is_file()]
    if missing:
        sys.exit(f"{site} has no page {missing[0]}.html: run `make book` first")

    writer, starts, targets, parts = PdfWriter(), {}, {}, {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        tab = browser.new_page(color_scheme="light")
        tab.set_default_timeout(180_000)
        for part, name in chapters(toc):
            first = len(writer.pages)
            printed = print_page(tab, site / f"{name}.html", first + 1)
            title = tab.locator("article h1").first.evaluate("title => title.firstChild.textContent")
            targets[name] = {key.removeprefix("/"): (printed.get_destination_page_number(place), place.left or 0, place.top)
                             for key, place in printed.named_destinations.items()}
            writer.append(printed, import_outline=False)
            starts[name] = first, len(writer.pages)
            if part and part not in parts:
                parts[part] = writer.add_outline_item(title=part, page_number=first)
            writer.add_outline_item(title=title, page_number=first, parent=parts.get(part))
            print(f"{name}: {len(printed.pages)} pages", flush=True)
        browser.close()
    lead_inside(writer, starts, targets, site.resolve().as_uri() + "/")
    writer.add_metadata({"/Title": yaml.safe_load((BOOK / "_config.yml").read_text())["title"]})
    writer.page_mode = "/UseOutlines"
    writer.write(out)
    return len(writer.pages)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, default=BOOK / "_build/html")
    parser.add_argument("--toc", type=Path, default=BOOK / "_toc.yml")
    parser.add_argument("--out", type=Path, default=BOOK / "_build/book.pdf")
    given = parser.parse_args()
    count = make(given.site, yaml.safe_load(given.toc.read_text()), given.out)
    print(f"{given.out}: {count} pages, {given.out.stat().st_size / 2**20:.0f} MiB")
