"""The README's code runs as it stands there."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import planter
from planter.study.file import read_study

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
YAML = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


def test_the_example_runs_and_prints_a_line_a_pipeline(capsys):
    exec(compile(PYTHON[0], "README.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["base", "cut2"]
    # Eight epochs are few; ten classes guessed would be 0.1.
    assert all(float(line[1]) > 0.5 for line in lines)


def test_the_example_of_parts_of_ones_own_runs(capsys):
    page = (Path(__file__).parent.parent / "docs" / "sub-models.md").read_text()
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import" in c]
    exec(compile(code, "sub-models.md", "exec"), {})
    shapes, _ = capsys.readouterr().out.splitlines()
    assert shapes == "{'base': (2, 10), 'short': (2, 10), 'early': (2, 10)} ['early']"


def test_the_example_network_of_ones_own_can_be_searched(tmp_path):
    (tmp_path / "my_nets.py").write_text(PYTHON[1])
    study = {
        "name": "own",
        "data": {"name": "digits", "subset": 200},
        "teacher": {"builder": "my_nets:build"},
        "recipe": {"epochs": 1},
        "plant": {"start": {"stem": 4, "mid": 4}, "rounds": 1, "recipe": {"epochs": 1}},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(study))
    program = "from planter.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "search", "own.yaml", "--workers", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "p01-stem done" in done.stdout


@pytest.mark.parametrize("line", [line for block in YAML for line in block.splitlines()])
def test_every_data_example_is_a_sound_setting(line, tmp_path):
    (tmp_path / "study.yaml").write_text(f"name: x\n{line}\n")
    read_study(tmp_path / "study.yaml")


def test_the_public_names_are_importable_and_documented():
    for name in planter.__all__:
        assert getattr(planter, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        planter.nonsense  # noqa: B018


def test_only_the_driver_talks_to_optuna_and_ray_and_only_plots_draws():
    top = Path(planter.__file__).parent
    for file in top.rglob("*.py"):
        place = file.relative_to(top)
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names.append(node.module)
            roots = {name.partition(".")[0] for name in names}
            if roots & {"optuna", "ray", "optuna_dashboard"}:
                assert place.parts[0] == "driver", place
            if "plotly" in roots:
                assert place.parts[0] == "plots", place
