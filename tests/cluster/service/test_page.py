"""The search page in a real Chromium: a click and an upload find neighbors, a text file gives one clear error line."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import service as page_folder
from cluster.service.app import running_service
from cluster.service.http_api import PAGE_FILES
from cluster.service_config import ServeConfig
from tests.service_fixture import BITS, Corpus, free_port, make_corpus, make_index

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
TOKEN = "the-secret-of-the-page"
in_browser = [pytest.mark.ray, pytest.mark.browser, pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def url(corpus: Corpus, ray_local: None) -> Iterator[str]:
    token_file = corpus.folder / "tokens"
    token_file.write_text(f"{TOKEN}\n")
    config = ServeConfig(index=make_index(corpus, 2), port=free_port(), token_file=str(token_file))
    with running_service(config) as address:
        yield address


@pytest.fixture(scope="module")
def browser(url: str) -> Iterator[Any]:
    """Started after the service and closed before it: Playwright keeps an event loop in this thread, Serve minds."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """The page after its token was given, with 12 random images; nothing may break its own security policy."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(30_000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if "Security" in message.text else None)
    page.goto(url)
    page.get_by_label("access token").fill(TOKEN)
    page.get_by_role("button", name="Continue").click()
    until(page, "document.querySelectorAll('#random button').length === 12")
    yield page
    page.close()
    assert complaints == []


def until(page: Any, expression: str) -> None:
    """Waits until a JavaScript expression is true; Playwright's own way would need eval, which the page forbids."""
    for _ in range(600):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never came true: {expression}")


def shown(page: Any) -> tuple[list[int], list[int]]:
    """Ids and distances of the neighbors on the page, once all their images are there."""
    until(page, "!!document.querySelector('#neighbors button') && !document.querySelector('[aria-busy=true]')")
    until(page, "[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    ids = page.eval_on_selector_all("#neighbors button", "all => all.map((one) => Number(one.dataset.id))")
    texts = page.locator("#neighbors .distance").all_inner_texts()
    return ids, [int(text.removeprefix("distance ")) for text in texts]


def expected(corpus: Corpus, row: int, k: int) -> tuple[list[int], list[int]]:
    nearest = corpus.nearest(corpus.codes[[row]], k)
    return nearest.ids[0].tolist(), nearest.distances[0].tolist()


class TestInBrowser:
    pytestmark = in_browser

    def test_header_tells_what_is_served(self, page: Any, corpus: Corpus) -> None:
        facts = page.locator("#facts").inner_text()
        for fact in ("90 images", f"{BITS} bits", "2 shards", "v000001", corpus.encoder.digest[:12]):
            assert fact in facts

    def test_click_on_a_random_image_and_on_a_neighbor(self, page: Any, corpus: Corpus) -> None:
        chosen = page.locator("#random button").nth(4)
        row = corpus.ids.index(int(chosen.get_attribute("data-id")))
        chosen.click()
        ids, distances = shown(page)
        assert (ids, distances) == expected(corpus, row, 24)
        assert "24 neighbors" in page.locator("#summary").inner_text()
        assert "2 of 2 shards answered" in page.locator("#timing").inner_text()
        assert page.locator("#neighbors .key").nth(0).inner_text() == corpus.samples[row].key
        page.locator("#neighbors button").nth(1).click()
        until(page, f"document.querySelector('#neighbors button').dataset.id === '{ids[1]}'")
        assert shown(page) == expected(corpus, corpus.ids.index(ids[1]), 24)

    def test_upload_and_radius(self, page: Any, corpus: Corpus) -> None:
        image = {"name": "mine.png", "mimeType": "image/png", "buffer": corpus.samples[3].image}
        page.set_input_files("#file", files=[image])
        assert shown(page) == expected(corpus, 3, 24)
        assert page.locator("#asked figcaption").inner_text() == "mine.png"
        page.get_by_label("within radius").check()
        page.get_by_label("How many bits").fill("9")
        page.get_by_label("How many bits").press("Enter")
        within = corpus.within(corpus.codes[[3]], 9)[0]
        until(page, f"document.querySelectorAll('#neighbors button').length === {len(within)}")
        assert list(zip(*shown(page), strict=True)) == within

    def test_why_shows_the_bits_that_differ(self, page: Any, corpus: Corpus) -> None:
        page.set_input_files(
            "#file", files=[{"name": "a.png", "mimeType": "image/png", "buffer": corpus.samples[6].image}]
        )
        ids, _ = shown(page)
        place = len(ids) - 1
        page.locator("#neighbors details").nth(place).locator("summary").click()
        found = corpus.codes[corpus.ids.index(ids[place])]
        bits = [np.unpackbits(code, bitorder="little").tolist() for code in (corpus.codes[6], found)]
        differing = [bit for bit in range(BITS) if bits[0][bit] != bits[1][bit]]
        text = page.locator("#neighbors details").nth(place).locator("p").inner_text()
        assert text == f"{len(differing)} of {BITS} bits differ: {', '.join(map(str, differing))}"
        cells = page.locator("#neighbors details").nth(place).locator(".bits span")
        classes = cells.evaluate_all("all => all.map((one) => one.className)")
        assert [("one" in name, "differs" in name) for name in classes] == [
            (bool(bits[1][bit]), bit in differing) for bit in range(BITS)
        ]
        page.locator("#neighbors details").nth(0).locator("summary").click()
        assert page.locator("#neighbors details").nth(0).locator("p").inner_text() == f"All {BITS} bits agree"

    def test_text_file_gives_one_error_line(self, page: Any) -> None:
        page.set_input_files("#file", files=[{"name": "a.txt", "mimeType": "text/plain", "buffer": b"hello world"}])
        alert = page.get_by_role("alert")
        alert.wait_for()
        assert alert.inner_text() == "image: not a JPEG, PNG, WebP or GIF image (first bytes b'hello wo')"
        assert page.locator("#found").is_hidden()

    @pytest.mark.parametrize("width", [320, 390, 1280])
    def test_nothing_overflows_sideways(self, page: Any, width: int) -> None:
        page.set_viewport_size({"width": width, "height": 800})
        page.locator("#random button").nth(0).click()
        shown(page)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def test_the_interface_is_described(self, page: Any, url: str) -> None:
        page.get_by_role("link", name="HTTP interface").click()
        page.get_by_role("heading", name="POST /search/image").wait_for()
        page.wait_for_load_state("load")  # the style sheet may come after the heading
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_page_has_no_inline_code_and_no_outside_assets() -> None:
    folder = Path(page_folder.__file__).parent
    html = (folder / "page.html").read_text()
    assert not re.search(r"<style|\bstyle=|\bon[a-z]+=|<script(?![^>]* src=)", html)
    for name, _ in PAGE_FILES.values():
        assert not re.search(r"https?:|url\(|@import|\ssrc=\"//", (folder / name).read_text())
    script = (folder / "page.js").read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in script
