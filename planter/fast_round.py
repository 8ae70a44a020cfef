"""A round of planting in which what is frozen is computed once for all candidates.

Before the planted layer a child computes what its parent computes. Behind it, where only
channelwise operations lie between the layer and its reader, the child's pre-activation at the
reader is the parent's plus what the planted channels contribute:

    child(reader) = parent(reader) + W_new * f(planted channels)

So one pass of the parent over the images feeds every candidate, and a step of a candidate computes
the planted channels, their contribution, and the frozen rest behind the reader. A child of another
kind (a residual stream, several readers) computes all that follows its first widened part.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from planter.activations import MEMORY_BYTES, Activations, overwrites, steps_of
from planter.checkpoint import read_training, write_training
from planter.data import Split
from planter.freeze import check_norms, freeze_inherited_, thaw_
from planter.recipe import Recipe, make_optimizer
from planter.train import (
    Batch,
    Epoch,
    batch_order,
    lay_out_moments_,
    layout_of,
    make_batch,
    mix_seed,
    training_images,
)

log = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From logits `[batch, classes]`, labels `[batch]` and the teacher's logits to a number."""

_CHECKPOINT_EVERY_S = 10.0
_CHANNELWISE = (
    *(nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Identity, nn.Flatten),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
_DROPOUTS = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)


@dataclass
class Course:
    """What a round was for one candidate: its epochs, seconds and multiply-adds of its own steps
    (convolutions and matrix products, forward and backward), and why it was given up, if it was."""

    epochs: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0
    macs: int = 0
    error: str | None = None


def train_round(
    parent: nn.Module,
    children: Mapping[str, nn.Module],
    split: Split,
    recipe: Recipe,
    loss: Loss,
    *,
    teacher: Tensor | nn.Module | None,
    seed: int,
    memory: int = MEMORY_BYTES,
    checkpoint: Path | None = None,
) -> dict[str, Course]:
    """Trains what is new in every child, in place, as `train_plant` would with this seed: on the
    same batches, with the same loss and optimiser, to the same values but for the order of sums.

    `children` are the candidates of a round as `plant` makes them; how one is trained does not
    depend on the others. The parent's activations are kept where the images stay the same and
    `memory` bytes allow it, otherwise computed batch by batch, once for all candidates, as are the
    teacher's logits if `teacher` is a network. A training taken up from `checkpoint` goes on as if
    it had not stopped. A candidate whose loss is no longer a number is given up: see its `Course`.
    """
    if recipe.ema is not None:
        raise ValueError(f"a round of planting keeps no moving average: ema {recipe.ema}, not null")
    split = training_images(split, recipe, teacher)
    frozen = copy.deepcopy(parent).eval().requires_grad_(False)
    # The parent's alone, whatever its widths: it must not depend on who else is in the round.
    layout = layout_of(frozen, fewest=math.inf)
    frozen.to(memory_format=layout)
    students = {name: _Student(child, frozen, recipe, layout) for name, child in children.items()}
    began = _take_up(checkpoint, students)
    wanted = {at for student in students.values() for at in student.candidate.wanted}
    kept = Activations(frozen, split, wanted, 0 if recipe.augment.changes() else memory, layout)
    saved_at = time.monotonic()
    device = split.labels.device
    for epoch in range(began, recipe.epochs):
        started = time.monotonic()
        parts, generator = batch_order(split, recipe, seed, epoch)
        for i, index in enumerate(parts):
            batch = Batch(split.images[:0], split.labels[index], None)
            if kept.missing or isinstance(teacher, nn.Module):
                batch = make_batch(split, index, recipe.augment, generator, teacher, layout)
            elif teacher is not None:
                batch = batch._replace(teacher=teacher[index])
            found = kept.of(index, batch.images)
            for student in students.values():
                with student.drawing(mix_seed(seed, epoch * len(parts) + i), device):
                    student.step(found, batch, loss, recipe.lr_at(epoch + i / len(parts)))
        for student in students.values():
            student.end_epoch(epoch, recipe, sum(map(len, parts)), time.monotonic() - started)
        due = time.monotonic() - saved_at > _CHECKPOINT_EVERY_S
        if checkpoint is not None and due and epoch + 1 < recipe.epochs:
            state = {name: student.state() for name, student in students.items()}
            write_training(checkpoint, {"epoch": epoch + 1, "students": state})
            saved_at = time.monotonic()
    for name, student in students.items():
        student.candidate.write(children[name])
        children[name].to(memory_format=torch.contiguous_format)
    return {name: student.course for name, student in students.items()}


