"""The notebooks in JupyterLab, which is started as `make lab` starts it, in a browser that reaches no network."""

import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from test_site import unavailable

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
NOTEBOOKS = sorted(str(path.relative_to(BOOK)) for path in BOOK.rglob("*.ipynb") if not {"_build", ".ipynb_checkpoints"} & set(path.parts))
# one of every kind runs here; the build of the book and papermill run all of them
TO_RUN = ["why/what-duplication-is.ipynb", "method/claiming-step-by-step.ipynb", "results/table-8.ipynb", "yours/your-own-model.ipynb"]
MINUTE = 60_000

STATE = """() => {
    const panel = window.jupyterapp?.shell.currentWidget, session = panel?.context?.sessionContext;
    if (!panel?.content?.model?.toJSON) return null;  // the launcher
    const cells = panel.content.model.toJSON().cells, code = cells.filter(cell => cell.cell_type === "code" && cell.source.length);
    return {
        path: panel.context.path,
        ready: panel.context.isReady && panel.content.widgets.length === cells.length,
        kernel: session?.session?.kernel?.status,
        cells: cells.length,
        waiting: code.filter(cell => cell.execution_count === null).map(cell => cell.id),
        errors: cells.flatMap(cell => (cell.outputs ?? []).filter(output => output.output_type === "error").map(output => `${cell.id}: ${output.evalue}`)),
    };
}"""


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        unavailable("no Chromium here: on Debian, apt install chromium")
    with sync_playwright() as playwright:
        # no name but this machine's own is found
        browser = playwright.chromium.launch(executable_path=chromium, args=["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab with a copy of the book, so that what runs and is saved leaves the book alone."""
    if not Path(sys.executable).with_name("jupyter-lab").exists():
        unavailable("no JupyterLab here: pip install -e '.[book]'")
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(BOOK, home / "book", ignore=shutil.ignore_patterns("_build", ".ipynb_checkpoints"))
    line = re.search(r"^lab:.*\n\t\$\(BIN\)/jupyter (lab book)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line, "`make lab` starts JupyterLab in another way than this check"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", *shlex.split(line[1]), "--no-browser", f"--port={port}", "--LabApp.expose_app_in_browser=True"]
    if os.getuid() == 0:
        command.append("--allow-root")
    # settings of the one who runs the check would change what it sees
    own = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "RUNTIME")} | {"IPYTHONDIR": str(home / "ipython")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    where = {"DART_DATA": os.environ.get("DART_DATA", str(ROOT / "data")), "DART_COMPUTE": "0", "PYTHONPATH": str(ROOT)}
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=home, env=os.environ | own | where, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 180
        while not (files := list((home / "runtime").glob("jpserver-*.json"))):
            assert server.poll() is None and time.monotonic() < deadline, (home / "log").read_text()[-2000:]
            time.sleep(0.5)
        known = json.loads(files[0].read_text())
        yield f"{known['url']}lab?token={known['token']}"
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="module")
def page(browser, lab):
    """One tab with JupyterLab in it."""
    page = browser.new_page(viewport={"width": 1400, "height": 1200})
    page.refused = []  # what its own scripts throw while they draw and close is JupyterLab's affair
    page.on("requestfailed", lambda request: page.refused.append(request.url) if request.url.startswith("http") and "//localhost:" not in request.url else None)
    page.set_default_timeout(3 * MINUTE)
    page.goto(lab)
    page.locator(".jp-Launcher").wait_for()
    yield page
    page.close()


def wait(page, condition, minutes=3):
    """The state of the open notebook, once it meets a condition."""
    deadline = time.monotonic() + 60 * minutes
    while not ((state := page.evaluate(STATE)) and condition(state)):
        assert time.monotonic() < deadline, f"after {minutes} minutes: {state}"
        page.wait_for_timeout(500)
    return state


def open_notebook(page, path):
    page.refused.clear()
    page.evaluate("path => { window.jupyterapp.commands.execute('docmanager:open', {path}); }", path)
    state = wait(page, lambda state: state["path"] == path and state["ready"] and state["kernel"] == "idle")
    assert page.locator(".jp-Dialog").count() == 0, page.locator(".jp-Dialog").all_inner_texts()
    return state


