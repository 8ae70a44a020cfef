"""The pages of a run in a real, headless Chromium."""

import json
import queue
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from test_driver import SPACE, write_study

import planter
from planter.driver.dashboard.serve import serve_dashboard
from planter.driver.run_folder.read import read_points
from planter.front.history import Step
from planter.report import Facts, Importances, Report
from planter.report import page as report_page

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
    opened.set_default_timeout(180_000)  # the pages hold all of plotly.js
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


@pytest.mark.parametrize("name", ["pareto.html", "planting.html"])
def test_the_figure_of_a_page_fills_the_window(page, run, name):
    page.set_viewport_size({"width": 1300, "height": 1000})
    page.goto(f"file://{run / name}")
    page.wait_for_selector(".main-svg")
    assert page.locator(".svg-container").bounding_box()["height"] > 850


def test_the_front_page_shows_a_point_under_the_pointer(page, run):
    page.goto(f"file://{run / 'pareto.html'}")
    page.wait_for_selector(".scatterlayer .point")
    page.locator(".scatterlayer .point").last.hover(force=True)
    page.wait_for_selector(".hovertext")
    assert "convnet conv1=" in page.locator(".hovertext").text_content()


def test_the_report_is_whole_on_a_phone_and_without_the_network(page, run):
    page.route("http*://**", lambda route: route.abort())
    page.goto(f"file://{run / 'report.html'}")
    page.wait_for_selector("#front .scatterlayer .point")
    front = json.loads((run / "pareto.json").read_text())
    assert page.locator("#front .scatterlayer .point").count() == len(front["points"])
    for section in ("course", "planting"):
        assert page.locator(f"#{section} .main-svg").count() > 0
    assert page.complaints == []
    # Tables scroll within themselves; the page does not.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    # Text stands out from the page it is on.
    shades = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        ".map(color => color.match(/[0-9]+/g).slice(0, 3).reduce((a, b) => a + +b, 0))"
    )
    assert abs(shades[0] - shades[1]) > 450


def test_the_report_is_light_on_paper_and_its_figures_fit(page, run):
    page.set_viewport_size({"width": 1300, "height": 900})
    page.goto(f"file://{run / 'report.html'}")
    page.wait_for_selector("#front .scatterlayer .point")
    page.emulate_media(media="print")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(255, 255, 255)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_timeout(500)
    widths = page.evaluate(
        "[...document.querySelectorAll('.main-svg')].map(svg => svg.getBoundingClientRect().width)"
    )
    assert widths
    assert max(widths) <= 680
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.complaints == []


# What stands before which ground: each text, and each mark that a figure has drawn.
CONTRASTS = """() => {
  const channel = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) =>
    0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const parts = text => {
    const found = (text.match(/[0-9.]+/g) ?? []).map(Number);
    return found.length < 3 ? null : [...found.slice(0, 3), found[3] ?? 1];
  };
  const over = (color, ground) => ground.map((g, i) => color[3] * color[i] + (1 - color[3]) * g);
  const ground = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const color = parts(getComputedStyle(at).backgroundColor);
      if (color && color[3] > 0) layers.push(color);
      if (color && color[3] === 1) break;
    }
    return layers.reverse().reduce((below, color) => over(color, below), [255, 255, 255]);
  };
  const ratio = (one, other) => {
    const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  const seen = element => element.checkVisibility() && element.getBoundingClientRect().width > 0;
  const texts = [], marks = [];
  for (const element of document.querySelectorAll("body *:not(script):not(style)")) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || !seen(element) || element.closest(".hoverlayer, .modebar, noscript")) continue;
    const style = getComputedStyle(element);
    const color = parts(element.closest("svg") ? style.fill : style.color);
    const below = ground(element.closest(".js-plotly-plot") ?? element);
    texts.push([ratio(over(color, below), below), element.textContent.trim().slice(0, 40)]);
  }
  const drawn = ".scatterlayer .point, .scatterlayer .js-line, .barlayer .point path, "
    + ".legendsymbols path:not([d='M0,0'])";
  for (const element of document.querySelectorAll(drawn)) {
    const style = getComputedStyle(element), below = ground(element.closest(".js-plotly-plot"));
    if (!seen(element)) continue;
    let faint = 1;
    for (let at = element; at && !at.matches?.(".js-plotly-plot"); at = at.parentElement)
      faint *= Number(getComputedStyle(at).opacity);
    const found = [[style.fill, style.fillOpacity], [style.stroke, style.strokeOpacity]]
      .filter(([paint]) => paint !== "none").map(([paint, share]) => {
        const color = parts(paint);
        return color && [...color.slice(0, 3), color[3] * share * faint];
      }).filter(color => color && color[3] > 0);
    if (found.length) marks.push([Math.max(...found.map(c => ratio(over(c, below), below))),
      element.getAttribute("class") ?? ""]);
  }
  return {texts, marks};
}"""


