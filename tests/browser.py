"""Pages of the site in a headless browser: what is cut off, and at which width."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

# Debian's, Ubuntu's and Google's names of the same browser
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_BROWSER = "no headless browser here: apt-get install chromium"

# One start of the browser for all pages and widths: each page is opened in a frame as wide as the window would be.
# A frame may read pages of other files by the flag `--allow-file-access-from-files`
DRIVER = """<!doctype html><meta charset="utf-8"><body><script>
const WAIT = (ms) => new Promise((done) => setTimeout(done, ms));

function look(frame, width) {
  const page = frame.contentDocument, view = frame.contentWindow;
  const main = page.querySelector('[role="main"]') || page.body;
  const edge = main.getBoundingClientRect().right + 1;
  const found = { width: page.documentElement.clientWidth, cut: [], scrolled: [], counts: {}, maths: 0, errors: 0 };
  const scrolls = (node) => ["auto", "scroll"].includes(view.getComputedStyle(node).overflowX);
  // The outermost element around it, within the main column, that scrolls
  const scroller = (node) => {
    let found = null;
    for (; node && node !== main; node = node.parentElement) if (scrolls(node)) found = node;
    return found;
  };
  const name = (node) => node.tagName.toLowerCase() + ": " + (node.innerText || node.src || "").trim().slice(0, 60);
  for (const node of main.querySelectorAll("table, pre, img, dt.sig, mjx-container, h1, h2, h3, p, code")) {
    const kind = node.tagName.toLowerCase();
    found.counts[kind] = (found.counts[kind] || 0) + 1;
    const box = node.getBoundingClientRect(), inline = ["code", "mjx-container"].includes(kind);
    const frame = scroller(kind === "code" ? node.parentElement : node);
    // A frame of its own that is inside of the column and shows all of its content by scrolling
    const end = frame ? frame.getBoundingClientRect().right : Math.max(box.right, box.left + node.scrollWidth);
    if (end > edge) found.cut.push(name(node));
    else if (frame && !inline && frame.scrollWidth > frame.clientWidth + 1) found.scrolled.push(name(node));
    else if (!frame && !inline && node.clientWidth && node.scrollWidth > node.clientWidth + 1) found.cut.push(name(node));
  }
  const root = page.documentElement;
  if (Math.max(root.scrollWidth, page.body.scrollWidth) > root.clientWidth + 1) found.cut.push("the page");
  const body = page.querySelector(".wy-nav-content-wrap");
  if (body && body.scrollWidth > body.clientWidth + 1) found.cut.push("the column");
  found.maths = page.querySelectorAll("mjx-container").length;
  found.errors = page.querySelectorAll("mjx-merror, .math.notranslate:not(:has(mjx-container))").length;
  found.broken = [...page.images].filter((image) => image.complete && !image.naturalWidth).length;
  return found;
}

async function run(pages, widths) {
  const results = {};
  for (const width of widths) for (const page of pages) {
    const frame = document.createElement("iframe");
    frame.style.cssText = `width:${width}px;height:900px;border:0`;
    const loaded = new Promise((done) => (frame.onload = done));
    frame.src = page;
    document.body.append(frame);
    await loaded;
    const math = frame.contentWindow.MathJax;
    if (math && math.startup && math.startup.promise) await math.startup.promise;
    await frame.contentDocument.fonts.ready;
    await WAIT(30);
    results[`${page}@${width}`] = look(frame, width);
    frame.remove();
  }
  const out = document.createElement("pre");
  out.id = "results";
  out.textContent = JSON.stringify(results);
  document.body.append(out);
}
run(PAGES, WIDTHS);
</script>"""


def find_browser() -> str | None:
    """:return: path of a browser that can be driven by its command line, if there is one"""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def look(
    browser: str, site: Path, pages: list[str], widths: list[int], profile: Path
) -> dict[tuple[str, int], dict[str, Any]]:
    """
    :param browser: path of the browser
    :param site: folder of the pages
    :param pages: their paths in it
    :param widths: of the window, in pixels
    :param profile: an empty folder for what the browser writes
    :return: by page and width: what is ``cut`` off, what is ``scrolled`` in a frame of its own, and what there is
    """
    driver = site / "driver.html"
    driver.write_text(DRIVER.replace("run(PAGES, WIDTHS)", f"run({json.dumps(pages)}, {json.dumps(widths)})"))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--allow-file-access-from-files",
    ]
    # Nothing but the files: what a page wants from the network is not there
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--no-first-run"]
    flags += [f"--user-data-dir={profile}", "--virtual-time-budget=600000", "--dump-dom", driver.as_uri()]
    try:
        result = subprocess.run([browser, *flags], capture_output=True, text=True, timeout=120)
    finally:
        driver.unlink()
    found = re.search(r'<pre id="results">(.*?)</pre>', result.stdout, flags=re.DOTALL)
    assert found, f"{browser} measured nothing:\n{result.stderr[-3000:]}"
    by_name = json.loads(html.unescape(found[1]))
    return {(page, width): by_name[f"{page}@{width}"] for page in pages for width in widths}