def run_all(page, minutes):
    """By the menu, as a reader does; done when the kernel rests and every cell has its number."""
    page.locator(".lm-MenuBar-item", has_text="Run").first.click()
    page.locator(".lm-Menu-item", has_text="Run All Cells").first.click()
    return wait(page, lambda state: state["errors"] or (state["kernel"] == "idle" and not state["waiting"]), minutes)


def show(page, name):
    """The cell of this id, brought into view: JupyterLab draws what is in view only."""
    page.evaluate("""async name => {
        const notebook = window.jupyterapp.shell.currentWidget.content;
        notebook.activeCellIndex = notebook.model.toJSON().cells.findIndex(cell => cell.id === name);
        await notebook.scrollToItem(notebook.activeCellIndex, "start");
    }""", name)
    return page.locator(".jp-Notebook .jp-Cell.jp-mod-active")


def close(page):
    """The notebook, and its kernel."""
    page.evaluate("""async () => {
        const panel = window.jupyterapp.shell.currentWidget;
        await panel.context.sessionContext.shutdown();
        panel.dispose();
    }""")


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_what_the_site_folds_is_folded(path):
    """Solutions and hidden inputs; a folded cell shows its first line, which would give words of a solution away."""
    inside, unfolded = False, []
    for cell in json.loads((BOOK / path).read_text())["cells"]:
        source, folded, is_code = "".join(cell["source"]), cell["metadata"].get("jupyter", {}), cell["cell_type"] == "code"
        solution = inside and not source.startswith(":::{solution-end}")
        hides = solution or "hide-input" in cell["metadata"].get("tags", [])
        bare = solution and (not folded.get("outputs_hidden") if is_code else source.splitlines()[0])
        if (hides and not folded.get("source_hidden")) or bare:
            unfolded.append(cell["id"])
        inside = (inside or "{solution-start}" in source) and "{solution-end}" not in source
    assert not inside and not unfolded


def test_solution_opens_by_a_click(page):
    """Nothing of it is seen before."""
    open_notebook(page, "explorer.ipynb")
    words = show(page, "solution-words")
    expect(words.locator(".jp-InputPlaceholder")).to_be_visible()
    assert not re.search(r"\w", words.inner_text())
    words.locator(".jp-InputPlaceholder").click()
    expect(page.get_by_role("paragraph").filter(has_text="The budget is the same")).to_be_visible()
    close(page)


@pytest.mark.parametrize("path", TO_RUN)
def test_notebook_runs_from_top_to_bottom(page, path):
    open_notebook(page, path)
    state = run_all(page, minutes=8)
    close(page)
    assert not state["errors"] and not state["waiting"]
    assert not page.refused


def test_explorer_is_alive(page):
    """The widget answers to buttons and keys, shows what a patch repeats, and takes a picture of one's own."""
    open_notebook(page, "explorer.ipynb")
    state = run_all(page, minutes=8)
    assert not state["errors"] and not state["waiting"]
    expect.set_options(timeout=MINUTE)
    cell = show(page, "live")
    answer, reading, stays = cell.get_by_role("status").first, cell.locator(".reading"), cell.locator("canvas").first
    expect(answer).to_contain_text("with 64 of 576 patches")

    stays.scroll_into_view_if_needed()
    box = stays.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 2.5 / 24, box["y"] + box["height"] * 20.5 / 24)
    expect(reading).to_contain_text("row 21, column 3")

    cell.get_by_role("button", name="FastV").click()
    expect(reading).to_contain_text("FastV keeps the 64 patches")
    keep = cell.locator(".widget-slider", has_text="Patches kept").get_by_role("slider")
    keep.focus()
    page.keyboard.press("ArrowRight")
    expect(answer).to_contain_text("with 65 of 576 patches")

    file = io.BytesIO()
    Image.new("RGB", (400, 300), "teal").save(file, "PNG")
    with page.expect_file_chooser() as chooser:
        cell.get_by_role("button", name=re.compile("Your own picture")).click()
    chooser.value.set_files({"name": "teal.png", "mimeType": "image/png", "buffer": file.getvalue()})
    expect(answer).to_contain_text("what it says of other pictures means little")
    close(page)
    assert not page.refused


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path not in [*TO_RUN, "explorer.ipynb"]])
def test_notebook_opens(page, path):
    """Valid, drawn with its title, and with a kernel at hand."""
    state = open_notebook(page, path)
    assert state["cells"] == len(json.loads((BOOK / path).read_text())["cells"])
    expect(show(page, "title").locator("h1")).to_be_visible()
    close(page)
    assert not page.refused