@pytest.mark.parametrize("name", ["report.html", "pareto.html", "planting.html"])
def test_every_text_and_mark_stands_out(page, run, name):
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"file://{run / name}")
    page.wait_for_selector(".scatterlayer .point")
    page.wait_for_function(DRAWN)
    found = page.evaluate(CONTRASTS)
    assert len(found["texts"]) > 10
    assert len(found["marks"]) > 5
    assert [text for text in found["texts"] if text[0] < 4.5] == []
    assert [mark for mark in found["marks"] if mark[0] < 3] == []
    assert page.complaints == []


DRAWN = (
    "document.querySelectorAll('div.figure').length > 0 && "
    "[...document.querySelectorAll('div.figure')].every(f => f.querySelector('.main-svg'))"
)


def test_the_measure_of_contrast_finds_what_is_too_faint(page, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(
        "<!doctype html><meta name=color-scheme content='only light'>"
        "<body style='background:#fff'><p style='color:#777777'>faint</p>"
        "<p style='color:#767676'>clear</p>"
    )
    page.goto(f"file://{file}")
    (faint, clear) = page.evaluate(CONTRASTS)["texts"]
    assert faint[0] == pytest.approx(4.48, abs=0.01)
    assert clear[0] == pytest.approx(4.54, abs=0.01)


def test_the_front_table_sorts_by_pointer_and_by_keys(page, run):
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"file://{run / 'report.html'}")
    table = page.locator("table.sortable")
    head = table.locator("th", has_text="macs")
    column = page.evaluate("th => th.cellIndex", head.element_handle())
    rows = table.locator("tbody tr")
    before = rows.all_text_contents()

    def told():
        cells = [row.locator("td").nth(column).text_content() for row in rows.all()]
        return [int(cell.replace(",", "")) for cell in cells]

    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert told() == sorted(told())
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert told() == sorted(told(), reverse=True)
    table.locator("th").first.get_by_role("button").press("Space")
    assert table.locator("th[aria-sort]").count() == 1
    assert sorted(rows.all_text_contents()) == sorted(before)
    assert page.complaints == []


def test_the_pages_of_a_run_lead_to_one_another(page, run):
    page.goto(f"file://{run / 'report.html'}")
    for link, heading in (("front", "small: accuracy"), ("planting", "small: growth")):
        page.get_by_role("link", name=link, exact=True).click()
        page.wait_for_selector(".main-svg")
        assert page.locator("h1").text_content().startswith(heading)
        page.get_by_role("link", name="report", exact=True).click()
        page.wait_for_selector("#front")
    assert page.complaints == []


def test_wide_tables_say_so_on_a_phone_and_scroll_by_keys(page, run):
    page.goto(f"file://{run / 'report.html'}")
    hint = page.locator("#front .hint")
    assert hint.count() >= 1
    wide = page.locator("#front .wide").last
    wide.press("End")
    wide.press("ArrowRight")
    page.wait_for_function("e => e.scrollLeft > 0", arg=wide.element_handle())
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_function("document.querySelectorAll('#versions .hint').length === 0")


@pytest.mark.parametrize("width", [390, 820, 1440])
def test_no_cell_is_squeezed_into_a_tower_of_words(page, run, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"file://{run / 'report.html'}")
    rows = page.locator("#front tbody tr")
    assert rows.count() > 2
    heights = rows.evaluate_all("rows => rows.map(row => row.offsetHeight)")
    assert max(heights) < 130, heights  # five lines


@contextmanager
def dashboard(run):
    """The address of a run's study in a dashboard of this process."""
    addresses = queue.Queue()
    arguments = (run, "127.0.0.1", 0, addresses.put)
    threading.Thread(target=serve_dashboard, args=arguments, daemon=True).start()
    yield addresses.get(timeout=60)


def test_the_dashboard_names_trials_as_planter_does_and_offers_nothing_that_cannot_work(page, run):
    page.set_viewport_size({"width": 1300, "height": 900})
    with dashboard(run) as address:
        page.goto(f"{address}/trials?numbers=0")
        named = page.locator("[data-planter]")
        named.first.wait_for(timeout=120_000)
        ids = {point.id for point in read_points(run)}
        assert {one.get_attribute("data-planter") for one in named.all()} <= ids
        assert page.locator("button:visible", has_text="Upload").count() == 0
        assert page.locator("[aria-label='delete artifact']:visible").count() == 0
        page.goto(address.partition("/studies")[0])
        page.get_by_text("Compare").first.wait_for(timeout=120_000)
        assert page.locator("button:visible", has_text="Create").count() == 0
        page.locator("#planter-pages").click()
        page.wait_for_selector("#front .scatterlayer .point")
        assert page.title() == "small: report"
        assert page.complaints == []


