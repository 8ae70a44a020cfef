"""A worker's part in final training: one pipeline, trained alone and whole."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from planter import checkpoint
from planter.arch import Architecture
from planter.assembly import build_network
from planter.driver.jobs import Job, Outcome, seed_of
from planter.driver.kept import kept_info
from planter.losses import classification_loss
from planter.macs import cost
from planter.recipe import Recipe
from planter.train import Batch, evaluate

if TYPE_CHECKING:
    from planter.driver.worker import Worker


def train_alone(worker: Worker, job: Job) -> Outcome:
    """Trains the detached network of a point, from fresh weights or from those in the folder
    `start` (relative to the worker's), scores it and saves it in `models/<job's id>`."""
    params = job.params
    architecture = Architecture.from_dict(params["architecture"])
    pipeline, guided = params["pipeline"], params["guided"]
    recipe = Recipe.model_validate(params["recipe"])
    if params["start"] is None:
        network = build_network(architecture, pipeline, seed_of(worker.study.seed, job.id))
    else:
        network = checkpoint.load(worker.run / params["start"], own_code=True)
    network.to(worker.device)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        kd_weight = 1.0 if guided else 0.0
        return classification_loss(
            model(batch.images), batch.labels, batch.teacher, kd_weight=kd_weight
        )

    worker.fit(job.id, network, loss, recipe, guided=guided)
    score = evaluate(network, worker.data.validation)
    if not math.isfinite(score.loss):
        raise FloatingPointError(f"validation loss of {job.id} is {score.loss}")
    epochs = (
        (worker.run / "trials" / job.id / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    )
    info = {
        **kept_info(worker, job.id, score, cost(architecture).pipelines[pipeline]),
        "epochs": recipe.epochs,
        # Of the epochs, so that a training that was interrupted counts whole.
        "train_seconds": round(sum(json.loads(epoch)["seconds"] for epoch in epochs), 3),
    }
    worker.save(worker.run / "models" / job.id, network, architecture, pipeline, info)
    return {"points": [{"pipeline": pipeline, "accuracy": score.accuracy}]}
