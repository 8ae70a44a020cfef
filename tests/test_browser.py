"""The pages of a run in a real, headless Chromium."""

import json
import queue
import shutil
import threading

import pytest
from test_driver import write_study

import planter
from planter.driver.read import serve_dashboard

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    planter.search(write_study(folder), out=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=["light", "dark"])
def page(browser, request):
    opened = browser.new_page(viewport={"width": 390, "height": 760}, color_scheme=request.param)
    opened.complaints = []
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("console", lambda m: opened.complaints.append(m.text) if m.type == "error" else None)
    yield opened
    opened.close()


def test_the_front_page_draws_every_point_without_the_network(page, run):
    front = json.loads((run / "pareto.json").read_text())
    page.route("http*://**", lambda route: route.abort())
    page.goto(f"file://{run / 'pareto.html'}")
    page.wait_for_selector(".scatterlayer .point")
    assert page.locator(".scatterlayer .point").count() == len(front["points"])
    assert page.title().startswith("small")
    assert page.complaints == []
    # Nothing is cut off on a phone.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_dashboard_opens_on_the_front_of_the_run(page, run):
    addresses = queue.Queue()
    arguments = (run, "127.0.0.1", 0, addresses.put)
    threading.Thread(target=serve_dashboard, args=arguments, daemon=True).start()
    page.set_viewport_size({"width": 1300, "height": 900})
    page.goto(addresses.get(timeout=30))
    page.get_by_text("Pareto Front").first.wait_for(timeout=30_000)
    assert page.get_by_text("accuracy").count() > 0
    assert page.get_by_text("macs").count() > 0


def test_pictures_are_drawn(run, browser, tmp_path):
    pytest.importorskip("kaleido")
    from planter.front import read_front
    from planter.plots import front_figure, write_image

    for ending, magic in ((".png", b"\x89PNG"), (".svg", b"<svg"), (".pdf", b"%PDF")):
        file = tmp_path / f"front{ending}"
        write_image(front_figure([read_front(run)]), file)
        assert file.read_bytes().startswith(magic)