def test_the_dashboard_shows_all_panels_of_the_growth(page, run):
    page.set_viewport_size({"width": 1300, "height": 900})
    with dashboard(run) as address:
        page.goto(address)
        page.get_by_text("validation loss (cross-entropy, nats)").wait_for(timeout=120_000)
        cut_off = page.evaluate(
            "[...document.querySelectorAll('.MuiCard-root:has(.js-plotly-plot)')]"
            ".filter(card => card.scrollHeight > card.clientHeight + 1).length"
        )
        assert cut_off == 0


def test_the_dashboard_opens_on_the_front_of_the_run(page, run):
    page.set_viewport_size({"width": 1300, "height": 900})
    with dashboard(run) as address:
        page.goto(address)
        page.get_by_text("Pareto Front").first.wait_for(timeout=30_000)
        assert page.get_by_text("accuracy").count() > 0
        assert page.get_by_text("macs").count() > 0


PATIENT = (
    SPACE
    + """
import time
from pathlib import Path

def patient(trial):
    study = getattr(trial, "study", None)  # none in a worker, which replays what was drawn
    searched = study is not None and study.study_name == "small/sampling"
    while searched and trial.number == 3 and not (Path(__file__).parent / "go").exists():
        time.sleep(0.05)
    return space(trial)
"""
)


def test_the_dashboard_of_a_running_study_shows_its_front_and_the_study_does_not_notice(
    browser, run, tmp_path
):
    study = write_study(tmp_path)
    (tmp_path / "space.py").write_text(PATIENT)
    study.write_text(study.read_text().replace("space.py:space", "space.py:patient"))
    program = f"import planter; planter.search({str(study)!r}, out={str(tmp_path / 'run')!r})"
    searching = subprocess.Popen([sys.executable, "-c", program])
    try:
        end = time.monotonic() + 180
        while "s0002/base" not in _points(tmp_path / "run"):
            assert searching.poll() is None  # it now waits in the fourth trial
            assert time.monotonic() < end
            time.sleep(0.1)
        _look_through(browser, tmp_path / "run")
        assert searching.poll() is None
    finally:
        (tmp_path / "go").touch()
        assert searching.wait(timeout=300) == 0
    alone, watched = (
        json.loads((at / "pareto.json").read_text()) for at in (run, tmp_path / "run")
    )
    assert watched["points"] == alone["points"]
    assert watched["hypervolume"] == alone["hypervolume"]


def _points(run):
    """Ids of the points in a run's books, which its documents may lag behind."""
    if not (run / "pareto.json").is_file():
        return []  # the driver may still be making its tables
    return [point.id for point in read_points(run)]


def _look_through(browser, run):
    """Every page of the dashboard that a run adds to."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    points = _points(run)
    with dashboard(run) as address:
        page.goto(address)
        page.get_by_text("Pareto Front").first.wait_for(timeout=60_000)
        page.goto(f"{address}/note")
        page.get_by_role("img", name="the front").wait_for(timeout=60_000)
        assert page.get_by_text("on the front, hypervolume").count() == 1
        loaded = "() => [...document.images].some(i => i.alt === 'the front' && i.naturalWidth > 0)"
        page.wait_for_function(loaded)
        page.goto(f"{address}/analytics")
        page.locator(".scatterlayer .point").first.wait_for(state="attached", timeout=60_000)
        api = address.replace("/dashboard/", "/api/")
        told = page.request.get(api).json()
        assert len(told["trials"]) == len(points)
        assert told["objective_names"] == ["accuracy", "macs"]
        files = {file["filename"]: file["artifact_id"] for file in told["trials"][0]["artifacts"]}
        assert set(files) == {"architecture.json", "metrics.jsonl", "log.txt", "learning-curve.svg"}
        row = told["trials"][0]["trial_id"]
        place = f"{address.partition('/dashboard')[0]}/artifacts/1/{row}"
        metrics = page.request.get(f"{place}/{files['metrics.jsonl']}").text()
        assert metrics == (run / "trials" / "teacher" / "metrics.jsonl").read_text()
        assert "<svg" in page.request.get(f"{place}/{files['learning-curve.svg']}").text()
        # A dashboard that people share cannot end or bend the search.
        refused = page.request.delete(api)
        assert refused.status == 403
        assert "changes nothing but notes" in refused.json()["reason"]
        closed = page.request.post(
            f"{api.partition('/studies')[0]}/trials/{row}/tell", data={"state": "Fail"}
        )
        assert closed.status == 403
    page.close()


def test_pictures_are_drawn(run, browser, tmp_path):
    pytest.importorskip("kaleido")
    from planter.front.points import read_front
    from planter.plots import front_figure, write_image

    for ending, magic in ((".png", b"\x89PNG"), (".svg", b"<svg"), (".pdf", b"%PDF")):
        file = tmp_path / f"front{ending}"
        write_image(front_figure([read_front(run)]), file)
        assert file.read_bytes().startswith(magic)


SCRIPTS = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    '"><svg onload="window.hacked = 3">',
    "<a href='javascript:window.hacked = 4'>link</a>",
    "<b onmouseover='window.hacked = 5'>bold</b>",
    "${window.hacked = 6}{{window.hacked = 7}}",
]


def hostile_front() -> dict:
    """A pareto.json of somebody else's: every text in it wants to run."""
    points = [
        {
            "id": f"{text}/base", "trial": text, "pipeline": text, "method": "sample",
            "accuracy": 0.4 + 0.05 * i, "test_accuracy": None, "macs": 1000 * 3**i, "params": 100,
            "on_front": True, "model": text, "train_macs": 1, "network": [text],
        }
        for i, text in enumerate(SCRIPTS)
    ]  # fmt: skip
    study = "".join(SCRIPTS)
    return {
        "study": study, "objectives": ["accuracy", "macs"], "points": points, "hypervolume": 0.1,
        "reference_point": [0.1, 1e6],
        "cost": {"trials": 6, "unfinished": 0, "train_macs": 6, "seconds": 1.0},
    }  # fmt: skip


