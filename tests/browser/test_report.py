"""The report in a real browser: closed to the outside, readable at any width, in light, dark and on paper.

Chromium is Debian's package, driven by Playwright; one start for all tests. Screenshots go to
`build/screenshots`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fine_tune_runner.evaluation.gate import decide
from fine_tune_runner.evaluation.report import paths, write_report
from tests.browser.run_folder import write_whole_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it: three score cards' worth of text, marks, findings, curve, history."""
    run, whole = write_whole_run(tmp_path_factory.mktemp("clients"))
    write_report(run, whole, decide(whole, 0.05))
    return paths(run).html


class Seen:
    """A page, and what it asked for and complained about."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, scheme: str = "light") -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(file.as_uri())

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_request_leaves_the_file_and_the_console_is_silent(browser: Any, file: Path, scheme: str) -> None:
    with Seen(browser, file, scheme=scheme) as seen:
        seen.page.wait_for_load_state("networkidle")
        outside = [url for url in seen.requests if url != file.as_uri() and not url.startswith("data:")]
        assert (outside, seen.complaints) == ([], [])
        assert seen.requests, "nothing was seen at all"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_is_cut_off_at_any_width(browser: Any, file: Path, width: int, scheme: str) -> None:
    with Seen(browser, file, width, scheme) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        assert seen.page.evaluate(SPILLED) == []
        assert seen.page.evaluate(SMALLEST_TEXT) >= 12
        SHOTS.mkdir(parents=True, exist_ok=True)
        whole = (width, scheme) in ((400, "dark"), (1600, "light"))
        seen.page.screenshot(path=SHOTS / f"report-{width}-{scheme}.png", full_page=whole)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_every_text_has_the_contrast_of_wcag_aa(browser: Any, file: Path, scheme: str) -> None:
    with Seen(browser, file, scheme="light" if scheme == "print" else scheme) as seen:
        if scheme == "print":
            seen.page.emulate_media(media="print")
        for decision in ("promote", "refuse", "hold"):  # each has its own colours
            seen.page.evaluate(f"document.querySelector('.verdict').className = 'verdict {decision}'")
            found = seen.page.evaluate(CONTRASTS)
            assert len(found) > 200, "hardly any text was looked at"
            assert [one for one in found if one["ratio"] < 4.5] == []


def test_everything_that_reacts_is_reached_by_tab_and_shows_it(browser: Any, file: Path) -> None:
    with Seen(browser, file) as seen:
        wanted = seen.page.evaluate("document.querySelectorAll('a[href], summary, [tabindex=\"0\"]').length")
        reached = []
        for _ in range(wanted):
            seen.page.keyboard.press("Tab")
            reached.append(seen.page.evaluate(FOCUSED))
        assert len({one["place"] for one in reached}) == wanted
        assert [one for one in reached if one["outline"] < 2] == []


def test_enter_opens_and_closes_a_question(browser: Any, file: Path) -> None:
    with Seen(browser, file) as seen:
        first = "document.querySelector('details').open"
        seen.page.focus("summary")
        before = seen.page.evaluate(first)
        seen.page.keyboard.press("Enter")
        assert seen.page.evaluate(first) is not before
        seen.page.keyboard.press("Enter")
        assert seen.page.evaluate(first) is before


def test_paper_shows_what_is_folded_on_the_screen(browser: Any, file: Path) -> None:
    with Seen(browser, file, width=800) as seen:
        seen.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false; })")
        hidden = "document.querySelector('details .inside').checkVisibility({contentVisibilityAuto: true})"
        assert seen.page.evaluate(hidden) is False
        seen.page.emulate_media(media="print")
        assert seen.page.evaluate(ALL_SHOWN) == []
        SHOTS.mkdir(parents=True, exist_ok=True)
        assert seen.page.pdf(path=SHOTS / "report.pdf", format="A4").startswith(b"%PDF-")


@pytest.mark.parametrize("width", [400, 800, 1600])
def test_no_short_word_of_a_table_is_broken_in_two(browser: Any, file: Path, width: int) -> None:
    with Seen(browser, file, width=width) as seen:
        assert seen.page.evaluate(BROKEN_WORDS) == []


def test_no_short_word_of_a_table_is_broken_in_two_on_paper(browser: Any, file: Path) -> None:
    with Seen(browser, file, width=A4) as seen:
        seen.page.emulate_media(media="print")
        seen.page.evaluate(WITHIN_MARGINS)
        assert seen.page.evaluate(BROKEN_WORDS) == []


def test_both_answers_stand_side_by_side_on_paper(browser: Any, file: Path) -> None:
    with Seen(browser, file, width=A4) as seen:
        seen.page.emulate_media(media="print")
        seen.page.evaluate(WITHIN_MARGINS)
        tops = seen.page.evaluate(TOPS_OF_SIDES)
        assert tops
        assert all(left == right for left, right in tops)


def test_a_reader_of_the_screen_hears_the_pictures(browser: Any, file: Path) -> None:
    with Seen(browser, file) as seen:
        names = [image.get_attribute("aria-label") or "" for image in seen.page.query_selector_all("svg")]
        assert seen.page.get_by_role("img", name="Scores").count() == 1
        assert seen.page.get_by_role("img", name="Change in points").count() == 1
        assert any(name.startswith("Loss from") for name in names)
        assert seen.page.evaluate("document.documentElement.lang") == "en"


# Elements whose box, or whose text, ends right of the window, but for those that scroll by themselves.
SPILLED = """
[...document.querySelectorAll('main *')].filter(e => !e.closest('.wide') && !e.closest('svg'))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 1 || e.scrollWidth > e.clientWidth + 1 &&
    e.clientWidth > 0 && getComputedStyle(e).display !== 'inline')
  .map(e => e.tagName + ' ' + e.textContent.slice(0, 40))
