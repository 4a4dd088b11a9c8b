"""The page of a report in a real browser: readable in light and dark, silent, without the network, and it runs nothing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageStat

from pipeline.report.page import report
from pipeline.run.backfill import backfill
from tests.integration.conftest import Stopping, Stops, make_job

EVIL = "<script>document.title = 'run'</script><img src=http://127.0.0.1:9/x onerror=\"document.title = 'run'\">"
# The contrast of each text with what is behind it, as WCAG 2 defines it, and the lowest of all.
CONTRAST = """
(() => {
  const parts = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = colour => {
    const linear = colour.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (!colour.startsWith('rgba(0, 0, 0, 0')) return parts(colour);
    }
  };
  let lowest = [99, ''];
  for (const element of document.body.querySelectorAll(':not(svg title)')) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
    const style = getComputedStyle(element);
    let opacity = 1;
    for (let each = element; each; each = each.parentElement) opacity *= getComputedStyle(each).opacity;
    const back = behind(element);
    const ink = parts(element.closest('svg') ? style.fill : style.color).map((v, i) => v * opacity + back[i] * (1 - opacity));
    const [a, b] = [light(ink), light(back)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < lowest[0]) lowest = [contrast, element.tagName + ' ' + element.textContent.slice(0, 40)];
  }
  return lowest;
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory, tiny_model) -> Path:
    """The page of a run that was stopped and resumed, over a hostile corpus."""
    folder = tmp_path_factory.mktemp("page")
    rows: list[dict[str, str | None]] = [
        {"id": f"r{number}", "text": "word " * (1 + number % 37), "lang": ["de", "en", EVIL][number % 3], "title": "t"}
        for number in range(200)
    ]
    rows[7] |= {"id": EVIL, "text": None, "title": None}
    (folder / "corpus").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "corpus" / "<script>.parquet", row_group_size=10)
    job = make_job(folder / "corpus", folder / "table", tiny_model, table__partition_by=["lang"], run__unit_rows=10)
    with pytest.raises(Stops):
        backfill(job, Stopping(after=5))
    backfill(job)
    return Path(report(folder / "table", folder / "page.html"))


def test_the_page_is_silent_asks_for_nothing_and_runs_nothing(browser, page):
    browser.open(page.as_uri())
    assert browser.run("document.title") == "Backfill of table · Vectide"
    assert browser.run("document.scripts.length + document.images.length") == 0
    requests = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
    assert requests == [page.as_uri()]
    assert browser.seen("Runtime.consoleAPICalled") == []
    assert browser.seen("Runtime.exceptionThrown") == []
    assert browser.seen("Log.entryAdded") == []
    shown = browser.run("document.body.innerText")
    assert shown.count(EVIL) == 2  # an id, and a partition
    assert "<script>.parquet at 7" in shown
    assert browser.run("document.querySelectorAll('nav a').length") == browser.run(
        "document.querySelectorAll('section').length"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_every_text_can_be_read_and_nothing_runs_out_of_the_window(browser, page, tmp_path, scheme, width):
    browser.open(page.as_uri())
    browser.screenshot(tmp_path / "page.png", width=width, scheme=scheme)
    contrast, text = browser.run(CONTRAST)
    assert contrast >= 4.5, text
    assert browser.run("document.documentElement.scrollWidth") <= width
    brightness = ImageStat.Stat(Image.open(tmp_path / "page.png").convert("L")).mean[0]
    assert (brightness > 150) == (scheme == "light")


def test_charts_are_drawn(browser, page):
    browser.open(page.as_uri())
    browser.look(width=1200, scheme="light")
    heights = browser.run(
        "[...document.querySelectorAll('#tokens rect')].map(bar => bar.getBoundingClientRect().height)"
    )
    assert len(heights) > 5
    assert max(heights) > 100
    assert browser.run("document.querySelectorAll('#throughput .break').length") == 1