def hostile_report() -> str:
    facts = Facts(hostile_front(), [Step("s", 1, 1, 0.1)], {}, [], 0)
    every = "".join(SCRIPTS)
    return report_page(
        Report(
            run=facts,
            control=facts,
            growth=hostile_growth(),
            importances=Importances(dict.fromkeys(SCRIPTS, 0.1), every, 60),
            enough=10,
            standing=every,
            study=every,
            environment={every: every, "versions": {every: every}},
        )
    )


def hostile_growth() -> list[dict]:
    return [
        {
            "round": int(bool(i)), "layer": layer, "channels": 1, "accepted": i < 2,
            "widths": f"{SCRIPTS[1].replace(' ', '/')}={3 + i} conv2=4", "params": 1, "macs": 1,
            "val_loss": 1.0 - 0.1 * i, "val_accuracy": 0.5, "seconds": 1.0,
        }
        for i, layer in enumerate(["start", *SCRIPTS])
    ]  # fmt: skip


@pytest.mark.parametrize("which", ["pareto", "planting", "report"])
def test_no_text_of_a_run_is_run_as_a_script(page, tmp_path, which):
    from planter.plots import front_figure, growth_figure, write_html

    file = tmp_path / "page.html"
    if which == "pareto":
        write_html(front_figure([hostile_front(), hostile_front()]), file)
    elif which == "planting":
        write_html(growth_figure("".join(SCRIPTS), hostile_growth()), file)
    else:
        file.write_text(hostile_report(), encoding="utf-8")
    page.set_viewport_size({"width": 1000, "height": 900})
    page.goto(f"file://{file}")
    page.wait_for_selector(".scatterlayer .point")
    marks = page.locator(".scatterlayer .point, .heatmaplayer image, .barlayer .point")
    assert marks.count() > 0
    seen = set()
    for mark in range(marks.count()):
        if (box := marks.nth(mark).bounding_box()) is None:
            continue
        for across in (0.2, 0.5, 0.8):
            for down in (0.1, 0.5, 0.9):
                at = box["x"] + across * box["width"], box["y"] + down * box["height"]
                page.mouse.move(*at)
                page.wait_for_timeout(20)
                seen |= set(page.locator(".hoverlayer .hovertext").all_text_contents())
    assert seen, "the texts were shown"
    for link in page.locator("svg a").all():
        assert not (link.get_attribute("xlink:href") or "").startswith("javascript")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, svg svg[onload], [onerror], [onmouseover]").count() == 0
    assert page.complaints == []


def test_no_text_of_a_run_is_run_in_the_dashboard(page, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "pareto.json").write_text(json.dumps(hostile_front()))
    page.set_viewport_size({"width": 1300, "height": 900})
    with dashboard(tmp_path / "run") as address:
        page.goto(f"{address}/note")
        page.get_by_role("img", name="the front").wait_for(timeout=60_000)
        assert page.get_by_text("window.hacked = 1").count() > 0, "the texts were shown"
        assert page.evaluate("window.hacked") is None
        assert page.locator("img[src=x], [onerror], [onmouseover], svg[onload]").count() == 0


def test_the_page_of_scripts_would_catch_one(page, tmp_path):
    """Without planter's care, the very texts do run."""
    file = tmp_path / "page.html"
    file.write_text("<!doctype html><title>x</title><body>" + "".join(SCRIPTS))
    page.goto(f"file://{file}")
    page.wait_for_function("window.hacked > 0")
