"""What benchmarks/driver.py has trained: nothing, or a piece of work. Not a benchmark itself."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from planter.arch import Architecture
from planter.driver.tasks import run_job
from planter.driver.tasks.context import Context
from planter.driver.trials.jobs import Job, Outcome, number_of
from planter.study.space import Candidate, load_space

_SHIPPED = load_space("convnet_cuts", image=(1, 8, 8), classes=10)


def space(trial: Any) -> Candidate:
    """The shipped space `convnet_cuts`, with all it draws, for a study without a teacher."""
    return replace(_SHIPPED(trial), kd_weight=0.0)


def outcome_of(number: int, params: dict[str, Any]) -> Outcome:
    """What a training of `convnet_cuts` may give: a point for the base and one for each cut, so
    that wider networks are better and a sampler has something to find."""
    widths = {"early": params["width_early"], "late": params["width_late"], "fc": params["fc1"]}
    macs = 64 * widths["early"] ** 2 + 16 * widths["late"] ** 2 + 4 * widths["late"] * widths["fc"]
    noise = random.Random(number).gauss(0, 0.01)
    accuracy = 0.98 - 20 / math.sqrt(macs) + noise - 0.002 * abs(params["temperature"] - 3)
    cuts = params["cuts"].split("+") if params["cuts"] != "none" else []
    architecture = Architecture("convnet", widths, {}, {cut: {} for cut in cuts}).to_dict()
    points = [
        {
            "pipeline": name,
            "accuracy": max(accuracy - 0.02 * depth, 0.1),
            "loss": 1 - accuracy,
            "macs": int(macs / (1 + 0.7 * depth)),
            "params": 10 * macs,
            "architecture": architecture,
            "kernels": "plain",
        }
        for depth, name in enumerate(["base", *cuts])
    ]
    return {"points": points, "train_macs": 1000 * macs}


def work(steps: int) -> None:
    """So many training steps' worth of convolutions, on as many threads as torch has."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 16, 16, 16, generator=generator)
    weight = torch.randn(16, 16, 3, 3, generator=generator, requires_grad=True)
    for _ in range(steps):
        functional.conv2d(images, weight, padding=1).relu().mean().backward()  # type: ignore[no-untyped-call]


@dataclass
class EmptyContext(Context):
    """A context in which sampled trials take `steps` of `work`, by default none, and save nothing.
    All around a training is as it is: locks, logs, folders."""

    steps: int = 0


def empty(context: Context, job: Job) -> Outcome:
    """The task in place of sampling's."""
    assert isinstance(context, EmptyContext)
    work(context.steps)
    return outcome_of(number_of(job.id), dict(job.params["trial"]))


# In Ray's workers as well, which import this module for the class of their context; not where it is
# read a second time, under another name, for its search space.
if __name__ == "trials":
    run_job.TASKS["sample"] = empty