class _Student:
    """A candidate while it is trained."""

    def __init__(
        self, child: nn.Module, parent: nn.Module, recipe: Recipe, layout: torch.memory_format
    ) -> None:
        self.candidate = candidate_of(child, parent).to(memory_format=layout)
        self.course = Course()
        self._optimizer = make_optimizer(self.candidate, recipe)
        self._total: Tensor | float = 0.0
        self._macs = 0.0

    def drawing(self, seed: int, device: torch.device) -> AbstractContextManager[None]:
        """Within it a candidate with dropout draws from the step's seed, not from what others left
        of their draws."""
        if not _draws(self.candidate):
            return nullcontext()
        return _drawing(seed, [device] if device.type == "cuda" else [])

    def step(self, found: Mapping[int, Tensor], batch: Batch, loss: Loss, lr: float) -> None:
        if self.course.error is not None:
            return
        began = time.perf_counter()
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        try:
            self._step(found, batch, loss)
        except RuntimeError as error:  # torch's, of memory or of shapes: the others go on
            self.course.error = f"{type(error).__name__}: {error}"
        self.course.seconds += time.perf_counter() - began

    def _step(self, found: Mapping[int, Tensor], batch: Batch, loss: Loss) -> None:
        self._optimizer.zero_grad()
        # Batches are of one size but for an image: what one step costs, all do.
        with nullcontext() if self._macs else FlopCounterMode(display=False) as counter:
            value = loss(self.candidate.train()(found), batch.labels, batch.teacher)
            value.backward()  # type: ignore[no-untyped-call]
        if counter is not None:
            self._macs = counter.get_total_flops() / (2 * len(batch.labels))
        self._optimizer.step()
        self.course.macs += round(self._macs * len(batch.labels))
        self._total = self._total + value.detach() * len(batch.labels)

    def end_epoch(self, epoch: int, recipe: Recipe, images: int, seconds: float) -> None:
        mean = float(self._total) / images
        self._total = 0.0
        if self.course.error is None and not math.isfinite(mean):
            self.course.error = (
                f"FloatingPointError: training loss became {mean} in epoch {epoch + 1} of "
                f"{recipe.epochs}; a lower lr than {recipe.lr} may help"
            )
        if self.course.error is None:
            self.course.epochs.append(Epoch(epoch + 1, mean, recipe.lr_at(epoch), seconds))

    def state(self) -> dict[str, Any]:
        return {
            "candidate": self.candidate.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "epochs": [list(epoch) for epoch in self.course.epochs],
            "error": self.course.error,
            "macs": self.course.macs,
        }

    def take_up(self, state: Mapping[str, Any]) -> None:
        self.candidate.load_state_dict(state["candidate"])
        self._optimizer.load_state_dict(state["optimizer"])
        lay_out_moments_(self._optimizer)
        self.course.epochs = [Epoch(*epoch) for epoch in state["epochs"]]
        self.course.error = state["error"]
        self.course.macs = state["macs"]


@contextmanager
def _drawing(seed: int, devices: list[torch.device]) -> Iterator[None]:
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _take_up(checkpoint: Path | None, students: Mapping[str, _Student]) -> int:
    """Loads the checkpoint of a round of these candidates; the number of epochs that are done."""
    state = read_training(checkpoint) if checkpoint is not None else None
    if state is None:
        return 0
    shapes = {
        name: (kept["candidate"], students[name].candidate.state_dict())
        for name, kept in state["students"].items()
        if name in students
    }
    if len(shapes) != len(students) or any(
        [tensor.shape for tensor in a.values()] != [tensor.shape for tensor in b.values()]
        for a, b in shapes.values()
    ):
        # Dealt out otherwise before: another number of workers.
        log.warning("%s is of other candidates; the round starts afresh", checkpoint)
        return 0
    for name, student in students.items():
        student.take_up(state["students"][name])
    log.info("round taken up after epoch %d", state["epoch"])
    return int(state["epoch"])


