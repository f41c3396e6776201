"""What the book adds to Sphinx: pages that say what they are about, number tables, load late what is far down, leave out what they do not use."""

import re
from itertools import cycle
from pathlib import Path
from urllib.parse import urljoin

from docutils import nodes
from markupsafe import Markup
from PIL import Image
from sphinx.transforms import SphinxTransform

TABLE = re.compile(r'<table border="1" class="dataframe">.*?</table>', re.DOTALL)
NUMBER = re.compile(r"(?:[<+−-]?\d[\d.,:]*(?:e[+-]\d+)?(?: ?[%×x]| points| [MKG]?i?B| m?s)?|not run|nan|)")
INTERVAL = re.compile(r"\[[+−-]?[\d.]+%?, [+−-]?[\d.]+%?\]|[+−-]?[\d.]+%? to [+−-]?[\d.]+%?")
IMAGE = re.compile(r'<img (?=[^>]*\bsrc="[^"]*_images/([^"]+)")')
ICON = re.compile(r'(?:"([a-z0-9-]+)"|([a-z][a-z0-9]*)):\[\d+,\d+,\[([^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\["[^"]*","[^"]*"\])\],?')
MATHJAX = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts")
USED_BY = {"_static/explorer.": 'class="explorer"', "_static/mathjax/": 'class="math'}
CARD = "_static/card.jpg"


def setup(app):
    opened, closed = (lambda writer, node: writer.visit_figure(node)), (lambda writer, node: writer.body.append("</figure>\n"))
    app.add_enumerable_node(table_figure, "table", html=(opened, closed))
    app.add_transform(NumberTables)
    app.connect("html-page-context", describe)
    app.connect("html-page-context", set_tables)
    app.connect("html-page-context", load_late)
    app.connect("html-page-context", mend_the_list_of_sources)
    app.connect("html-page-context", leave_out_what_is_not_used)
    # after sphinx-mathjax-offline, which copies its files in the same event
    app.connect("build-finished", lighten, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class table_figure(nodes.figure):
    """A figure that holds a table, and is counted among tables."""


class NumberTables(SphinxTransform):
    """A caption that a cell's `mystnb.figure` gives to a data frame is the caption of a table, and stands above it."""

    # before Sphinx notes what a reference may lead to, at 850
    default_priority = 800

    def apply(self):
        for figure in list(self.document.findall(nodes.figure)):
            if any('class="dataframe"' in html.astext() for html in figure.findall(nodes.raw)):
                *content, caption = figure.children
                # docutils closes a caption where the figure ends
                end = nodes.raw("", "</figcaption>", format="html")
                table = table_figure("", caption, end, *content, **figure.attributes)
                table.source, table.line = figure.source, figure.line
                self.document.ids.update(dict.fromkeys(table["ids"], table))
                figure.replace_self(table)


def first_paragraph(doctree):
    """What a page is about: its first paragraph, without the line in italics that says how long it takes, and at most 200 characters."""
    for paragraph in doctree.findall(nodes.paragraph):
        in_a_section = isinstance(paragraph.parent, (nodes.section, nodes.document))
        if in_a_section and not all(isinstance(child, nodes.emphasis) for child in paragraph.children):
            text = re.sub(r"\s*\[[^\]]*, \d{4}\w?\]", "", " ".join(paragraph.astext().split()))
            return text if len(text) <= 200 else text[:200].rsplit(" ", 1)[0].rstrip(" ,;:") + " …"
    return ""


def describe(app, name, template, context, doctree):
    """Add the description for search engines and, where the site's address is known, the card that is shown where a page is shared."""
    text = first_paragraph(doctree) if doctree else ""
    tags = {("name", "description"): text, ("property", "og:title"): Markup(context.get("title", "")).striptags(),
            ("property", "og:description"): text, ("property", "og:type"): "article"}
    if app.config.html_baseurl:
        base = app.config.html_baseurl.rstrip("/") + "/"
        tags |= {("property", "og:url"): urljoin(base, app.builder.get_target_uri(name)), ("property", "og:image"): urljoin(base, CARD),
                 ("name", "twitter:card"): "summary_large_image"}
    lines = [f'<meta {kind}="{key}" content="{Markup.escape(content)}" />' for (kind, key), content in tags.items() if content]
    context["metatags"] = context.get("metatags", "") + "\n".join(lines)


def one_row(head):
    """Pandas gives names of rows a line of their own below those of columns: where they fill its gaps, one line holds both."""
    lines = re.findall(r"<tr.*?</tr>", head, re.DOTALL)
    cells = [re.findall(r"<th>(.*?)</th>", line, re.DOTALL) for line in lines]
    if len(lines) != 2 or "colspan" in head or len(cells[0]) != len(cells[1]) or any(above and below for above, below in zip(*cells)):
        return head
    line = "".join(f"<th>{above or below}</th>" for above, below in zip(*cells))
    return head.replace(lines[0], f"<tr>{line}</tr>").replace(lines[1], "")


def set_tables(app, name, template, context, doctree):
    """Set numbers of a data frame right and words left, headings as what stands below them; break no line inside an interval."""

    def set_one(match):
        head, body = match[0].split("<tbody>")
        head = one_row(head)
        rows = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in body.split("</tr>")]
        sides = ["number" if all(map(NUMBER.fullmatch, column)) else "words" for column in zip(*filter(None, rows))]
        cells, headings = cycle(sides), cycle(["words"] * (head.split("</tr>")[0].count("<th>") - len(sides)) + sides)
        body = re.sub("<td>", lambda _: f'<td class="{next(cells)}">', body)
        if "colspan" not in head:
            head = re.sub("<th>", lambda _: f'<th class="{next(headings)}">', head)
        body = INTERVAL.sub(lambda interval: interval[0].replace(" ", "\u00a0"), body)
        return f"{head}<tbody>{body}"

    if "body" in context:
        context["body"] = TABLE.sub(set_one, context["body"])


