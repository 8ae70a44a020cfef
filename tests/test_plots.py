"""The front's figure: what is drawn where, and a page that stands alone."""

import base64
import gzip
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planter.front.certainty import wilson
from planter.plots import (
    Curve,
    Series,
    curves_figure,
    front_figure,
    front_info,
    growth_figure,
    growth_info,
    write_html,
)
from planter.plots.ticks import log_ticks


def _point(id_, method, accuracy, macs, *, on_front=False, test=None):
    trial, _, pipeline = id_.partition("/")
    return {
        "id": id_, "trial": trial, "pipeline": pipeline, "method": method, "accuracy": accuracy,
        "test_accuracy": test, "macs": macs, "params": macs // 10, "on_front": on_front,
        "model": None, "train_macs": 5,
    }  # fmt: skip


def _front(name="first"):
    return {
        "study": name,
        "objectives": ["accuracy", "macs"],
        "points": [
            _point("b-width8/base", "baseline", 0.75, 400, test=0.7),
            _point("s0001/cut2", "sample", 0.5, 100, on_front=True, test=0.4875),
            _point("s0001/base", "sample", 0.75, 2000),
            _point("p01-conv1/base", "plant", 0.75, 1000, on_front=True, test=0.625),
            _point("p02-conv2/base", "plant", 0.875, 3000, on_front=True, test=0.75),
            _point("s0002/base", "sample", 0.25, 900),
            _point("teacher/base", "teacher", 1.0, 9000, test=0.9375),
        ],
        "hypervolume": 1.0,
        "reference_point": [0.1, 9000],
    }


def _ids(series):
    return {(s.run, s.kind): [p["id"] for p in s.points] for s in series}


def _lines(figure):
    """The fronts, without what only stands in the legend."""
    return [t for t in figure.data if t.mode == "lines" and list(t.x) != [None]]


def _markers(figure):
    """Points by run and kind, without what only stands in the legend."""
    return [t for t in figure.data if t.mode == "markers" and list(t.x) != [None]]


def test_every_point_stands_in_the_series_of_its_kind_and_nowhere_else():
    assert _ids(front_info([_front()]).series) == {
        ("first", "plant"): ["p01-conv1/base", "p02-conv2/base"],
        ("first", "sample"): ["s0001/base", "s0002/base"],
        ("first", "pipeline"): ["s0001/cut2"],
        ("first", "teacher"): ["teacher/base"],
        ("first", "baseline"): ["b-width8/base"],
    }


def test_the_step_line_is_the_front_by_rising_macs_without_teacher_and_baselines():
    # The teacher is more accurate, the baseline cheaper than the front's neighbours.
    (corners,) = front_info([_front()]).steps["first"]
    assert corners == [(100, 50.0), (1000, 75.0), (3000, 87.5)]


def test_equal_points_make_one_corner():
    front = _front()
    front["points"].append(_point("s0009/base", "sample", 0.5, 100, on_front=True))
    assert front_info([front]).steps["first"] == [[(100, 50.0), (1000, 75.0), (3000, 87.5)]]


def test_kinds_without_points_make_no_series():
    front = {**_front(), "points": [_point("s0001/base", "sample", 0.5, 10)]}
    info = front_info([front])
    assert info.series == [Series("first", "sample", front["points"])]
    assert info.steps == {"first": [[]]}
    assert len(_markers(front_figure([front]))) == 1


def test_the_drawn_line_climbs_after_it_has_gone_right():
    """Between two corners the front holds the lower accuracy: more macs come before more of it."""
    (line,) = _lines(front_figure([_front()]))
    assert line.line.shape == "hv"
    assert (list(line.x), list(line.y)) == ([100, 1000, 3000], [50.0, 75.0, 87.5])


def _symbols(figure):
    """Symbol and size of every point, by id."""
    return {
        data[0]: (symbol, size)
        for trace in _markers(figure)
        for data, symbol, size in zip(
            trace.customdata, trace.marker.symbol, trace.marker.size, strict=True
        )
    }


