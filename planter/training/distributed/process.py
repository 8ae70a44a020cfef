"""One process of a training that several make together, and how it calls who started it."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from planter.data import Split
from planter.training.augmentation import AUGMENTATIONS
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
from planter.training.loop import PausedError, Validate, fit
from planter.training.recipe import Recipe, make_optimizer
from planter.training.stacked.passes import Pass
from planter.training.step import shares

_PATIENCE = timedelta(minutes=30)
"""For another process, which may validate or write meanwhile."""
_LOGGERS = ("planter", "py.warnings")

Answer = TypeVar("Answer")


class Sent(NamedTuple):
    """What each process is given, beside the images."""

    model: nn.Module
    loss: Callable[[nn.Module, Batch], Tensor]
    recipe: Recipe
    seed: int
    processes: int
    device: str
    threads: int
    validate: Validate
    learned: dict[str, Any] | None
    settings: dict[str, Any]
    augmentations: dict[str, Any]


class _Caller:
    """The process that started this one, to be called by name."""

    def __init__(self, line: Connection) -> None:
        self._line = line
        self._lock = threading.Lock()

    def __call__(self, name: str, *arguments: Any) -> Any:
        with self._lock:
            self._line.send((name, arguments))
            return self._line.recv()


class _Told(logging.Handler):
    """Has what is logged here logged by the process that started this one."""

    def __init__(self, caller: _Caller) -> None:
        super().__init__()
        self._caller = caller

    def emit(self, record: logging.LogRecord) -> None:
        self._caller("log", record.name, record.levelno, record.getMessage())


def take_part(rank: int, folder: Path, splits: Any, line: Connection) -> None:
    """What each process does; the first leaves weights and optimiser in the folder."""
    split, validation = splits
    sent: Sent = pickle.loads((folder / "given.pkl").read_bytes())
    AUGMENTATIONS.update(sent.augmentations)
    torch.set_num_threads(sent.threads)
    caller = _Caller(line)
    if rank == 0:
        logging.captureWarnings(True)
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(_Told(caller))
            logging.getLogger(name).setLevel(logging.INFO)
    try:
        _join(rank, sent, folder)
        _train(rank, sent, folder, split, validation, caller)
    except (PausedError, FloatingPointError) as error:  # in every process alike
        if rank == 0:
            caller("raise", error)
    except (EOFError, ConnectionError, KeyboardInterrupt):
        shutil.rmtree(folder, ignore_errors=True)  # whoever started us is gone
        raise
    # Where it fails the group is left as it is: the others would hear of that before our caller.
    distributed.destroy_process_group()


def _join(rank: int, sent: Sent, folder: Path) -> None:
    if sent.device == "cuda":
        torch.cuda.set_device(rank)
    else:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # to listen to nobody outside
    distributed.init_process_group(
        "nccl" if sent.device == "cuda" else "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=sent.processes,
        timeout=_PATIENCE,
    )


def _train(
    rank: int, sent: Sent, folder: Path, split: Split, validation: Split | None, caller: _Caller
) -> None:
    place = torch.device(sent.device, rank) if sent.device == "cuda" else torch.device("cpu")
    settings = dict(sent.settings)
    if rank and (checkpoint := settings.get("checkpoint")) is not None:
        # The first process writes it, the others go on from what it was.
        settings["checkpoint"] = folder / f"checkpoint-{rank}.pt"
        with suppress(FileNotFoundError):
            shutil.copy(checkpoint, settings["checkpoint"])
    distributed.barrier()
    if (teacher := settings.get("teacher")) is not None:
        settings["teacher"] = teacher.to(place)
    if rank == 0:
        settings["on_epoch"] = partial(caller, "epoch")
        settings["on_end"] = partial(caller, "end")
        validation = None if validation is None else validation.to(place)
    model = sent.model.to(place)
    if sent.device == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    optimizer = make_optimizer(model, sent.recipe)
    if sent.learned is not None:
        optimizer.load_state_dict(sent.learned)
    fit(
        model,
        sent.loss,
        split.to(place),
        sent.recipe,
        seed=sent.seed,
        optimizer=optimizer,
        validation=validation,
        validate=lambda *judged: _of_first(rank, lambda: sent.validate(*judged)),
        pause=lambda: _of_first(rank, lambda: bool(caller("pause"))),
        together=_Divided(rank, sent.processes),
        **settings,
    )
    if rank == 0:
        left = {"model": model.cpu().state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(left, folder / "trained.pt")
    distributed.barrier()


def _of_first(rank: int, what: Callable[[], Answer]) -> Answer:
    """What the first process finds, in every process."""
    found = [what() if rank == 0 else None]
    distributed.broadcast_object_list(found)
    answer: Answer = found[0]  # type: ignore[assignment]
    return answer


class _Divided:
    """Makes each pass of a training together with the other processes: see `Company`."""

    def __init__(self, rank: int, processes: int) -> None:
        self._rank = rank
        self._processes = processes
        self._wrapped: tuple[nn.Module, DistributedDataParallel] | None = None

    def clock(self) -> float:
        return time.monotonic()

    def run(self, one: Pass) -> float:
        torch.manual_seed(mix_seed(one.seed, one.epoch) ^ self._rank)
        one.model.train()
        if self._wrapped is None or self._wrapped[0] is not one.model:
            with warnings.catch_warnings():
                # Newer torch has a second word for it, which older ones do not know.
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                # Layers that are left out, always or now and then, are no mistake.
                own = DistributedDataParallel(
                    one.model, broadcast_buffers=False, find_unused_parameters=True
                )
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
