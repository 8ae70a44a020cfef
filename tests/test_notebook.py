"""docs/tour.ipynb, executed as a reader executes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tour.ipynb"
pytestmark = pytest.mark.long


def test_every_cell_runs_and_shows_what_it_promises(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=settings).execute()
    shown = {
        cell.source.splitlines()[0]: output["data"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output["output_type"] in ("execute_result", "display_data")
    }
    run = next(out for line, out in shown.items() if line.startswith("run = planter.search"))
    trained = int(re.search(r"(\d+) points", run["text/plain"]).group(1))
    assert trained >= 8
    table = next(out for line, out in shown.items() if "to_frame" in line)["text/html"]
    assert table.count("<tr") == trained + 2  # two lines of heads
    assert "application/vnd.plotly.v1+json" in shown["run.plot()"]
    assert (tmp_path / "runs" / "tour" / "pareto.json").is_file()