"""
A4 = 794  # px; media queries go by the sheet, the text by what its margins leave
WITHIN_MARGINS = "document.body.style.width = '673px'"
# Words of at most 18 letters that take more than one line; hashes and model ids may be cut.
BROKEN_WORDS = """
[...document.querySelectorAll('td, th')].flatMap(cell => {
  const walk = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), found = [];
  for (let node; (node = walk.nextNode());)
    for (const word of node.data.matchAll(/[^\\s-]{1,18}(?=[\\s-]|$)/g)) {
      const range = document.createRange();
      range.setStart(node, word.index); range.setEnd(node, word.index + word[0].length);
      const tops = new Set([...range.getClientRects()].map(r => Math.round(r.top)));
      if (tops.size > 1 && !/[^\\s-]/.test(node.data[word.index - 1] ?? ' ')) found.push(word[0]);
    }
  return found;
})
"""
TOPS_OF_SIDES = """
[...document.querySelectorAll('.inside .beside')].filter(e => e.checkVisibility() && e.children.length === 2)
  .map(e => [...e.children].map(side => Math.round(side.getBoundingClientRect().top)))
"""
SMALLEST_TEXT = """
Math.min(...[...document.querySelectorAll('main *:not(svg *)')].filter(e => e.textContent.trim())
  .map(e => parseFloat(getComputedStyle(e).fontSize)))
"""
# WCAG 2.2, 1.4.3: relative luminances of a text and of what is painted behind it.
CONTRASTS = """
(() => {
  const rgba = text => { const n = text.match(/[\\d.]+/g).map(Number);
    return [...n.slice(0, 3), n[3] ?? 1]; };
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const over = (top, under) => top.slice(0, 3).map((v, i) => v * top[3] + under[i] * (1 - top[3]));
  const behind = e => { const layers = [];
    for (let p = e; p; p = p.parentElement) layers.unshift(rgba(getComputedStyle(p).backgroundColor));
    return layers.reduce((under, top) => over(top, under), [255, 255, 255]); };
  const walk = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT), found = [];
  for (let node; (node = walk.nextNode());) {
    const e = node.parentElement;
    if (!node.textContent.trim() || ['TITLE', 'DESC'].includes(e.tagName.toUpperCase())) continue;
    const style = getComputedStyle(e), paper = behind(e);
    const ink = over(rgba(e.closest('svg') ? style.fill : style.color), paper);
    const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
    found.push({text: node.textContent.trim().slice(0, 30), ratio: (a + 0.05) / (b + 0.05)});
  }
  return found;
})()
"""
FOCUSED = """
(() => { const e = document.activeElement, s = getComputedStyle(e);
  return {place: [...document.querySelectorAll('*')].indexOf(e),
          outline: s.outlineStyle === 'none' ? 0 : parseFloat(s.outlineWidth)}; })()
"""
ALL_SHOWN = """
[...document.querySelectorAll('main section, main details .inside, main table, main figure, main p')]
  .filter(e => !e.checkVisibility({contentVisibilityAuto: true}) || e.getBoundingClientRect().height === 0)
  .map(e => e.tagName + ' ' + e.textContent.slice(0, 40))
"""