def test_dominated_points_are_hollow_and_what_is_compared_with_is_not():
    found = _symbols(front_figure([_front()]))
    assert len(found) == 7
    dominated = {"s0001/base", "s0002/base"}
    assert {id_ for id_, (symbol, _) in found.items() if symbol.endswith("-open")} == dominated
    others = [size for id_, (_, size) in found.items() if id_ not in dominated]
    assert max(found[id_][1] for id_ in dominated) < min(others)


def _bounded(**bounds):
    front = {**_front(), "bounds": bounds}
    for point in front["points"]:
        point["within_bounds"] = all(point[name] <= most for name, most in bounds.items())
        point["on_front"] = point["on_front"] and point["within_bounds"]
    return front


def test_a_bound_is_a_line_and_what_lies_beyond_is_crossed_on_shaded_ground():
    figure = front_figure([_bounded(macs=1500)])
    line, ground = figure.layout.shapes
    assert (line.type, line.x0, line.x1) == ("line", 1500, 1500)
    assert (ground.type, ground.x0) == ("rect", 1500)
    assert ground.x1 >= 9000  # to the end of the axis, beyond the dearest point
    assert 10 ** figure.layout.xaxis.range[1] == pytest.approx(ground.x1)
    (told,) = figure.layout.annotations
    assert told.text == "bound: 1,500 macs"
    assert 10**told.x == pytest.approx(1500)  # plotly places annotations by the logarithm
    crossed = {id_ for id_, (symbol, _) in _symbols(figure).items() if symbol == "x-thin-open"}
    assert crossed == {"s0001/base", "p02-conv2/base"}  # not the teacher, which is no candidate
    assert "beyond the bound of 1,500 macs" in _hovers(figure)["p02-conv2/base"]
    assert "beyond" not in _hovers(figure)["s0002/base"]
    assert any("1,500 macs" in (trace.name or "") for trace in figure.data)


def test_a_bound_that_has_no_axis_is_told_in_the_legend():
    figure = front_figure([_bounded(params=150)])
    assert not figure.layout.shapes
    assert any(trace.name == "beyond the bound (150 parameters)" for trace in figure.data)


def test_runs_of_different_bounds_show_none():
    assert not front_figure([_bounded(macs=1500), _front("other")]).layout.shapes
    assert front_info([_bounded(macs=9), _bounded(macs=9)]).bounds == {"macs": 9}


def test_coinciding_points_are_counted_and_name_one_another():
    front = _front()
    front["points"].append(_point("s0007/base", "sample", 0.75, 1000))
    figure = front_figure([front])
    (texts,) = [trace for trace in figure.data if trace.mode == "text"]
    assert (list(texts.x), list(texts.y), [text.strip() for text in texts.text]) == (
        [1000],
        [75.0],
        ["\u00d72"],
    )
    hovers = _hovers(figure)
    assert "at the same place: s0007/base" in hovers["p01-conv1/base"]
    assert "at the same place: p01-conv1/base" in hovers["s0007/base"]
    assert sum("same place" in told for told in hovers.values()) == 2


def test_the_bars_are_wilsons_intervals_of_the_points_on_the_front():
    front = _front()
    for point in front["points"]:
        low, high = wilson(point["accuracy"], 288)
        point |= {"accuracy_low": low, "accuracy_high": high}
    for trace in _markers(front_figure([front])):
        if trace.error_y.array is None:
            continue
        for data, y, up, down in zip(
            trace.customdata, trace.y, trace.error_y.array, trace.error_y.arrayminus, strict=True
        ):
            point = next(p for p in front["points"] if p["id"] == data[0])
            ends = [100 * end for end in wilson(point["accuracy"], 288)]
            expected = ends if point["on_front"] else [y, y]
            assert [y - down, y + up] == pytest.approx(expected)


def _hovers(figure):
    return {id_: told for trace in _markers(figure) for id_, told in trace.customdata}


