"""A hook of mkdocs: pages stand in the site where they stand in the repository, so that links
between them hold in both."""

from __future__ import annotations

import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

TOP = Path(__file__).resolve().parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files, and instead of those of docs/ alone all that the repository's pages link
    to."""
    theme = [f for f in files if not Path(str(f.abs_src_path)).is_relative_to(config.docs_dir)]
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=TOP,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    ours = [
        File.generated(config, name, abs_src_path=str(TOP / name))
        for name in tracked
        if (TOP / name).is_file()
    ]
    return Files([*theme, *ours])
