"""The study's page in a headless browser, and what axe-core says of it. Needs the extra `browser` and Chromium."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.planted import EPOCHS, report_on, run_of
from support.speed import in_time, slowness

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


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page of some width. Its waits are so long that only a hang reaches their end."""
    opened = []
    milliseconds = 60_000 * slowness()
    sync_api.expect.set_options(timeout=milliseconds)

    def made(width: int, **options: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        opened.append(page)
        page.set_default_timeout(milliseconds)
        return page

    yield made
    for page in opened:
        page.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light"), (1920, "dark")])
def test_it_is_drawn_and_can_be_read(open_page: Callable[..., Any], page_file: Path, width: int, scheme: str) -> None:
    page = open_page(width, color_scheme=scheme)
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


def test_the_legend_switches_and_a_point_tells_its_values(open_page: Callable[..., Any], page_file: Path) -> None:
    page = open_page(1280)
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
    tip = page.locator("#vg-tooltip-element.visible")

    def points(seconds: float) -> bool:
        """Whether the tip shows. Asked again, since a chart that is being redrawn misses the pointer."""
        box = chart.locator("svg.marks").bounding_box()
        page.mouse.move(0, 0)
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(100)
        return tip.is_visible()

    assert in_time(points, 30)
    assert "epoch" in tip.inner_text()
    assert "lowest seed" in tip.inner_text() or "norm" in tip.inner_text()
    page.get_by_role("button", name="none", exact=True).first.click()
    sync_api.expect(drawn).to_have_count(0)
    page.get_by_role("button", name="all", exact=True).first.click()
    sync_api.expect(drawn).to_have_count(3)


def drawn_in(page: Any, text: str, selector: str) -> Any:
    """What the first figure with this title or caption has drawn."""
    figure = page.locator("figure", has_text=text).first
    figure.scroll_into_view_if_needed()
    drawn = figure.locator(selector)
    drawn.first.wait_for()
    return drawn


def marks(page: Any, title: str, selector: str) -> list[tuple[float, str]]:
    """Of the first figure with this title: how far down each mark's middle is, and its color."""
    measured = """all => all.map(one => {
        const box = one.getBoundingClientRect();
        return [box.y + box.height / 2, one.getAttribute("fill")];
    })"""
    return [(middle, fill) for middle, fill in drawn_in(page, title, selector).evaluate_all(measured)]


def test_what_is_drawn_stands_where_it_belongs(open_page: Callable[..., Any], page_file: Path) -> None:
    """Names beside their areas, and the early phase above the late one."""
    page = open_page(1280)
    page.goto(page_file.as_uri())
    differences = sorted(marks(page, "Difference of validation accuracy to SAM", "g.mark-symbol path"))
    assert [fill == "#ffffff" for _, fill in differences] == [True, False] * 2  # of SGD, and of the other
    areas, names = (
        marks(page, "Shares of the gradient's elements", f"g.{mark}") for mark in ("mark-area path", "mark-text text")
    )
    squares = sorted(middle for middle, fill in names if fill in {fill for _, fill in areas})
    assert squares == pytest.approx(sorted(middle for middle, _ in areas), abs=4)
    assert len(squares) == 5


def test_the_last_point_of_a_path_is_large(open_page: Callable[..., Any], page_file: Path) -> None:
    page = open_page(1280)
    page.goto(page_file.as_uri())
    drawn = drawn_in(page, "the last one large", 'g.mark-symbol path[opacity="1"]')
    paths: dict[str, list[float]] = {}
    for color, width in drawn.evaluate_all("all => all.map(one => [one.getAttribute('fill'), one.getBBox().width])"):
        paths.setdefault(color, []).append(width)
    assert len(paths) == 3
    for *others, last in paths.values():
        assert others == pytest.approx([others[0]] * (EPOCHS - 1))
        assert last == pytest.approx(2 * others[0], rel=0.05)