def test_hovering_tells_the_points_own_numbers():
    front = _front()
    front["points"][1]["network"] = ["convnet conv1=4", "pipeline <cut2>: before conv3"]
    front["points"][1]["latency_ms"] = 0.25
    shown = _hovers(front_figure([front]))
    assert shown["s0001/cut2"].split("<br>") == [
        "<b>s0001/cut2</b> (sample)",
        "validation 50.00 %, test 48.75 %",
        "100 macs, 10 parameters",
        "latency 0.25 ms",
        "convnet conv1=4",
        "pipeline &lt;cut2&gt;: before conv3",
    ]
    assert "validation 75.00 %, test not read<br>2,000 macs, 200 par" in shown["s0001/base"]
    assert "(teacher)<br>validation 100.00 %, test 93.75 %<br>9,000" in shown["teacher/base"]
    assert len(shown) == 7


def test_long_networks_take_several_lines_of_a_hover():
    front = {**_front(), "points": [_point("s0001/base", "sample", 0.5, 10)]}
    front["points"][0]["network"] = ["vgg16 " + " ".join(f"conv{i}=512" for i in range(1, 14))]
    (told,) = _hovers(front_figure([front])).values()
    lines = told.split("<br>")
    assert max(len(line) for line in lines) <= 44
    assert " ".join(lines[3:]) == front["points"][0]["network"][0]


def test_a_test_accuracy_of_zero_is_not_taken_for_one_not_read():
    front = {**_front(), "points": [_point("s0001/base", "sample", 0.5, 10, test=0.0)]}
    (told,) = _hovers(front_figure([front])).values()
    assert "test 0.00 %" in told


def test_several_runs_keep_their_points_lines_and_names_apart():
    second = {
        **_front("second"),
        "points": [_point("s0001/base", "sample", 0.5, 10, on_front=True)],
    }
    info = front_info([_front(), second])
    assert info.steps == {
        "first": [[(100, 50.0), (1000, 75.0), (3000, 87.5)]],
        "second": [[(10, 50.0)]],
    }
    assert {s.run for s in info.series} == {"first", "second"}
    assert _ids(info.series)["second", "sample"] == ["s0001/base"]
    figure = front_figure([_front(), second])
    names = [t.name for t in figure.data if t.showlegend is not False]
    # Kinds stand once in the legend, whatever the number of runs.
    assert len(set(names)) == len(names) == 2 + 5 + 1
    assert names[:2] == ["front of first", "front of second"]
    assert names[-1] == "hollow: dominated"
    dashes = {(line.line.dash, line.line.color) for line in _lines(figure)}
    assert len(dashes) == 2
    colors = {run: set() for run in ("first", "second")}
    for run, trace in zip([s.run for s in info.series], _markers(figure), strict=True):
        colors[run].add(trace.marker.color)
    # All of a run has the colour of its line.
    assert colors == {
        run: {line.line.color}
        for run, line in zip(("first", "second"), _lines(figure), strict=True)
    }
    assert colors["first"].isdisjoint(colors["second"])


def test_two_runs_of_one_study_both_keep_their_front():
    second = {**_front(), "points": [_point("s0001/base", "sample", 0.5, 10, on_front=True)]}
    lines = _lines(front_figure([_front(), second]))
    assert sorted(list(line.x) for line in lines) == [[10], [100, 1000, 3000]]


def test_macs_stand_on_a_logarithmic_axis():
    axis = front_figure([_front()]).layout.xaxis
    assert axis.type == "log"
    assert axis.title.text == "macs (conv + linear, one image), log scale"


@given(st.floats(1e-3, 1e9), st.floats(1.01, 1e6))
def test_a_logarithmic_axis_has_some_ticks_and_not_too_many(low, ratio):
    high = low * ratio
    ticks = log_ticks(low, high)
    assert 3 <= sum(low * (1 - 1e-9) <= tick <= high * (1 + 1e-9) for tick in ticks) <= 10
    assert ticks == sorted(set(ticks))


def test_ticks_of_known_ranges():
    between = [tick for tick in log_ticks(14_576, 615_680) if 14_576 <= tick <= 615_680]
    assert between == [20e3, 50e3, 100e3, 200e3, 500e3]
    assert [tick for tick in log_ticks(1, 1e6) if tick <= 1e6] == [10.0**n for n in range(7)]
    between = [tick for tick in log_ticks(0.117, 0.197) if 0.117 <= tick <= 0.197]
    assert between == [0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18, 0.19]
    assert log_ticks(5, 5)


