"""The HTML page in headless Chromium: it draws, answers to keys, sorts, and complains of nothing.

``GEMQUANT_CHROMIUM`` names the browser; otherwise it is looked for in the path, then where
``playwright install chromium`` puts it. ``GEMQUANT_SCREENSHOTS`` names a folder for pictures.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gemquant.core.artifact.evaluation import LayerErrors, LevelEvaluation
from gemquant.measure.report.document import Report, assemble
from gemquant.measure.report.html import to_html
from tests.helpers.tiny_evaluation import artifact, document
from tests.helpers.tiny_report import baseline, check, given, verdict

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

HOSTILE = "<script>document.title = 'owned'</script>\"'&\u2028"
RESPONSIVE_SECONDS = 1.0
"""What a click may take at most; docs/reports.md has what one took."""


def report(count: int, *, updates: int = 3) -> Report:
    """Artifacts that trade size for divergence, one with a hostile name, layers that get worse."""
    artifacts = []
    for number in range(count):
        loss = 0.5 / (1 + number % 20) * (1 + number % 7)
        kl = {name: [loss, loss * 1.1] for name in ("english", "code", "chat")}
        name = HOSTILE if number == 1 else f"gemma-{number}"
        made = artifact(name, kl=kl, size_bytes=100_000_000 + 7_000_000 * (number % 20), layers=26)
        own = tuple(
            LayerErrors(slice=each, relative=(0.1,) * 25 + (0.4,), cosine=(0.9,) * 26)
            for each in kl
        )
        reference = made.levels[0].model_copy(update={"layers_own": own})
        native = LevelEvaluation(level="native", runtime="mlx-lm", not_run="mlx is not installed")
        if number % 2:
            native = reference.model_copy(update={"level": "native", "layers_own": ()})
        artifacts.append(
            made.model_copy(
                update={
                    "digest": f"sha256:{number:064x}",
                    "levels": (reference, native),
                    "container": ("gguf", "mlx", "compressed-tensors")[number % 3],
                }
            )
        )
    whole = document(*artifacts)
    first = whole.model_copy(update={"artifacts": whole.artifacts[:2]})
    return assemble(
        [given("evaluation", whole)],
        verdict=given("verdict", verdict(first, check("regression"), check(slice="code"))),
        baseline=given("baseline", baseline(first, updates=updates)),
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = os.environ.get("GEMQUANT_CHROMIUM") or shutil.which("chromium")
    with playwright.sync_playwright() as started:
        path = found or started.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no Chromium: install Debian's chromium, or `playwright install chromium`")
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = started.chromium.launch(executable_path=path, args=sandbox)
        yield opened
        opened.close()


class Opened:
    """A page with everything that it complained of."""

    def __init__(self, browser: Browser, file: Path, **options: Any) -> None:
        self.complaints: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": 1200, "height": 900}, **options)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._requested(request.url))
        started = time.perf_counter()
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached")
        self.seconds = time.perf_counter() - started

    def _requested(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.complaints.append(f"requested {url}")

    def timed(self, action: str) -> float:
        """Seconds that a script takes until the next frame is drawn."""
        milliseconds = self.page.evaluate(
            f"""() => new Promise((done) => {{
                const start = performance.now();
                {action};
                requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
            }})"""
        )
        return float(milliseconds) / 1000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = {"small": report(12), "large": report(200), "long": report(3, updates=10_000)}
    for name, each in made.items():
        (folder / f"{name}.html").write_text(to_html(each), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture
def small(browser: Browser, files: dict[str, Path]) -> Iterator[Opened]:
    opened = Opened(browser, files["small"])
    yield opened
    opened.page.close()
    assert opened.complaints == []


def test_a_hostile_name_is_text(small: Opened) -> None:
    assert small.page.title() == "What quantization cost google/gemma-3-270m"
    assert small.page.get_by_text("<script>document.title").count() > 0


def test_a_script_that_got_into_the_page_is_not_run(
    browser: Browser, files: dict[str, Path], tmp_path: Path
) -> None:
    text = files["small"].read_text(encoding="utf-8")
    attacked = tmp_path / "attacked.html"
    script = "<main onclick='0'><script>document.title = 'owned'</script>"
    attacked.write_text(text.replace("<main", script + "<main", 1), encoding="utf-8")
    opened = Opened(browser, attacked)
    assert opened.page.title() == "What quantization cost google/gemma-3-270m"
    assert any("Content Security Policy" in each for each in opened.complaints)
    opened.page.close()


def test_every_artifact_is_a_point(small: Opened) -> None:
    assert small.page.locator('[data-part="scatter"] [role="button"]').count() == 12


def test_a_point_tells_about_itself_on_hover(small: Opened) -> None:
    small.page.locator('[data-part="scatter"] [role="button"]').first.hover()
    assert "nats per token" in small.page.locator("#tooltip").inner_text()


def test_escape_hides_what_a_point_told(small: Opened) -> None:
    small.page.locator('[data-part="scatter"] [role="button"]').first.hover()
    small.page.keyboard.press("Escape")
    assert small.page.locator("#tooltip").is_hidden()


def test_a_plot_is_one_tab_stop_and_arrows_move_inside_it(small: Opened) -> None:
    points = small.page.locator('[data-part="scatter"] [role="button"]')
    assert points.locator("xpath=self::*[@tabindex='0']").count() == 1
    points.first.focus()
    small.page.keyboard.press("ArrowRight")
    focused = small.page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == points.nth(1).get_attribute("aria-label")


def test_enter_on_a_point_chooses_its_artifact(small: Opened) -> None:
    points = small.page.locator('[data-part="scatter"] [role="button"]')
    points.last.focus()
    label = (points.last.get_attribute("aria-label") or "").split(":")[0]
    small.page.keyboard.press("Enter")
    chosen = small.page.locator('#one-0 [data-part="artifact"]').evaluate(
        "(each) => each.selectedOptions[0].textContent"
    )
    assert chosen == label
    assert small.page.locator('[data-part="one-title"]').inner_text() == f"{label}, level reference"


def test_arrows_move_through_the_heatmap_by_row(small: Opened) -> None:
    cells = small.page.locator('[data-part="own"] rect[role="img"]')
    assert cells.count() == 3 * 26
    cells.first.focus()
    small.page.keyboard.press("ArrowDown")
    label = small.page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("code, layer 0: relative error 0.1")


def test_a_level_that_was_not_run_says_so_in_place_of_plots(small: Opened) -> None:
    small.page.locator('[data-part="level"]').first.select_option("native")
    small.page.locator('[data-part="artifact"]').first.select_option("0")
    said = small.page.locator('[data-part="not-run"]').inner_text()
    assert said == "Level native was not measured: mlx is not installed."


def test_two_artifacts_stand_beside_each_other(small: Opened) -> None:
    small.page.locator('[data-part="other"]').select_option("2")
    panel = small.page.locator('[data-part="bars"] svg').first
    panel.locator(".bar").nth(5).wait_for()
    assert panel.locator(".bar").count() == 2 * 3


def test_a_column_sorts_both_ways(small: Opened) -> None:
    table = small.page.locator("table", has=small.page.get_by_text("The artifacts", exact=True))
    button = table.get_by_role("button", name="size")
    sizes = table.locator("tbody tr td:nth-child(5)")
    button.click()
    assert sizes.first.inner_text() == "100 MB"
    assert table.locator("th[aria-sort=ascending]").inner_text() == "size"
    button.press("Enter")
    assert sizes.first.inner_text() == "177 MB"


def test_a_long_table_turns_its_pages_and_is_searched(
    browser: Browser, files: dict[str, Path]
) -> None:
    opened = Opened(browser, files["long"])
    part = opened.page.locator("#history .table").last
    assert part.locator("tbody tr").count() == 20
    assert part.get_by_role("status").inner_text() == "1 to 20 of 20,000"
    part.get_by_role("button", name="Next").click()
    assert part.get_by_role("status").inner_text() == "21 to 40 of 20,000"
    part.get_by_role("searchbox").fill("update 9876")
    assert part.get_by_role("status").inner_text() == "1 to 2 of 2"
    assert opened.complaints == []
    opened.page.close()


def test_a_long_history_is_thinned_and_keeps_its_ends(
    browser: Browser, files: dict[str, Path]
) -> None:
    opened = Opened(browser, files["long"])
    dots = opened.page.locator('#history .plot [role="img"]')
    assert 600 < dots.count() < 1300
    assert "update 1," in (dots.first.get_attribute("aria-label") or "")
    assert "update 10000," in (dots.last.get_attribute("aria-label") or "")
    opened.page.close()


def test_two_hundred_artifacts_answer_at_once(browser: Browser, files: dict[str, Path]) -> None:
    opened = Opened(browser, files["large"])
    actions = {
        "sort": "document.querySelector('#figures-0 .table:nth-of-type(2) thead button').click()",
        "choose": "document.querySelectorAll('[data-part=scatter] [role=button]')[150]"
        ".dispatchEvent(new MouseEvent('click'))",
    }
    taken = {name: opened.timed(action) for name, action in actions.items()}
    assert opened.complaints == []
    assert max(taken.values()) < RESPONSIVE_SECONDS, taken
    opened.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(browser: Browser, files: dict[str, Path], scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed"
    )
    opened = Opened(browser, files["small"], color_scheme=scheme, bypass_csp=True)
    for each in opened.page.locator("details > summary").all():
        each.click()
    results = axe.Axe().run(opened.page)
    found = [
        (each["id"], each["nodes"][0]["html"][:200]) for each in results.response["violations"]
    ]
    opened.page.close()
    assert found == []


def test_tables_open_for_the_printer_and_controls_go(small: Opened) -> None:
    small.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    small.page.emulate_media(media="print")
    assert small.page.locator("details:not([open])").count() == 0
    assert small.page.locator("nav").is_hidden()


def test_without_scripts_the_verdict_and_figures_stand(
    browser: Browser, files: dict[str, Path]
) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(files["small"].as_uri())
    assert page.get_by_text("Regression", exact=True).is_visible()
    assert page.get_by_text("What was lost at level reference").is_visible()
    assert page.locator('[data-part="scatter"]').is_hidden()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_picture_is_taken(browser: Browser, files: dict[str, Path], scheme: str) -> None:
    folder = os.environ.get("GEMQUANT_SCREENSHOTS")
    if not folder:
        pytest.skip("GEMQUANT_SCREENSHOTS names no folder")
    opened = Opened(browser, files["small"], color_scheme=scheme)
    opened.page.wait_for_timeout(300)
    picture = Path(folder) / f"report-{scheme}.png"
    opened.page.screenshot(path=picture, full_page=True)
    opened.page.close()
    assert picture.stat().st_size > 50_000


def test_no_column_is_cut_off_on_a_laptop(browser: Browser, tmp_path: Path) -> None:
    name = "gemma-3-270m-it-int8-calibrated"
    of = document(artifact(name, kl={"english": [0.0251, 0.0312], "multilingual": [0.1, 0.12]}))
    passed = verdict(of, check(slice="multilingual"), check())
    file = tmp_path / "passed.html"
    file.write_text(to_html(assemble([given("evaluation", of)], verdict=given("verdict", passed))))
    opened = Opened(browser, file)
    opened.page.set_viewport_size({"width": 1280, "height": 900})
    opened.page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    cut = opened.page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter((each) => "
        "each.scrollWidth > each.clientWidth).map((each) => each.getAttribute('aria-label'))"
    )
    assert cut == []
