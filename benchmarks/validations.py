"""What validations on the way add to quickstart's trainings, whose recipe does not ask for them.

    python benchmarks/validations.py --json

Each plain network of studies/quickstart.yaml is trained as its worker does it, `--rounds` times, on
one thread; seconds of the processor within validations, and of all the rest. The claim: the sum of
the medians grows by 2 % at most.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median
from typing import Any

import torch
from measuring import claim, print_claims, surroundings
from torch import nn

from planter import Architecture, Recipe, build, evaluate, fit, load_data
from planter.backbones import full_widths, with_data_options
from planter.data import Data, Split
from planter.networks.pipelines import Pipelines
from planter.study.file import read_study
from planter.training.losses import classification_loss
from planter.training.scores import Score

WIDTHS = (8, 16, 32, 48)


def seconds(width: int, recipe: Recipe, data: Data) -> tuple[float, float]:
    """Of one training: its validations, and all the rest."""
    made = Architecture("convnet", full_widths("convnet", width, {}), {})
    model = build(with_data_options(made, data.classes, data.image), 0)
    model = Pipelines(model, {}).detach("base")
    taken = []

    def timed(network: nn.Module, images: Split) -> Score:
        began = time.process_time()
        score = evaluate(network, images)
        taken.append(time.process_time() - began)
        return score

    began = time.process_time()
    fit(
        model,
        lambda net, batch: classification_loss(net(batch.images), batch.labels),
        data.train,
        recipe,
        seed=0,
        validation=data.validation,
        validate=timed,
    )
    return sum(taken), time.process_time() - began - sum(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = read_study("quickstart")
    data = load_data("digits", validation=study.data.validation, seed=study.seed)
    seconds(WIDTHS[0], study.recipe, data)
    medians: dict[str, Any] = {}
    for width in WIDTHS:
        times = zip(*(seconds(width, study.recipe, data) for _ in range(given.rounds)), strict=True)
        validations, rest = map(median, times)
        medians[f"width {width}"] = {"validations": round(validations, 4), "rest": round(rest, 3)}
    parts = [sum(m[name] for m in medians.values()) for name in ("validations", "rest")]
    grown = 100 * parts[0] / parts[1]
    claims = [claim("quickstart's trainings grow by, in percent", grown, "<=", 2.0)]
    if given.json:
        print(json.dumps({"claims": claims, "medians": medians, **surroundings()}, indent=1))
    else:
        print(medians)
        print_claims(claims)


if __name__ == "__main__":
    main()