def test_milliseconds_are_not_labelled_in_thousandths():
    front = {**_front(), "objectives": ["accuracy", "latency_ms"]}
    for point in front["points"]:
        point["latency_ms"] = 0.15
    assert front_figure([front]).layout.xaxis.tickformat == "~g"


def test_the_line_goes_up_first_where_more_is_better_across():
    front = {**_front(), "objectives": ["macs", "accuracy"]}
    shapes = {line.line.shape for line in _lines(front_figure([front]))}
    assert shapes == {"vh"}  # what lies between two accuracies costs as much as the higher one
    assert {line.line.shape for line in _lines(front_figure([_front()]))} == {"hv"}


def test_of_three_objectives_every_pair_has_a_panel():
    front = {**_front(), "objectives": ["accuracy", "macs", "params"]}
    front["points"][2] |= {"params": 20, "on_front": True}  # s0001/base: few parameters
    info = front_info([front])
    assert info.panels == [("macs", "accuracy"), ("params", "accuracy"), ("params", "macs")]
    # In each plane the line keeps what the two objectives alone would keep.
    assert info.steps["first"] == [
        [(100, 50.0), (1000, 75.0), (3000, 87.5)],
        [(10, 50.0), (20, 75.0), (300, 87.5)],
        [(10, 100)],
    ]
    figure = front_figure([front])
    axes = [
        figure.layout[f"{axis}{number}"] for number in ("", 2, 3) for axis in ("xaxis", "yaxis")
    ]
    assert [axis.title.text.split(" ")[0].strip(",") for axis in axes] == [
        "macs", "validation", "parameters", "validation", "parameters", "macs",
    ]  # fmt: skip
    assert [axis.type for axis in axes] == ["log", None, "log", None, "log", "log"]
    shown = [t.name for t in figure.data if t.showlegend is not False]
    assert len(shown) == len(set(shown)) == 1 + 5 + 1


def test_points_without_a_value_of_an_axis_are_not_drawn():
    front = {**_front(), "objectives": ["accuracy", "latency_ms"]}
    front["points"][1]["latency_ms"] = 2.5
    assert list(_hovers(front_figure([front]))) == ["s0001/cut2"]
    assert front_info([front]).steps["first"] == [[(2.5, 50.0)]]


class _Page(HTMLParser):
    """Addresses that a browser would fetch, and the text of the page's scripts."""

    def __init__(self):
        super().__init__()
        self.fetched, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [
            value for name, value in attrs if name in ("src", "href", "data", "srcset")
        ]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    file = tmp_path_factory.mktemp("page") / "pareto.html"
    write_html(front_figure([_front(hostile)]), file)
    return file.read_text(encoding="utf-8")


def test_the_page_fetches_nothing(page):
    parser = _Page()
    parser.feed(page)
    assert "script" in parser.tags
    assert parser.fetched == []
    assert "@import" not in page.split("<script", 1)[0]


def test_the_page_holds_its_points_and_the_drawing_code(page):
    for point in _front()["points"]:
        assert point["id"].split("/")[0] in page
    assert len(page) < 1_000_000
    packed = re.search(r'id="drawing-code">([A-Za-z0-9+/=]+)</script>', page)
    code = gzip.decompress(base64.b64decode(packed[1])).decode()
    assert code.startswith("/**\n* plotly.js (cartesian - minified) v")  # itself, not a link to it


def test_a_study_name_cannot_put_code_into_the_page(page):
    assert "alert(1)" in page
    assert "<script>alert" not in page
    parser = _Page()
    parser.feed(page)
    assert "img" not in parser.tags


def _grown_row(number, layer, loss, *, accepted=False, widths="conv1=2 conv2=3 fc1=9"):
    return {
        "round": number, "layer": layer, "channels": 2 * (number > 0), "accepted": accepted,
        "widths": widths, "params": 100 + number, "macs": 1000 + number, "val_loss": loss,
        "val_accuracy": 1 - loss, "seconds": 1.5,
    }  # fmt: skip


