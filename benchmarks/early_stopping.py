"""Early stopping by non-dominated rank against training every trial to its end.

    python benchmarks/early_stopping.py --root FOLDER [--runs FOLDER] [--json]

FOLDER holds torchvision's CIFAR-10. 10,000 of its training images, 2,000 of them to select. For
each seed the same 24 random draws of the space below are searched twice by `planter.search` with
two workers, with and without `sample.early_stopping` as it is by default; parameters and seeds of a
trial do not depend on it, so what is measured is what stopping loses. Epochs are counted in the
trials' learning curves. Test images take no part.

With --runs the run folders stay there: the command may be stopped and given again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from measuring import claim, print_claims, surroundings

import planter
from planter import Architecture, Candidate, cuts
from planter.front.points import read_front
from planter.study.schema import Study

TRIALS, EPOCHS, SEEDS = 24, 16, (0, 1, 2)
WIDTHS = [4, 6, 8, 12, 16]
WAYS: dict[str, dict[str, Any] | None] = {"full": None, "stopped": {}}


def space(trial: Any, *, image: Any, classes: int) -> Candidate:
    """Convnets of two widths, with or without a sub-model, each with a learning rate of its own."""
    early = trial.suggest_categorical("width_early", WIDTHS)
    late = trial.suggest_categorical("width_late", WIDTHS)
    widths = {"conv1": early, "conv2": early, "conv3": late, "conv4": late, "conv5": late}
    widths["fc1"] = trial.suggest_categorical("fc1", [32, 64, 128])
    network = Architecture("convnet", widths, {"image": image, "classes": classes})
    cut = trial.suggest_categorical("cut", ["none", "cut1", "cut2", "cut3"])
    pipelines = {} if cut == "none" else {cut: {"before": cuts(network)[cut].before}}
    return Candidate(
        Architecture("convnet", widths, network.options, pipelines),
        recipe={"lr": trial.suggest_float("lr", 0.001, 0.01, log=True)},
    )


def study(root: str, seed: int, stopping: dict[str, Any] | None) -> Study:
    return Study.model_validate(
        {
            "name": f"seed{seed}-{'full' if stopping is None else 'stopped'}",
            "seed": seed,
            "data": {"name": "cifar10", "root": root, "subset": 10_000, "validation": 0.2},
            "recipe": {
                "epochs": EPOCHS,
                "batch": 100,
                "optimizer": "adam",
                "lr": 0.003,
                "schedule": "onecycle",
            },
            # Those of the largest network of the space.
            "objectives": {"macs_reference": 1_508_608},
            "sample": {
                "space": f"{Path(__file__).resolve()}:space",
                "trials": TRIALS,
                "sampler": "random",
                "early_stopping": stopping,
            },
            "resources": {"workers": 2, "cpu": 1},
        }
    )


def epochs_of(run: Path) -> int:
    """Epochs trained in a run."""
    curves = (run / "trials").glob("s*/metrics.jsonl")
    return sum(len(curve.read_text().splitlines()) for curve in curves)


def measured(root: str, seed: int, runs: Path) -> dict[str, Any]:
    """Both searches of a seed."""
    found: dict[str, Any] = {"seed": seed}
    for way, stopping in WAYS.items():
        asked = study(root, seed, stopping)
        run = runs / asked.name
        planter.search(asked, out=run)
        front = read_front(run)
        found[way] = {
            "hypervolume": front["hypervolume"],
            "epochs": epochs_of(run),
            "front": sum(point["on_front"] for point in front["points"]),
            **front["cost"],
        }
    full, stopped = found["full"], found["stopped"]
    found["hypervolume_kept"] = stopped["hypervolume"] / full["hypervolume"]
    found["epochs_taken"] = stopped["epochs"] / full["epochs"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of torchvision's CIFAR-10")
    parser.add_argument("--runs", type=Path, help="folder for the runs; default: thrown away")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = arguments.runs or Path(temporary)
        root = str(Path(arguments.root).resolve())
        seeds = [measured(root, seed, runs) for seed in arguments.seeds]
    kept = [seed["hypervolume_kept"] for seed in seeds]
    taken = [seed["epochs_taken"] for seed in seeds]
    claims = [
        claim("hypervolume of full training, mean of seeds", statistics.fmean(kept), ">=", 0.99),
        claim("hypervolume of full training, worst seed", min(kept), ">=", 0.99),
        claim("epochs of full training, worst seed", max(taken), "<=", 0.5),
    ]
    if arguments.json:
        print(json.dumps({"claims": claims, "seeds": seeds, **surroundings()}, indent=2))
        return
    for seed in seeds:
        print(json.dumps(seed))
    print_claims(claims)


if __name__ == "__main__":
    main()
