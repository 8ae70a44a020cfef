"""One training over several processes, each with a part of every batch: on GPUs, or on the CPU."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessException,
    ProcessExitedException,
    spawn,
)

from planter.data import Split
from planter.training.augmentation import AUGMENTATIONS
from planter.training.batches import Batch, batch_order
from planter.training.distributed.process import Sent, take_part
from planter.training.loop import Epoch, Validate
from planter.training.recipe import Recipe
from planter.training.scores import evaluate


class ProcessLostError(RuntimeError):
    """A process of a training was ended from outside: the same training may succeed."""


_POLL_S = 0.1
_LEVEL = "TORCH_CPP_LOG_LEVEL"
_TRAVELS = {"teacher", "checkpoint", "start", "until", "validation"}


def fit_in_processes(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    processes: int,
    device: str = "cpu",
    threads: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    pause: Callable[[], bool] = lambda: False,
    validate: Validate = evaluate,
    on_end: Callable[[int], None] = lambda epochs: None,
    **settings: Any,
) -> nn.Module:
    """Trains the model in place as `fit` does, with each batch divided among `processes`, and
    returns it: for a network that outgrows one GPU's time.

    With `device` "cuda" each process has a GPU of its own (NCCL), else they share the processor
    (gloo, over the loopback), each on so many `threads`, by default its share of this process's.
    Gradients are those of the whole batch, by torch's DistributedDataParallel; batch norms see the
    whole batch on GPUs (SyncBatchNorm), on the CPU, where torch has no such norm, each process's
    part, as with `accumulate`, and their running statistics are then the mean over the processes.
    Every process makes the whole batch and takes its part of it, so that augmentation is what it is
    in one process; what draws in the model, as dropout does, draws for each part. Each ends with
    the same weights.

    `optimizer` begins with what it has learned and ends with what the training's has. `on_epoch`,
    `pause` and `on_end` are called in this process, `validate` in the first of the others, whose
    log is told here. `settings` are those of `fit` that can travel to another process: `teacher`
    (logits, or a network), `checkpoint`, `start`, `until`, `validation`. What stands in a script or
    notebook travels with its code; a script is not run again for it.

    Raises ValueError for what `refused_of_processes` tells and for what cannot travel, and what
    `fit` raises; RuntimeError where a process fails otherwise, with its last words. No process is
    left then.
    """
    if (refused := refused_of_processes(split, recipe, processes, device)) is not None:
        raise ValueError(refused)
    given = {name: value for name, value in settings.items() if value is not None}
    if unknown := set(given) - _TRAVELS:
        raise ValueError(f"{', '.join(sorted(unknown))}: not for a training in several processes")
    validation = given.pop("validation", None)
    if recipe.patience is not None and not validation:
        raise ValueError(f"patience {recipe.patience} needs validation images to go by")
    threads = threads or max(torch.get_num_threads() // processes, 1)
    place = next(model.parameters()).device
    model.cpu()
    with tempfile.TemporaryDirectory(prefix="planter-processes-") as name:
        folder = Path(name)
        learned = None if optimizer is None else optimizer.state_dict()
        own = {
            name: entry
            for name, entry in AUGMENTATIONS.items()
            if not entry.apply.__module__.startswith("planter.")
        }
        sent = Sent(
            model, loss, recipe, seed, processes, device, threads, validate, learned, given, own
        )
        try:
            (folder / "given.pkl").write_bytes(travelling(sent))
            splits = split.to("cpu"), None if validation is None else validation.to("cpu")
            _run(processes, folder, splits, {"epoch": on_epoch, "pause": pause, "end": on_end})
            trained = torch.load(folder / "trained.pt", weights_only=True)
            model.load_state_dict(trained["model"])
        finally:
            model.to(place)
    if optimizer is not None:
        optimizer.load_state_dict(trained["optimizer"])
    return model


def refused_of_processes(split: Split, recipe: Recipe, processes: int, device: str) -> str | None:
    """Why a training cannot be divided among so many processes, what was expected and what to do;
    None where it can: more GPUs than there are, fewer than one process, a batch that has not an
    image for each, `accumulate`, another precision than float32 or compilation, which each process
    would choose or scale for itself."""
    if processes < 1:
        return f"processes {processes}: expected 1 or more"
    if device == "cuda" and processes > (count := torch.cuda.device_count()):
        return f"{processes} GPUs asked for, this machine has {count}: ask for as many"
    if recipe.accumulate > 1:
        return (
            f"accumulate {recipe.accumulate}: each of several processes has a part of the batch "
            "already; set the recipe's accumulate to 1, or train in one process"
        )
    if recipe.precision != "float32" or recipe.compile is not False:
        return (
            f"precision {recipe.precision}, compile {recipe.compile}: several processes train in "
            "float32 without compilation alone; set the recipe's precision to float32 and compile "
            "to false, or train in one process"
        )
    if (least := min(map(len, batch_order(split, recipe, 0, 0)[0]))) < processes:
        return (
            f"batches of {least} images for {processes} processes: expected an image for each; set "
            f"a larger recipe.batch, or at most {least} processes"
        )
    return None


def travelling(what: Any) -> bytes:
    """Something as another process takes it, what stands in a script or notebook with its code.
    Raises ValueError for what cannot travel."""
    try:
        content: bytes = cloudpickle.dumps(what)
    except Exception as error:  # whatever the parts raise
        raise ValueError(
            f"cannot be sent to another process: {error}; expected a network, a loss and changes "
            "of images that can be pickled, and plain kernels"
        ) from error
    return content


def _run(
    processes: int, folder: Path, splits: Any, calls: Mapping[str, Callable[..., Any]]
) -> None:
    """Starts the processes, answers the first one's calls and waits for all; none outlives it."""
    here, there = Pipe()
    with here, there:
        with _without_script(), _quiet():
            children = spawn(  # type: ignore[no-untyped-call]
                take_part, (folder, splits, there), processes, join=False, daemon=True
            )
        try:
            _answer(children, here, {**calls, "raise": _raise, "log": _log})
        except ProcessException as error:
            if _killed(children, error):
                raise ProcessLostError(
                    "a process of the training was killed, perhaps by the system for want of "
                    "memory: a smaller recipe.batch or fewer processes take less"
                ) from error
            told = f"process {error.error_index} of the training: {_last_words(str(error))}"
            raise RuntimeError(told) from error
        finally:
            for process in children.processes:
                process.kill()
                process.join()
            for file in children.error_files:  # torch leaves them
                Path(file).unlink(missing_ok=True)
    if not (folder / "trained.pt").is_file():
        raise RuntimeError("a process of the training was interrupted")


