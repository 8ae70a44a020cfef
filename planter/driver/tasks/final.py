"""Final training: one pipeline, trained alone and whole."""

from __future__ import annotations

import json

from planter.arch import Architecture
from planter.costs.macs import cost
from planter.driver.tasks.context import Context
from planter.driver.tasks.facts import facts_of
from planter.driver.tasks.whole import class_loss, of_batch, train_whole
from planter.driver.trials.jobs import Job, Outcome, seed_of
from planter.networks import checkpoint
from planter.networks.assembly import build_network
from planter.training.recipe import Recipe


def train_point(context: Context, job: Job) -> Outcome:
    """Trains the detached network of a point, from fresh weights or from those in the folder
    `start` (relative to the context's), scores it and saves it in `models/<job's id>`."""
    params = job.params
    architecture = Architecture.from_dict(params["architecture"])
    pipeline, guided = params["pipeline"], params["guided"]
    recipe = Recipe.model_validate(params["recipe"])
    if params["start"] is None:
        network = build_network(architecture, pipeline, seed_of(context.study.seed, job.id))
    else:
        network = checkpoint.load(context.run / params["start"], own_code=True)
    entropy = context.entropy(recipe)
    loss = of_batch(class_loss(kd_weight=1.0 if guided else 0.0, **entropy))
    trained = train_whole(context, job.id, network, architecture, recipe, loss, guided=guided)
    score = context.score(job.id, network)
    metrics = context.run / "trials" / job.id / "metrics.jsonl"
    epochs = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    info = {
        **facts_of(context, job.id, score, cost(architecture).pipelines[pipeline]),
        "epochs": trained.epochs,
        # Of the epochs, so that a training that was interrupted counts whole.
        "train_seconds": round(sum(epoch["seconds"] for epoch in epochs), 3),
    }
    context.save(context.run / "models" / job.id, network, architecture, pipeline, info)
    return {"points": [{"pipeline": pipeline, "accuracy": score.accuracy}]}
