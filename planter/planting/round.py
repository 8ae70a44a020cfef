"""A round of planting in which what is frozen is computed once for all candidates.

One pass of the parent over the images feeds every candidate; a step of a candidate computes the
planted channels, their contribution, and the frozen rest behind their reader (contribution.py).
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from planter.data import Split
from planter.networks.checkpoint import keep_training, read_training
from planter.planting.activations import MEMORY_BYTES, Activations
from planter.planting.contribution import candidate_of, draws
from planter.planting.crew import crew
from planter.training.batches import (
    Batch,
    batch_order,
    class_count,
    layout_of,
    make_batch,
    mix_seed,
    split_batch,
    training_images,
)
from planter.training.class_weights import relative_weights
from planter.training.loop import Epoch, PausedError, lay_out_moments_
from planter.training.recipe import Recipe, make_optimizer
from planter.training.step import Part, shares, take_step

log = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From logits `[batch, classes]`, labels and the teacher's logits, as in a `Batch`, to a number."""

_CHECKPOINT_EVERY_S = 10.0


@dataclass
class CandidateResult:
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
    pause: Callable[[], bool] = lambda: False,
    on_epoch: Callable[[str, Epoch], None] = lambda name, epoch: None,
) -> dict[str, CandidateResult]:
    """Trains what is new in every child, in place, as `train_plant` would with this seed: on the
    same batches, with the same loss and optimiser, to the same values but for the order of sums.

    `children` are the candidates of a round as `plant` makes them; how one is trained does not
    depend on the others. The parent's activations are kept where the images stay the same and
    `memory` bytes allow it, otherwise computed batch by batch, once for all candidates, as are the
    teacher's logits if `teacher` is a network. A training taken up from `checkpoint` goes on as if
    it had not stopped; `pause` may end it at one, as it does `fit`. A candidate whose loss is no
    longer a number is given up: see its `CandidateResult`. `on_epoch` is told of each epoch of
    those that are not, by their name.
    """
    if refused := refused_of_round(recipe):
        raise ValueError(refused)
    split = training_images(split, recipe, teacher)
    weights = relative_weights(recipe, split.labels)
    frozen = copy.deepcopy(parent).eval().requires_grad_(False)
    # The parent's alone, whatever its widths: it must not depend on who else is in the round.
    layout = layout_of(frozen, fewest=math.inf)
    frozen.to(memory_format=layout)
    students = {
        name: _Student(child, frozen, recipe, layout, weights) for name, child in children.items()
    }
    began = _take_up(checkpoint, students)
    wanted = {at for student in students.values() for at in student.candidate.wanted}
    classes = class_count(split)
    kept = Activations(frozen, split, wanted, 0 if recipe.augment.changes() else memory, layout)
    saved_at = time.monotonic()
    members = [partial(student.step, kept, loss) for student in students.values()]
    with crew(members, _threads(students.values(), split.labels.device)) as hands:
        for epoch in range(began, recipe.epochs):
            started = time.monotonic()
            parts, generator = batch_order(split, recipe, seed, epoch)
            for i, index in enumerate(parts):
                batch = Batch(split.batch(index[:0]), split.labels[index], None)
                if kept.missing or isinstance(teacher, nn.Module):
                    batch = make_batch(
                        split,
                        index,
                        recipe.augment,
                        generator,
                        teacher,
                        layout,
                        classes=classes,
                        parts=recipe.accumulate,
                    )
                elif teacher is not None:
                    batch = batch._replace(teacher=teacher[index])
                turn = _Turn(
                    index,
                    batch,
                    kept.computed(batch.images),
                    lr=recipe.lr_at(epoch + i / len(parts)),
                    seed=mix_seed(seed, epoch * len(parts) + i),
                )
                if epoch == began and i == 0:
                    for member in members:  # multiply-adds are counted by hooks of the process
                        member(turn)
                else:
                    hands.hand_out(turn)
            hands.finish()
            for name, student in students.items():
                student.end_epoch(epoch, recipe, sum(map(len, parts)), time.monotonic() - started)
                if student.result.error is None:
                    on_epoch(name, student.result.epochs[-1])
            pausing = checkpoint is not None and epoch + 1 < recipe.epochs and pause()
            due = pausing or time.monotonic() - saved_at > _CHECKPOINT_EVERY_S
            if checkpoint is not None and due and epoch + 1 < recipe.epochs:
                state = {name: student.state() for name, student in students.items()}
                keep_training(checkpoint, {"epoch": epoch + 1, "students": state})
                saved_at = time.monotonic()
            if pausing:
                raise PausedError(epoch + 1, recipe.epochs)
    for name, student in students.items():
        student.candidate.write(children[name])
        children[name].to(memory_format=torch.contiguous_format)
    return {name: student.result for name, student in students.items()}


