"""Under which recipe a plant pays: rates, lengths and starts, on a network that has been trained.

    planter search planting_cifar10 --set data.root=DIR --out RUN
    python benchmarks/plant_recipe.py RUN --json

Takes the initial network and the teacher of a run of planting and plants eight channels into each
of its layers, by each recipe, on `--subset` training images of the run's data. Told for each layer:
by how much the validation loss fell, and how many of the channels answer to any image. One thread.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import claim, print_claims, surroundings
from torch import Tensor, nn

from planter import load, load_data
from planter.arch import Architecture
from planter.data import Split
from planter.machine.memory import keep_memory
from planter.networks.checkpoint import read_spec
from planter.planting.plants import live_channels, plant
from planter.planting.round import train_round
from planter.planting.starts import Filters, Outgoing
from planter.study.schema import Plant
from planter.training.losses import distillation_loss
from planter.training.scores import evaluate, predict

CHANNELS, MEASURED = 8, 512
DEFAULT = Plant.model_fields["recipe"].default
# Rate, epochs, start of the filters, start of what reads them
RECIPES: list[tuple[float, int, Filters, Outgoing]] = [
    *((lr, 6, "random", "zero") for lr in (0.001, 0.003, DEFAULT.lr, 0.01)),
    (0.003, 12, "random", "zero"),
    (0.003, 6, "scaled", "zero"),
    (0.003, 6, "gradient", "zero"),
    (0.01, 6, "gradient", "zero"),
    (DEFAULT.lr, 12, "gradient", "zero"),
    (0.003, 6, "scaled", "scaled"),
]


class Parent:
    """The initial network of a run, with what its plants learn from."""

    def __init__(self, run: Path, subset: int, root: str | None) -> None:
        study = yaml.safe_load((run / "resolved.yaml").read_text())
        root = root or study["data"].get("root")
        data = load_data(study["data"]["name"], root=root, subset=subset, seed=study["seed"])
        self.train: Split = data.train
        self.validation: Split = data.validation
        place = run / "models" / "p00-start" / "base"
        self.network = load(place)
        self.architecture = Architecture.from_dict(read_spec(place)["architecture"])
        self.logits = predict(load(run / "models" / "teacher" / "base"), data.train)
        self.loss = evaluate(self.network, data.validation).loss

    def gains(
        self, lr: float, epochs: int, filters: Filters, outgoing: Outgoing
    ) -> dict[str, dict[str, Any]]:
        images = self.train.normalise(self.train.batch(slice(MEASURED)))

        def loss(network: nn.Module) -> Tensor:
            return distillation_loss(network(images), self.logits[:MEASURED])

        children = {
            layer: plant(
                self.architecture,
                self.network,
                layer,
                CHANNELS,
                seed=1,
                filters=filters,
                outgoing=outgoing,
                images=images,
                loss=loss,
            )[1]
            for layer in self.architecture.widths
            if layer.startswith("conv")
        }
        train_round(
            self.network,
            children,
            self.train,
            DEFAULT.model_copy(update={"lr": lr, "epochs": epochs, "batch": 256}),
            lambda logits, labels, teacher: distillation_loss(logits, teacher),
            teacher=self.logits,
            seed=0,
        )
        return {
            layer: {
                "gain": round(self.loss - evaluate(child, self.validation).loss, 4),
                "live": live_channels(child, layer, self.architecture.widths[layer], self.train),
            }
            for layer, child in children.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--root", help="where the run's data stands; default: what the run says")
    parser.add_argument("--subset", type=int, default=25_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    parent = Parent(given.run, given.subset, given.root)
    rows = []
    for lr, epochs, filters, outgoing in RECIPES:
        gains = parent.gains(lr, epochs, filters, outgoing)
        rows.append({"lr": lr, "epochs": epochs, "filters": filters, "outgoing": outgoing, **gains})
        if not given.json:
            told = "  ".join(f"{at} {g['gain']:.4f} ({g['live']})" for at, g in gains.items())
            print(f"lr {lr} {epochs:2} epochs {filters}/{outgoing}: {told}", flush=True)
    default = next(row for row in rows if row["lr"] == DEFAULT.lr and row["filters"] == "random")
    paid = sum(one["gain"] > 0 for one in default.values() if isinstance(one, dict))
    claims = [claim("layers whose plant pays at the default rate", paid, ">=", 5)]
    if given.json:
        print(
            json.dumps(
                {
                    "claims": claims,
                    "rows": rows,
                    "parent_loss": round(parent.loss, 4),
                    "channels": CHANNELS,
                    "subset": given.subset,
                    **surroundings(),
                },
                indent=2,
            )
        )
        return
    print_claims(claims)


if __name__ == "__main__":
    main()
