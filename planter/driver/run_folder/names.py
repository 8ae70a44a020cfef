"""Which run a name means."""

from __future__ import annotations

from pathlib import Path

from planter.machine.paths import user_path


def run_folder(name: str | Path) -> Path:
    """The run folder of a name. Raises ValueError, naming the runs there are."""
    for folder in (user_path(name), Path("runs") / name):
        if (folder / "resolved.yaml").is_file():
            return folder
    there = sorted(f.parent.name for f in Path("runs").glob("*/resolved.yaml"))
    known = f"runs here are {', '.join(there)}" if there else "there are no runs here"
    raise ValueError(f"no run {str(name)!r}: expected a run folder, or a name under runs/; {known}")