def _killed(children: ProcessContext, error: ProcessException) -> bool:
    """Whether a process was ended from outside: the others fail for want of it, and one of them may
    be the first that is seen. torch ends them by SIGTERM."""
    codes = [process.exitcode for process in children.processes]
    return isinstance(error, ProcessExitedException) or -signal.SIGKILL in codes


def _last_words(text: str) -> str:
    """The first line of the error at the end of a process's traceback: what follows are advice and
    details, of torch's."""
    lines = text.strip().splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    behind = lines[frames[-1] + 1 :] if frames else lines
    return next((line for line in behind if not line.startswith("    ")), lines[-1])


def _answer(
    children: ProcessContext, line: Connection, calls: Mapping[str, Callable[..., Any]]
) -> None:
    """Does what the first process asks for until all have ended."""
    while not children.join(timeout=0):
        while line.poll(_POLL_S):
            name, arguments = line.recv()
            line.send(calls[name](*arguments))


def _raise(error: Exception) -> None:
    raise error


def _log(name: str, level: int, text: str) -> None:
    logging.getLogger(name).log(level, "%s", text)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lets processes that are started within say nothing on the terminal but errors of torch's C++
    code: every layer that takes part would be warned of, as one that may not is looked for."""
    asked = os.environ.get(_LEVEL)
    os.environ[_LEVEL] = asked or "ERROR"
    try:
        yield
    finally:
        if asked is None:
            del os.environ[_LEVEL]


@contextmanager
def _without_script() -> Iterator[None]:
    """Hides the script or notebook that runs: Python would run it again in each process that it
    starts within, and a script that calls us without an `if __name__ == "__main__"` for ever."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