GROWTH = [
    _grown_row(0, "start", 0.75, accepted=True),
    _grown_row(1, "conv1", 0.5, widths="conv1=4 conv2=3 fc1=9"),
    _grown_row(1, "conv2", 0.625, widths="conv1=2 conv2=5 fc1=9"),
    _grown_row(1, "grown", 0.25, accepted=True, widths="conv1=4 conv2=5 fc1=9"),
    _grown_row(2, "conv1", 0.375, widths="conv1=6 conv2=5 fc1=9"),
    _grown_row(3, "conv2", 0.125, accepted=True, widths="conv1=4 conv2=7 fc1=9"),
]


def test_growth_tells_falls_from_the_network_each_round_started_from():
    info = growth_info(GROWTH)
    assert info.rounds == [1, 2, 3]
    assert dict(zip(info.tried, info.falls, strict=True)) == {
        "conv1": [0.25, -0.125, None],
        "conv2": [0.125, None, 0.125],
        "grown": [0.5, None, None],
    }
    assert info.accepted == [(1, "grown"), (3, "conv2")]
    # The second round accepted nothing: the network of the first stays.
    assert [row["val_loss"] for row in info.networks] == [0.75, 0.25, 0.25, 0.125]


def test_the_growth_figure_draws_what_grew_and_the_courses(tmp_path):
    figure = growth_figure("<small>", GROWTH)
    bars = {bar.name: list(bar.x) for bar in figure.data if bar.type == "bar"}
    assert bars == {"at the start": [2, 3, 9], "planted": [2, 4, 0]}
    (planted,) = [bar for bar in figure.data if bar.name == "planted"]
    assert list(planted.text) == ["2 \u2192 4", "3 \u2192 7", "9, not grown"]
    discs = [t for t in figure.data if t.type == "scatter" and t.mode == "markers"]
    tried = {trace.name: set(zip(trace.x, trace.y, strict=True)) for trace in discs}
    assert tried == {
        "accepted": {(1, "grown"), (3, "conv2")},
        "better": {(1, "conv1"), (1, "conv2")},
        "not better": {(2, "conv1")},
    }
    # Discs by area: what fell twice as far has twice the area beyond the smallest disc.
    size = {
        (x, y): trace.marker.size[at] - 6
        for trace in discs
        for at, (x, y) in enumerate(zip(trace.x, trace.y, strict=True))
    }
    assert (size[1, "grown"] / size[1, "conv1"]) ** 2 == pytest.approx(2)
    courses = {trace.name: list(trace.y) for trace in figure.data if trace.name in COURSES}
    assert courses == {"loss": [0.75, 0.25, 0.25, 0.125], "accuracy": [25.0, 75.0, 75.0, 87.5]}
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert [title for title in titles if "nats" in title or "(%)" in title or "channels" in title]
    assert figure.layout.legend.y > figure.layout.legend2.y  # each panel has its own
    write_html(figure, tmp_path / "growth.html")
    assert "<small>: growth" not in (tmp_path / "growth.html").read_text()


COURSES = ("loss", "accuracy")


def test_curves_number_the_epochs_of_several_parts_through():
    parts = [
        {"epoch": 1, "loss": 3.0},
        {"epoch": 2, "loss": 2.0, "val_accuracy": 0.5, "val_loss": 1.5},
        {"epoch": 1, "loss": 1.0},
        {"epoch": 2, "loss": float("nan"), "val_accuracy": 0.75},
    ]
    figure = curves_figure([Curve("<s>", parts), Curve("teacher", [])])
    found = [(list(t.x), list(t.y)) for t in figure.data if t.name == "&lt;s&gt;"]
    assert found == [
        ([2, 4], [50.0, 75.0]),
        ([2], [1.5]),
        ([1, 2, 3], [3.0, 2.0, 1.0]),
    ]
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles[:2] == ["validation accuracy (%)", "validation loss (cross-entropy, nats)"]
    assert curves_figure([Curve("s", [])]) is None


def test_a_planting_of_no_round_has_a_figure_too():
    assert growth_info(GROWTH[:1]).networks == GROWTH[:1]
    assert growth_figure("start alone", GROWTH[:1]).data
