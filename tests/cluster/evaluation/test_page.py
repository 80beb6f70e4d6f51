"""The report in a real Chromium, on a phone and on a desktop: nothing overflows, every image and chart is there."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cluster.evaluation.report import report_html
from cluster.evaluation.results import QueryClass
from tests.cluster.evaluation.test_report import compared_evaluation, example, origin

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
NUM_CLASSES = 30
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two encoders with long names, many classes, notes without a space, and images."""
    folder = tmp_path_factory.mktemp("report")
    sink = io.BytesIO()
    Image.new("RGB", (40, 20), (200, 30, 30)).save(sink, "png")
    (folder / "a.tar").write_bytes(sink.getvalue())
    found = compared_evaluation(
        "A name of forty characters, as it may be", ("Theirs, which is as long as names can be",)
    )
    generator = np.random.default_rng(0)
    series = [
        one.model_copy(
            update={
                "map_by_class": tuple(generator.random(NUM_CLASSES)),
                "precision_by_class": tuple(generator.random(NUM_CLASSES)),
            }
        )
        for one in found.series
    ]
    named = [QueryClass(label=one, name=f"a class of birds, {one}", queries=12) for one in range(NUM_CLASSES)]
    notes = ("n" * 200, "An ordinary note.")
    found = found.model_copy(update={"series": tuple(series), "classes": tuple(named), "notes": notes})
    size = len(sink.getvalue())
    rows = [
        example(str(folder / "a.tar"), key, size, is_best=is_best) for key, is_best in (("k" * 150, True), ("b", False))
    ]
    (folder / "report.html").write_text(report_html(found, rows, origin(found)))
    return folder / "report.html"


@pytest.mark.parametrize(("width", "columns"), [(320, 1), (390, 1), (1280, 2)])
def test_report_fits_and_is_complete(browser: Any, report: Path, width: int, columns: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844})
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.images.length") == 6
    charts = page.eval_on_selector_all("svg", "all => all.map((one) => one.getBoundingClientRect().toJSON())")
    assert len(charts) == 11
    for box in charts:
        assert box["width"] > 200
        assert box["height"] > 100
        assert box["left"] >= 0
        assert box["right"] <= width
    tops = [round(box["left"]) for box in charts[1:5]]
    assert len(set(tops)) == columns
    small = "all => all.map((one) => one.getBoundingClientRect().height).filter((height) => height && height < 5)"
    assert page.eval_on_selector_all("svg text", small) == [], "texts of charts can be read"
    outside = [url for url in requests if not url.startswith(("file:", "data:"))]
    assert outside == []
    page.close()
