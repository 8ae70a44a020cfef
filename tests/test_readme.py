"""The code of README and docs runs as it stands there."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import planter
from planter.study.file import read_study

TOP = Path(__file__).parent.parent
LONGEST = 120


def blocks(page: str, language: str) -> list[str]:
    """The blocks of code of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (TOP / page).read_text(), re.DOTALL)


def test_a_newcomer_reads_it_at_once():
    assert len((TOP / "README.md").read_text().splitlines()) <= LONGEST


def test_links_lead_somewhere():
    for page in [TOP / "README.md", *(TOP / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), (page.name, link)


def test_the_search_in_python_gives_a_network(tmp_path, monkeypatch, capsys):
    (code,) = blocks("README.md", "python")
    monkeypatch.chdir(tmp_path)
    here = code.replace("    name=", "    resources=planter.Resources(workers=0),\n    name=", 1)
    names = {}
    exec(compile(here, "README.md", "exec"), names)
    id, accuracy, macs = capsys.readouterr().out.split()[-3:]
    assert float(accuracy) > 0.3
    assert planter.cost(names["network"], (1, 8, 8)).macs == int(macs) <= 20_000
    assert (tmp_path / "runs" / "tour" / "models" / id).is_dir()


def test_the_photos_become_a_front_and_a_file(tmp_path):
    """The README's study and commands, on few small pictures and shorter."""
    pixels = np.random.default_rng(0)
    for name, shade in (("cat", 60), ("dog", 190)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            picture = pixels.normal(shade, 30, (40, 50, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / "photos" / name / f"{i}.jpg")
    (study,) = blocks("README.md", "yaml")
    (tmp_path / "photos.yaml").write_text(study)
    shorter = " ".join(
        f"--set {one}"
        for one in (
            "data.resize=16",
            "recipe.augment.crop=2",
            "teacher.builder=convnet",
            "teacher.recipe.epochs=2",
            "recipe.epochs=2",
            "evolve.trials=2",
            "resources.workers=0",
        )
    )
    commands = next(block for block in blocks("README.md", "sh") if "photos.yaml" in block)
    assert commands.count("photos.yaml ") == 1
    assert commands.count("photos.yaml\n") == 1
    place = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-ec", commands.replace("photos.yaml", f"photos.yaml {shorter}")],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{place}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "2 classes (cat, dog)" in done.stdout
    assert "class Network(nn.Module)" in (tmp_path / "small.py").read_text()


def test_the_parts_used_alone_print_a_line_a_pipeline(capsys):
    (code,) = [block for block in blocks("docs/python.md", "python") if "KernelFilter" in block]
    exec(compile(code, "python.md", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["base", "cut2"]
    # Eight epochs are few; ten classes guessed would be 0.1.
    assert all(float(line[1]) > 0.5 for line in lines)


def test_the_example_of_parts_of_ones_own_runs(capsys):
    (code,) = [block for block in blocks("docs/sub-models.md", "python") if "import" in block]
    exec(compile(code, "sub-models.md", "exec"), {})
    shapes, _ = capsys.readouterr().out.splitlines()
    assert shapes == "{'base': (2, 10), 'short': (2, 10), 'early': (2, 10)} ['early']"


def test_the_example_network_of_ones_own_can_be_searched(tmp_path):
    (code,) = [block for block in blocks("docs/own-networks.md", "python") if "my_nets.py" in block]
    (tmp_path / "my_nets.py").write_text(code)
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


@pytest.mark.parametrize("line", blocks("docs/data.md", "yaml")[0].splitlines())
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