class Contribution(nn.Module):
    """The planted channels of a child, trained beside the frozen parent: logits from the parent's
    input of the planted layer and its pre-activation at the reader."""

    def __init__(self, child: nn.Module, parent: nn.Module, first: int, reader: int) -> None:
        super().__init__()
        old, new = steps_of(parent), steps_of(child)
        self.wanted = (first, reader + 1)
        self._names = [name for name, _ in new[first : reader + 1]]
        self.planted = nn.Sequential(
            *(
                _new_part(new[at][1], old[at][1], reader=at == reader)
                for at in range(first, reader + 1)
            )
        )
        # The parent's own, frozen: all candidates share it.
        self.rest = nn.Sequential(*(module for _, module in old[reader + 1 :]))

    def train(self, mode: bool = True) -> Contribution:
        super().train(mode)
        self.rest.eval()  # the parent's: its statistics stay
        return self

    def forward(self, found: Mapping[int, Tensor]) -> Tensor:
        inputs, joint = (found[at] for at in self.wanted)
        logits: Tensor = self.rest(joint + self.planted(inputs))
        return logits

    def write(self, child: nn.Module) -> None:
        """Puts what was trained into the child."""
        for name, part in zip(self._names, self.planted, strict=True):
            state = child.get_submodule(name).state_dict()
            for leaf, tensor in part.state_dict().items():
                if tensor.dim():
                    whole = state[leaf]
                    # New ones stand last, along the one axis in which the child is wider.
                    new = tuple(
                        slice(w - n, None) for w, n in zip(whole.shape, tensor.shape, strict=True)
                    )
                    whole[new] = tensor


class Suffix(nn.Module):
    """All of a child from its first widened part on, frozen but for what is new."""

    def __init__(self, child: nn.Module, parent: nn.Module, first: int) -> None:
        super().__init__()
        self.wanted = (first,)
        self._child = [freeze_inherited_(child, parent)]  # in a list: its prefix is not ours
        self.part = nn.Sequential(*(module for _, module in steps_of(child)[first:]))

    def forward(self, found: Mapping[int, Tensor]) -> Tensor:
        inputs = found[self.wanted[0]]
        # Other candidates read the same tensor.
        logits: Tensor = self.part(inputs.clone() if overwrites(self.part) else inputs)
        return logits

    def write(self, child: nn.Module) -> None:
        """Makes the child a plain network again."""
        thaw_(child)


def candidate_of(child: nn.Module, parent: nn.Module) -> Contribution | Suffix:
    """How a child is computed from its parent's activations. Raises ValueError where nothing is new
    or a batch norm keeps no statistics."""
    check_norms(child)
    old, new = steps_of(parent), steps_of(child)
    changed = [
        at
        for at, ((_, a), (_, b)) in enumerate(zip(old, new, strict=True))
        if [t.shape for t in a.state_dict().values()] != [t.shape for t in b.state_dict().values()]
    ]
    if not changed:
        raise ValueError("nothing was planted: the child is as wide as its parent")
    drawn = [at for at, (_, module) in enumerate(new) if _draws(module)]
    first, reader = changed[0], changed[-1]
    if drawn:
        # What dropout leaves differs from step to step, also in the frozen part.
        return Suffix(child, parent, min(first, drawn[0]))
    between = [module for _, module in new[first + 1 : reader]]
    if (
        first < reader
        and _is_plain(new[first][1])
        and _is_plain(new[reader][1])
        and all(isinstance(m, (*_CHANNELWISE, _BatchNorm)) or _is_depthwise(m) for m in between)
    ):
        return Contribution(child, parent, first, reader)
    return Suffix(child, parent, first)


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels
    )


def _draws(module: nn.Module) -> bool:
    return any(
        (isinstance(m, _DROPOUTS) and m.p > 0)
        or isinstance(m, nn.RReLU)
        or type(m).__name__ == "StochasticDepth"  # torchvision's, which is not imported for it
        for m in module.modules()
    )


def _new_part(module: nn.Module, old: nn.Module, *, reader: bool) -> nn.Module:
    """A widened module with its new channels alone; of a reader its new inputs, without bias."""
    part = copy.deepcopy(module)
    for name, tensor in module.state_dict().items():
        before = old.state_dict()[name]
        if reader and name == "bias":
            part.register_parameter("bias", None)
        elif tensor.shape != before.shape:
            new = tuple(
                slice(b if a != b else 0, None)
                for a, b in zip(tensor.shape, before.shape, strict=True)
            )
            _set(part, name, tensor[new].clone())
    if isinstance(part, nn.Conv2d):
        part.out_channels, part.in_channels = part.weight.shape[0], part.weight.shape[1]
        if _is_depthwise(module):
            part.groups = part.in_channels = part.out_channels
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif isinstance(part, _BatchNorm) and part.running_mean is not None:
        part.num_features = len(part.running_mean)
        if part.num_batches_tracked is not None:
            part.num_batches_tracked.zero_()  # those of its own channels
    return part


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(tensor)
    else:
        module._buffers[name] = tensor
