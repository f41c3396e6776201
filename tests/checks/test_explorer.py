"""The explorer on the built site, worked by mouse, finger and keyboard in a browser that reaches no network."""

import re

import pytest
from playwright.sync_api import expect
from test_site import SITE, Visit, browser, open_page  # noqa: F401

PAGE = "explorer.html"
expect.set_options(timeout=30_000)
WIDE, PHONE = {"width": 1280, "height": 1400}, {"width": 375, "height": 800}


@pytest.fixture
def visit():
    visit = Visit()
    yield visit
    assert not visit.errors and not visit.refused


def settled(page):
    """The explorer, once it shows something."""
    explorer = page.locator(".explorer")
    expect(explorer.locator(".reading")).not_to_be_empty()
    return explorer


def pictures(explorer):
    return explorer.locator("canvas").evaluate_all("all => all.map(canvas => canvas.toDataURL())")


def test_mouse(browser, visit):
    page = open_page(browser, visit, PAGE, viewport=WIDE)
    explorer = settled(page)
    stays, heat = pictures(explorer)
    box = explorer.locator("canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 2.5 / 24, box["y"] + box["height"] * 20.5 / 24)
    expect(explorer.locator(".reading")).to_contain_text("row 21, column 3")
    assert pictures(explorer)[1] != heat, "the heat map shows the patch that is pointed at"
    explorer.get_by_role("radio", name="FastV").check()
    assert pictures(explorer)[0] != stays, "another method keeps other patches"
    expect(explorer.locator(".reading")).to_contain_text("FastV keeps the 64 patches")
    explorer.get_by_role("radio", name="DART").check()
    assert explorer.locator(".chips button").count() == 8
    explorer.locator(".chips button").last.click()
    expect(explorer.locator(".reading")).to_contain_text("The word")


def test_keyboard(browser, visit):
    page = open_page(browser, visit, PAGE, viewport=WIDE)
    explorer = settled(page)
    explorer.get_by_role("combobox", name="Picture").focus()
    names = []
    for _ in range(40):
        names.append(page.evaluate("() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.labels?.[0]?.innerText ?? document.activeElement.innerText"))
        page.keyboard.press("Tab")
        if not page.evaluate("() => document.activeElement.closest('.explorer') !== null"):
            break
    assert len(names) > 15 and all(names), "every control can be reached, and has a name"

    method = explorer.get_by_role("radio", name="DART")
    method.focus()
    page.keyboard.press("ArrowRight")
    expect(explorer.get_by_role("radio", name="FastV")).to_be_checked()
    page.keyboard.press("ArrowLeft")

    keep = explorer.get_by_label("Patches kept")
    keep.focus()
    page.keyboard.press("Home")
    expect(explorer.locator("figcaption").first).to_contain_text("16 of 576")
    expect(explorer.locator(".answer")).to_contain_text("with 16 of 576 patches")
    page.keyboard.press("ArrowRight")
    expect(explorer.locator(".answer")).to_contain_text("with 32 of 576 patches")

    canvas = explorer.locator("canvas").first
    canvas.focus()
    page.keyboard.press("Home")
    page.keyboard.press("PageUp")
    expect(explorer.locator(".reading")).to_contain_text("row 1, column 1.")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowDown")
    expect(explorer.locator(".reading")).to_contain_text("row 2, column 2.")


def test_pivots_claim_one_after_the_other(browser, visit):
    page = open_page(browser, visit, PAGE, viewport=WIDE)
    explorer = settled(page)
    count = lambda: int(re.match(r"\d+", explorer.locator("figcaption").first.inner_text())[0])
    play = explorer.locator(".play")
    assert count() == 64
    play.focus()
    page.keyboard.press("Space")
    expect(play).to_have_text(re.compile("Pause"))
    seen = count()
    assert 4 <= seen < 64, "it begins with the image pivots"
    page.wait_for_function("least => parseInt(document.querySelector('.explorer figcaption').textContent) > least", arg=seen)
    page.keyboard.press("Space")
    expect(play).to_have_text(re.compile("Watch"))
    scrub = explorer.get_by_label("How many patches are claimed")
    scrub.focus()
    page.keyboard.press("Home")
    expect(explorer.locator("figcaption").first).to_contain_text(re.compile("^4 of 576"))
    page.keyboard.press("End")
    expect(explorer.locator("figcaption").first).to_contain_text(re.compile("^64 of 576"))


def test_touch_on_a_phone(browser, visit):
    page = open_page(browser, visit, PAGE, viewport=PHONE, has_touch=True, is_mobile=True)
    explorer = settled(page)
    canvas = explorer.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    canvas.tap(position={"x": box["width"] * 5.5 / 24, "y": box["height"] * 3.5 / 24})
    expect(explorer.locator(".reading")).to_contain_text("row 4, column 6.")

    touches = page.context.new_cdp_session(page)
    x, y, above = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, page.evaluate("scrollY")
    for step in range(12):
        at = [] if step == 11 else [{"x": x, "y": y - 10 * step}]
        touches.send("Input.dispatchTouchEvent", {"type": "touchMove" if 0 < step < 11 else "touchEnd" if step else "touchStart", "touchPoints": at})
    page.wait_for_function("above => scrollY > above + 50", arg=above)
    expect(explorer.locator(".reading")).to_contain_text("row 4, column 6.")    # a finger that scrolls does not point
    assert page.evaluate("() => document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_pictures_come_when_they_are_asked_for(browser, visit):
    page = open_page(browser, visit, PAGE, viewport=WIDE)
    explorer = settled(page)
    loaded = lambda: page.evaluate("() => Object.keys(dartExplorer.pictures)")
    assert len(loaded()) == 1
    explorer.get_by_role("combobox", name="Picture").select_option("china")
    expect(explorer.locator(".answer")).to_contain_text("was not made for photographs")
    assert len(loaded()) == 2 and "china" in loaded()


def test_what_was_not_computed_is_said(browser, visit):
    page = open_page(browser, visit, PAGE, viewport=WIDE)
    explorer = settled(page)
    expect(explorer.locator(".answer")).to_contain_text("with 64 of 576 patches")
    explorer.get_by_label("Before layer").select_option("6")
    expect(explorer.locator(".answer")).to_contain_text("run the page in JupyterLab")
    assert "with 64 of 576 patches" not in explorer.locator(".answer").inner_text(), "an answer to other settings stands there still"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_works_from_a_folder(browser, scheme):
    """Opened from the disk, where scripts may load scripts but fetch nothing."""
    page = browser.new_page(color_scheme=scheme, viewport=WIDE)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((SITE / PAGE).as_uri())
    settled(page)
    assert not errors


def test_files_are_light():
    files = list((SITE / "_static/explorer").glob("*.mjs"))
    assert len(files) == 7 and max(path.stat().st_size for path in files) < 1.5e6
