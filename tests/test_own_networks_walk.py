"""docs/own-networks.md, walked as it stands; and a trained ResNet-18 made half as large."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torchvision import models

import planter
from planter import load_data

pytestmark = pytest.mark.long
PAGE = Path(__file__).parent.parent / "docs" / "own-networks.md"


def test_the_page_leads_from_a_class_to_a_smaller_network(tmp_path, monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    part = text[text.index("## From a class") : text.index("## Widths")]
    (_, code), (_, study), (_, commands) = re.findall(r"```(\w+)\n(.*?)```", part, re.DOTALL)
    (tmp_path / "nets.py").write_text(code)
    (tmp_path / "mine.yaml").write_text(study)
    assert len(study.splitlines()) + len(commands.splitlines()) <= 10
    place = Path(sys.executable).parent
    settings = {**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-ec", commands], cwd=tmp_path, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    front = json.loads((tmp_path / "runs/mine/pareto.json").read_text())["points"]
    within = [p for p in front if p["on_front"] and p["macs"] <= 115_000]
    best = max(within, key=lambda point: point["accuracy"])
    assert best["id"] in done.stdout
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)  # the tests have one too
    loaded = planter.load(tmp_path / "runs/mine" / best["model"], own_code=True)
    monkeypatch.delitem(sys.modules, "nets")
    assert type(loaded).__name__ == "Net"
    assert loaded.conv1.out_channels == loaded.conv2.out_channels < 16
    assert f"Conv2d(1, {loaded.conv1.out_channels}," in done.stdout


def test_a_trained_resnet18_is_shrunk_to_half_its_macs(tmp_path):
    """Its weights stand in a file with torchvision's own names, as a user has them."""
    data = load_data("digits", validation=0.2, resize=32)
    torch.manual_seed(0)
    network = models.resnet18(num_classes=10)
    network.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    images = data.train.normalise(data.train.images).repeat(1, 1, 1, 1)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(3):
        for at in torch.randperm(len(images)).split(64):
            loss = torch.nn.functional.cross_entropy(network(images[at]), data.train.labels[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save(network.state_dict(), tmp_path / "trained.pth")
    (tmp_path / "grey.py").write_text(
        "import torch\nfrom torchvision import models\n\n\n"
        "def grey(num_classes):\n"
        "    network = models.resnet18(num_classes=num_classes)\n"
        "    network.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)\n"
        "    return network\n"
    )
    study = """\
name: half
data:
  name: digits
  validation: 0.2
  resize: 32
teacher:
  builder: "grey:grey"
  weights: trained.pth
  recipe: null
recipe: {epochs: 4, batch: 64, optimizer: adam, lr: 0.002, schedule: onecycle}
evolve:
  trials: 1
  edits: [shrink]
resources: {workers: 0}
"""
    assert len(study.splitlines()) <= 15
    (tmp_path / "half.yaml").write_text(study)
    assert yaml.safe_load(study)["evolve"]["trials"] == 1
    sys.path.insert(0, str(tmp_path))
    try:
        planter.search(tmp_path / "half.yaml", out=tmp_path / "run")
        small = planter.load(tmp_path / "run/models/e0000/base", own_code=True)
    finally:
        sys.path.remove(str(tmp_path))
    whole = planter.cost(network, image=(1, 32, 32)).macs
    half = planter.cost(small, image=(1, 32, 32)).macs
    assert 0.49 * whole < half <= 0.5 * whole
    assert type(small) is models.ResNet
    accuracy = planter.evaluate(small, data.test).accuracy
    assert accuracy > 0.7
