"""NVIDIA ModelOpt's FastNAS: widths in steps of two, chosen by how much accuracy each costs."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import random
from pathlib import Path
from typing import Any

import modelopt.torch.prune as pruning
import numpy as np
import torch
from counting import Passes
from task import Arena
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from planter import evaluate

DIVISOR = 2
# FastNAS calibrates norms on the 50 batches it keeps before every score; batches of ten images keep
# that as cheap as the score itself, and it is counted.
BATCHES, BATCH = 50, 10
MACS_TO_FLOPS = 2

log = logging.getLogger(__name__)


def run(arena: Arena, variant: str) -> None:
    # What each width costs is measured once for all sizes.
    sensitivity = arena.out / "sensitivity.pth"
    sensitivity.unlink(missing_ok=True)
    for target in arena.targets():
        network = copy.deepcopy(arena.teacher).requires_grad_(True)
        random.seed(arena.seed)
        np.random.seed(arena.seed)  # noqa: NPY002 - modelopt draws from numpy's own
        torch.manual_seed(arena.seed)
        with Passes(network) as passes:
            try:
                found = _searched(network, target, arena, sensitivity)
            except ValueError as error:
                if "constraints" not in str(error):
                    raise
                log.warning("FastNAS has no network of at most %d macs", target)
                continue
            finally:
                arena.search_macs += passes.macs
        arena.child(found)


def _searched(network: nn.Module, macs: int, arena: Arena, sensitivity: Path) -> nn.Module:
    """The network of most accuracy, by ModelOpt, of at most so many multiply-adds."""
    data = arena.data
    few = data.validation.sample(slice(arena.task.score_images))

    def score(model: nn.Module) -> float:
        return evaluate(model, few).accuracy

    rule = {"*": {"channel_divisor": DIVISOR}}
    units = {"*": {"feature_divisor": DIVISOR}}
    mode = ("fastnas", {"nn.Conv2d": rule, "nn.BatchNorm2d": units, "nn.Linear": units})
    config: dict[str, Any] = {
        "data_loader": _loader(arena),
        "max_iter_data_loader": BATCHES,
        "score_func": score,
        "checkpoint": str(sensitivity),
        "verbose": False,
    }
    with _quiet():
        pruned, _ = pruning.prune(
            network,
            [mode],
            constraints={"flops": MACS_TO_FLOPS * macs},
            dummy_input=torch.zeros(1, *data.image),
            config=config,
        )
    found: nn.Module = pruned
    return found


def _loader(arena: Arena) -> DataLoader[tuple[Tensor, ...]]:
    train = arena.data.train
    images = train.normalise(train.batch(slice(BATCHES * BATCH)))
    return DataLoader(TensorDataset(images, train.labels[: len(images)]), batch_size=BATCH)


@contextlib.contextmanager
def _quiet() -> Any:
    """ModelOpt prints progress to both streams."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
