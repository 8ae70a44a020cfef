"""What fine-tuning with 8 bits simulated (`planter export --qat`) wins back of accuracy.

    python benchmarks/qat.py RUN [--ids b-width16 ...] [--factors 1 100 ...] [--epochs 10]
        [--seeds 3] [--json]

RUN is a finished search whose networks are convnets (studies/quickstart.yaml). A factor of 1 is a
network as it was saved. Of another one, one channel of each convolution but the last is enlarged by
it and the next layer takes it back: the network computes what it did, but 8 bits for a whole tensor
hold little of the other channels. Validation accuracy as the export finds it; test images are read
when both files are there, and choose nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from measuring import surroundings

import planter
from planter.data import Split
from planter.export import FineTuning, export_network, onnx_file

CALIBRATION = 256


def enlarged(network: torch.nn.Module, factor: float) -> torch.nn.Module:
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        for one, following in pairwise(convolutions):
            one.weight[0] *= factor
            one.bias[0] *= factor
            following.weight[:, 0] /= factor
    return network


def right(file: Path, split: Split) -> float:
    images = split.normalise(split.batch(slice(len(split)))).numpy()
    logits = onnx_file.load(file)(images)
    return float((logits.argmax(1) == split.labels.numpy()).mean())


def measured(run: Path, name: str, factor: float, epochs: int, seeds: int) -> dict[str, object]:
    data = planter.load_data(run)
    network = enlarged(planter.load(run / "models" / name / "base", own_code=True), factor)
    index = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    settings = {"calibration": data.train.sample(index[:CALIBRATION]), "force": True}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net.onnx"
        static = export_network(network, file, data.validation, **settings)
        found = {
            "id": name,
            "factor": factor,
            "float": round(planter.evaluate(network, data.validation).accuracy, 4),
            "static": round(static.accuracy, 4),
            "static_test": round(right(file, data.test), 4),
        }
        if not static.loses_much:
            return found
        tuned, tested = [], []
        for seed in range(seeds):
            qat = FineTuning(data.train, epochs, seed)
            done = export_network(network, file, data.validation, qat=qat, **settings)
            tuned.append(done.qat.accuracy)
            tested.append(right(file, data.test))
    for key, values in (("qat", tuned), ("kept_test", tested)):
        found[key] = round(statistics.mean(values), 4)
        found[f"{key}_std"] = round(float(np.std(values, ddof=1)) if seeds > 1 else 0.0, 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--ids", nargs="+", default=["b-width8", "b-width16", "b-width32"])
    parser.add_argument("--factors", nargs="+", type=float, default=[1.0, 30.0, 100.0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in given.ids:
        for factor in given.factors:
            rows.append(measured(given.run, name, factor, given.epochs, given.seeds))
            if not given.json:
                print(rows[-1], flush=True)
    if given.json:
        told = {**surroundings(), "epochs": given.epochs, "seeds": given.seeds, "rows": rows}
        print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