def load_late(app, name, template, context, doctree):
    """Let pictures after the first wait until they are near, and tell their size, so that the text does not jump when they come.

    A picture that knows how many dots it has an inch, as figures do, is shown in that size, so that letters are of one size in all of them.
    """
    sources = {target: Path(app.srcdir, source) for source, target in app.builder.images.items()}
    first = True

    def attributes(match):
        nonlocal first
        with Image.open(sources[match[1]]) as picture:
            scale = 96 / picture.info.get("dpi", (96, 96))[0]
            width, height = (round(side * scale) for side in picture.size)
        late, first = "" if first else 'loading="lazy" ', False
        return f'<img {late}width="{width}" height="{height}" '

    if "body" in context:
        context["body"] = IMAGE.sub(attributes, context["body"])


def mend_the_list_of_sources(app, name, template, context, doctree):
    """docutils gives each source a role that is deprecated, and that a list may not hold."""
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def leave_out_what_is_not_used(app, name, template, context, doctree):
    """Load MathJax where formulas are, and the explorer's files, which jupyter-book puts on every page, where the explorer is."""
    unused = [file for file, sign in USED_BY.items() if sign not in context.get("body", "")]
    for files in ("script_files", "css_files"):
        context[files] = [file for file in context[files] if not any(part in str(file.filename) for part in unused)]


def lighten(app, error):
    """Take out of the finished site what no page loads: MathJax in other forms, icons that stand nowhere."""
    static = Path(app.outdir, "_static")
    if error or app.builder.format != "html":
        return
    mathjax = static / "mathjax"
    for path in mathjax.rglob("*"):
        if path.is_file() and not path.relative_to(mathjax).as_posix().startswith(MATHJAX):
            path.unlink()

    icons = static / "scripts/fontawesome.js"
    users = [*Path(app.outdir).rglob("*.html"), *(path for path in static.rglob("*.js") if path != icons)]
    used = {name for path in users for name in re.findall(r"\bfa-([a-z0-9-]+)", path.read_text())}
    # name, other names (numbers among them are old code points)
    names = lambda icon: {icon[1] or icon[2], *re.findall(r'"([^"]+)"', icon[3])}
    icons.write_text(ICON.sub(lambda icon: icon[0] if names(icon) & used else "", icons.read_text()))
    for path in static.rglob("*.js.map"):
        path.unlink()
