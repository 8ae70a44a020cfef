"""The documentation as a site, and what says how to cite planter."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).parent.parent


@pytest.mark.long
def test_every_link_and_anchor_of_the_site_leads_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING -" not in done.stderr
    for page in (TOP / "docs").glob("*.md"):
        assert (tmp_path / "docs" / page.stem / "index.html").is_file()
    assert "<h2" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation() -> None:
    said = (TOP / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"docs/([\w-]+\.md)", said))
    assert named == {page.name for page in (TOP / "docs").glob("*.md")}


def test_the_citation_names_this_version_and_the_five_papers() -> None:
    said = yaml.safe_load((TOP / "CITATION.cff").read_text(encoding="utf-8"))
    assert (
        said["version"] == tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["version"]
    )
    assert len(said["references"]) == 5
    assert all(one["authors"] and one["title"] for one in said["references"])
