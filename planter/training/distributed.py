"""One training over several processes, each with a part of every batch: on GPUs, or on the CPU."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from planter.data import Split
from planter.training.batches import (
    Batch,
    batch_order,
    class_count,
    layout_of,
    make_batch,
    mix_seed,
    split_batch,
)
from planter.training.class_weights import relative_weights
from planter.training.loop import fit
from planter.training.recipe import Recipe
from planter.training.stacked.passes import Pass
from planter.training.step import shares

_PATIENCE = timedelta(minutes=30)
"""For another process, which may validate or write meanwhile."""


def fit_in_processes(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    processes: int,
    device: str = "cpu",
    **settings: Any,
) -> nn.Module:
    """Trains the model in place as `fit` does, with each batch divided among `processes`, and
    returns it: for a network that outgrows one GPU's time.

    With `device` "cuda" each process has a GPU of its own (NCCL), else they share the processor
    (gloo, over the loopback). Gradients are those of the whole batch, by torch's
    DistributedDataParallel; batch norms see the whole batch on GPUs (SyncBatchNorm), on the CPU,
    where torch has no such norm, each process's part, as with `accumulate`, and their running
    statistics are then the mean over the processes. Every process makes the whole batch and takes
    its part of it, so that augmentation is what it is in one process. Each ends with the same
    weights.

    `settings` are those of `fit` that can travel to another process: `teacher` (logits, or a
    network), `checkpoint`, `start`, `until`, `validation`. Raises ValueError for more GPUs than
    there are, fewer than one process, a batch that has not an image for each, `accumulate`,
    `patience`, another precision than float32 or compilation, which each process would choose or
    scale for itself, and for what cannot travel: a loss is to be a function of a module, or
    `functools.partial` of one, kernels are plain.
    """
    if processes < 1:
        raise ValueError(f"processes {processes}: expected 1 or more")
    if device == "cuda" and processes > (count := torch.cuda.device_count()):
        raise ValueError(f"{processes} GPUs asked for, this machine has {count}: ask for as many")
    if recipe.accumulate > 1:
        raise ValueError(f"accumulate {recipe.accumulate}: each process has a part already; 1")
    if recipe.precision != "float32" or recipe.compile is not False:
        raise ValueError(
            f"precision {recipe.precision}, compile {recipe.compile}: expected float32 and false, "
            "which are all that several processes train in"
        )
    if recipe.patience is not None:
        raise ValueError(
            f"patience {recipe.patience}: each process would judge for itself when to end; without"
        )
    if (least := _smallest_batch(split, recipe)) < processes:
        raise ValueError(
            f"batches of {least} images for {processes} processes: expected an image for each"
        )
    if unknown := set(settings) - {"teacher", "checkpoint", "start", "until", "validation"}:
        raise ValueError(f"{', '.join(sorted(unknown))}: not for a training in several processes")
    place = next(model.parameters()).device
    model.cpu()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        threads = max(torch.get_num_threads() // processes, 1)
        given = model, loss, split.to("cpu"), recipe, seed, processes, device, folder, threads
        try:
            spawn(_process, (*given, settings), processes)  # type: ignore[no-untyped-call]
        except (pickle.PicklingError, AttributeError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "parametrized" not in str(error):
                raise
            raise ValueError(
                f"cannot be sent to another process: {error}; expected a loss that is a function "
                "of a module, and plain kernels"
            ) from error
        model.load_state_dict(torch.load(folder / "trained.pt", weights_only=True))
    return model.to(place)


def _smallest_batch(split: Split, recipe: Recipe) -> int:
    return min(map(len, batch_order(split, recipe, 0, 0)[0]))


def _process(
    rank: int,
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    split: Split,
    recipe: Recipe,
    seed: int,
    processes: int,
    device: str,
    folder: Path,
    threads: int,
    settings: dict[str, Any],
) -> None:
    """What each process does; the first leaves the weights in the folder."""
    torch.set_num_threads(threads)
    place = torch.device(device, rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(place)
    else:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # to listen to nobody outside
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=processes,
        timeout=_PATIENCE,
    )
    try:
        if rank and (checkpoint := settings.get("checkpoint")) is not None:
            # The first process writes it, the others go on from what it was.
            own = folder / f"checkpoint-{rank}.pt"
            if Path(checkpoint).is_file():
                shutil.copy(checkpoint, own)
            settings = {**settings, "checkpoint": own}
        distributed.barrier()
        settings = {
            name: value.to(place) if hasattr(value, "to") else value
            for name, value in settings.items()
        }
        # On the CPU a tensor that is sent is shared: each process trains weights of its own.
        model = copy.deepcopy(model).to(place)
        if device == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        company = _Divided(rank, processes)
        fit(model, loss, split.to(place), recipe, seed=seed, together=company, **settings)
        if rank == 0:
            torch.save(model.cpu().state_dict(), folder / "trained.pt")
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


class _Divided:
    """Makes each pass of a training together with the other processes: see `Company`."""

    def __init__(self, rank: int, processes: int) -> None:
        self._rank = rank
        self._processes = processes
        self._wrapped: tuple[nn.Module, DistributedDataParallel] | None = None

    def clock(self) -> float:
        return time.monotonic()

    def run(self, one: Pass) -> float:
        torch.manual_seed(mix_seed(one.seed, one.epoch))
        one.model.train()
        if self._wrapped is None or self._wrapped[0] is not one.model:
            with warnings.catch_warnings():
                # Newer torch has a second word for it, which older ones do not know.
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                own = DistributedDataParallel(one.model, broadcast_buffers=False)
            self._wrapped = one.model, own
        whole = self._wrapped[1]
        steps, generator = batch_order(one.split, one.recipe, one.seed, one.epoch)
        classes = class_count(one.split)
        weights = relative_weights(one.recipe, one.split.labels)
        total = torch.zeros((), device=one.split.labels.device)
        for i, index in enumerate(steps):
            batch = make_batch(
                one.split,
                index,
                one.recipe.augment,
                generator,
                one.teacher,
                layout_of(one.model),
                classes=classes,
            )
            parts = split_batch(batch, self._processes)
            share = shares([part.labels for part in parts], weights)[self._rank]
            for group in one.optimizer.param_groups:
                group["lr"] = one.recipe.lr_at(one.epoch + i / len(steps))
            one.optimizer.zero_grad()
            value = share * one.loss(whole, parts[self._rank])
            # DistributedDataParallel takes the mean over processes: of this, the sum is due.
            (self._processes * value).backward()  # type: ignore[no-untyped-call]
            if one.recipe.clip_grad is not None:
                clip_grad_norm_(one.model.parameters(), one.recipe.clip_grad)
            one.optimizer.step()
            if one.average is not None:
                one.average.update_parameters(one.model)
            total += value.detach() * len(batch.labels)
        distributed.all_reduce(total)
        for buffer in one.model.buffers():
            if buffer.is_floating_point():
                distributed.all_reduce(buffer)
                buffer /= self._processes
        return float(total) / sum(map(len, steps))
