"""Jobs that one worker may do together, and the job that stands for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from planter.driver.trials.jobs import STACK, Job, divided
from planter.study.schema import Study


def shape_of_job(job: Job, study: Study) -> str | None:
    """Jobs of which this is the same train networks of one shape, as far as is known before they
    begin; None for one that is done alone: of another kind, compared with others on its way, or
    divided among processes."""
    params = job.params
    if params.get("rungs") or divided(job, study):
        return None
    known: list[Any]
    if job.kind == "final":
        known = [params[key] for key in ("architecture", "pipeline", "guided")]
        known += [params["start"] is None, params["recipe"]["batch"]]
    elif job.kind == "repeat":
        known = [params["points"]]
    elif job.kind == "sample":
        known = [params["network"], params["kernels"], params.get("trained")]
    elif job.kind == "evolve":
        known = [params["parent"], params["edits"]]
    elif job.kind == "baseline":
        settings = study.baselines[params["index"]]
        if settings.frozen:
            return None
        known = [settings.model_dump(exclude={"name", "recipe", "kd", "weights"})]
    else:
        return None
    return json.dumps([job.kind, known], sort_keys=True)


def stack_of(jobs: Sequence[Job]) -> Job:
    """One job for several, done by its time when the first of them is to be."""
    ends = [job.ends for job in jobs if job.ends is not None]
    return Job(
        "+".join(job.id for job in jobs),
        STACK,
        {"jobs": [asdict(job) for job in jobs]},
        ends=min(ends, default=None),
        macs=sum(job.macs for job in jobs),
        epochs=max(job.epochs for job in jobs),
    )