def refused_of_round(recipe: Recipe) -> str | None:
    """What of a recipe a round of planting cannot do, in words: its candidates, which share their
    batches, train for the same epochs and are scored once, at its end."""
    if recipe.ema is not None:
        return f"a round of planting keeps no moving average: ema {recipe.ema}, not null"
    for key in ("patience", "validate_every"):
        if (value := getattr(recipe, key)) is not None:
            told = "a round of planting scores its candidates when it has ended"
            return f"{told}: {key} {value}, not null"
    for key, value, plain in (
        ("precision", recipe.precision, "float32"),
        ("compile", recipe.compile, False),
    ):
        if value != plain:
            told = "a round of planting computes the new channels beside those that are frozen"
            return f"{told}, in float32 and as they are: {key} {value}, not {str(plain).lower()}"
    return None


@dataclass(frozen=True)
class _Turn:
    """One batch, for all candidates: its images' places in the split, labels and teacher's logits,
    the parent's steps that are not kept, the rate, and the seed of what is drawn."""

    index: Tensor
    batch: Batch
    computed: Mapping[int, Tensor]
    lr: float
    seed: int


class _Student:
    """A candidate while it is trained."""

    def __init__(
        self,
        child: nn.Module,
        parent: nn.Module,
        recipe: Recipe,
        layout: torch.memory_format,
        weights: Tensor | None,
    ) -> None:
        self.candidate = candidate_of(child, parent).to(memory_format=layout)
        self.result = CandidateResult()
        self.draws = draws(self.candidate)
        self._optimizer = make_optimizer(self.candidate, recipe)
        self._recipe, self._weights = recipe, weights
        self._total: Tensor | float = 0.0
        self.macs = 0.0

    def step(self, kept: Activations, loss: Loss, turn: _Turn) -> None:
        if self.result.error is not None:
            return
        began = time.perf_counter()
        # A candidate with dropout draws from the step's seed, not from what others left of theirs.
        drawing = _drawing(turn.seed, turn.index.device) if self.draws else nullcontext()
        try:
            with drawing:
                found = kept.of(turn.index, self.candidate.wanted, turn.computed)
                self._step(found, turn.batch, loss, turn.lr)
        except RuntimeError as error:  # torch's, of memory or of shapes: the others go on
            self.result.error = f"{type(error).__name__}: {error}"
        self.result.seconds += time.perf_counter() - began

    def _step(self, found: Mapping[int, Tensor], batch: Batch, loss: Loss, lr: float) -> None:
        def of_part(part: Batch, known: Mapping[int, Tensor]) -> Tensor:
            return loss(self.candidate.train()(known), part.labels, part.teacher)

        batches = split_batch(batch, self._recipe.accumulate)
        split = {at: tensor.tensor_split(len(batches)) for at, tensor in found.items()}
        counted = [1.0]
        if len(batches) > 1:
            counted = shares([part.labels for part in batches], self._weights)
        parts = [
            Part(partial(of_part, part, {at: some[i] for at, some in split.items()}), counted[i])
            for i, part in enumerate(batches)
        ]
        # Batches are of one size but for an image: what one step costs, all do.
        with nullcontext() if self.macs else FlopCounterMode(display=False) as counter:
            mean = take_step(
                self.candidate,
                self._optimizer,
                parts,
                lr=lr,
                expanded=False,
                clip_grad=self._recipe.clip_grad,
            )
        if counter is not None:
            self.macs = counter.get_total_flops() / (2 * len(batch.labels))
        self.result.macs += round(self.macs * len(batch.labels))
        self._total = self._total + mean * len(batch.labels)

    def end_epoch(self, epoch: int, recipe: Recipe, images: int, seconds: float) -> None:
        mean = float(self._total) / images
        self._total = 0.0
        if self.result.error is None and not math.isfinite(mean):
            self.result.error = (
                f"FloatingPointError: training loss became {mean} in epoch {epoch + 1} of "
                f"{recipe.epochs}; a lower lr than {recipe.lr} may help"
            )
        if self.result.error is None:
            self.result.epochs.append(Epoch(epoch + 1, mean, recipe.lr_at(epoch), seconds))

    def state(self) -> dict[str, Any]:
        return {
            "candidate": self.candidate.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "epochs": [list(epoch) for epoch in self.result.epochs],
            "error": self.result.error,
            "macs": self.result.macs,
        }

    def take_up(self, state: Mapping[str, Any]) -> None:
        self.candidate.load_state_dict(state["candidate"])
        self._optimizer.load_state_dict(state["optimizer"])
        lay_out_moments_(self._optimizer)
        self.result.epochs = [Epoch(*epoch) for epoch in state["epochs"]]
        self.result.error = state["error"]
        self.result.macs = state["macs"]


@contextmanager
def _drawing(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _threads(students: Collection[_Student], device: torch.device) -> int:
    """How many candidates are trained side by side: on the CPU as many as there are cores, which
    leaves fewer of them waiting than small steps that share them. One where a candidate draws
    random numbers: their state is the process's."""
    if device.type != "cpu" or any(student.draws for student in students):
        return 1
    return min(torch.get_num_threads(), len(students))


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
