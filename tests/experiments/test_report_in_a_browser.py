"""The study's page in a headless browser, and what axe-core says of it. Needs the extra `browser` and Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.planted import report_on, run_of

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    rho = "sam.init_args.rho"
    runs = [run_of("SGD", seed) for seed in range(2)]
    runs += [run_of(name, seed, {rho: r}) for name in ("SAM", "<i>mine") for r in (0.1, 0.2) for seed in range(2)]
    report_on(folder, runs)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as started:
        yield started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light"), (1920, "dark")])
def test_it_is_drawn_and_can_be_read(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.context.set_offline(True)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(page_file.as_uri())
    figures = page.locator("figure:not([hidden])")
    assert figures.count() > 8
    for index in range(figures.count()):
        figures.nth(index).scroll_into_view_if_needed()
        figures.nth(index).locator("svg.marks").wait_for()
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"][:100] for node in one["nodes"]]) for one in found] == []
    page.close()


def test_the_legend_switches_and_a_point_tells_its_values(browser: Any, page_file: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(page_file.as_uri())
    chart = page.locator("figure", has_text="Norm of the gradient").first
    chart.scroll_into_view_if_needed()
    drawn = chart.locator("g.mark-line path")
    drawn.first.wait_for()
    assert drawn.count() == 3
    assert chart.get_by_text("<i>mine", exact=True).count() == 1  # beside its line, as text
    page.get_by_role("checkbox", name="SGD").uncheck()
    sync_api.expect(drawn).to_have_count(2)
    page.get_by_label("Setting").select_option("rho 0.1")
    sync_api.expect(drawn).to_have_count(2)
    box = chart.locator("svg.marks").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "epoch" in tip.inner_text()
    assert "lowest seed" in tip.inner_text() or "norm" in tip.inner_text()
    shares = page.locator("figure:not([hidden])", has_text="Shares of the gradient's elements").first
    shares.scroll_into_view_if_needed()
    shares.locator("g.mark-area path").first.wait_for()
    areas = [middle(each) for each in shares.locator("g.mark-area path").all()]
    names = [middle(each) for each in shares.locator("g.mark-text text", has_text="■").all()]
    assert sorted(names) == pytest.approx(sorted(areas), abs=4)
    assert len(names) == 5
    differences = page.locator("figure", has_text="Difference of validation accuracy to SAM").first
    differences.scroll_into_view_if_needed()
    differences.locator("g.mark-symbol path").first.wait_for()
    points = differences.locator("g.mark-symbol path").all()
    early = {round(middle(point)): point.get_attribute("fill") == "#ffffff" for point in points}
    assert [early[height] for height in sorted(early)] == [True, False] * (len(early) // 2)
    page.close()


def middle(mark: Any) -> float:
    """How far down the page it is."""
    box = mark.bounding_box()
    return float(box["y"] + box["height"] / 2)
