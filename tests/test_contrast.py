"""Colours of pages and figures: they stand out, by the ratio of WCAG 2.2, on light and on dark."""

import re
from itertools import product
from pathlib import Path

import pytest

import planter
from planter.plots import style
from planter.plots.growth import growth_figure

SHEET = Path(planter.__file__).parent / "plots" / "templates" / "style.css"


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def ratio(one: str, other: str) -> float:
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def themes() -> dict[str, dict[str, str]]:
    """The colours of the real style sheet by name: light, and what the others change of it."""
    text = SHEET.read_text(encoding="utf-8")
    found = {}
    places = {"light": ":root {", "dark": "scheme: dark)", "print": "@media print { :root"}
    for name, begin in places.items():
        block = text[text.index(begin) :].split("}", 1)[0]
        colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        found[name] = {**found.get("light", {}), **colors}
    return found


def test_the_ratio_is_that_of_wcag():
    assert ratio("#000000", "#ffffff") == pytest.approx(21)
    assert ratio("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # known to fail


@pytest.mark.parametrize("name", ["light", "dark", "print"])
def test_texts_of_pages_stand_out(name):
    theme = themes()[name]
    assert set(theme) == {"ink", "soft", "paper", "card", "line", "note", "link", "edge"}
    for text, ground in product(("ink", "soft", "link"), ("paper", "card")):
        assert ratio(theme[text], theme[ground]) >= 4.5, (text, ground)
    assert ratio(theme["ink"], theme["note"]) >= 4.5
    assert ratio(theme["edge"], theme["paper"]) >= 3


def test_marks_of_figures_stand_out_on_either_paper():
    colors = {look.color for look in style.looks().values()}
    colors |= {*style.RUNS, *style.SERIES, style.BOUND, style.INK}
    growth = growth_figure("x", [_row(0, "start", 0.7), _row(1, "a", 0.5), _row(1, "b", 0.9)])
    for trace in growth.data:
        colors |= {trace.marker.color or trace.line.color}
    assert len(colors) >= 10
    for name, color in product(("light", "dark"), sorted(colors)):
        assert ratio(color, themes()[name]["paper"]) >= 3, (name, color)


def test_no_mark_is_made_faint():
    """Opacity would undo what the colours keep."""
    growth = growth_figure("x", [_row(0, "start", 0.7), _row(1, "a", 0.5)])
    assert all(trace.opacity is None for trace in growth.data)
    assert {t.marker.opacity for t in growth.data if t.type == "scatter"} <= {None, 1}


def _row(number, layer, loss):
    return {
        "round": number, "layer": layer, "channels": 1, "accepted": not number,
        "widths": "a=1 b=2", "params": 1, "macs": 1, "val_loss": loss, "val_accuracy": 0.5,
        "seconds": 1.0,
    }  # fmt: skip
