"""A search as it goes: live lines on a terminal, plain ones elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from planter.front.objectives import OBJECTIVES, metric_merit
from planter.study.quantities import duration

if TYPE_CHECKING:
    from planter.driver.progress import Progress
    from planter.driver.run_folder.watched import Training
    from planter.front.points import Point

_BAR, _SHORTEST = 20, 6
_LOOKS_EVERY_S = 1.0
_TOLD_EVERY_S = 30.0
"""Between two plain lines of a training: logs are read later, and kept."""


class Standing(Protocol):
    """Where a search stands: what `Progress` and `Watched` have in common."""

    @property
    def done(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def left(self) -> int: ...
    @property
    def seconds_left(self) -> float | None: ...
    @property
    def front(self) -> Sequence[Point]: ...
    @property
    def objectives(self) -> Sequence[str]: ...
    @property
    def hypervolume(self) -> float | None: ...


class Picture:
    """A search on a terminal, under its head line: what must not be cut stands first in its line,
    and lines wrap between parts. Without `left`, the time to its end is not told."""

    def __init__(
        self,
        now: Standing,
        trainings: Sequence[Training],
        head: str | None = None,
        *,
        left: bool = True,
        began: float | None = None,
    ) -> None:
        self._now, self._trainings, self._head = now, trainings, head
        self._left, self._began = left, began

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._head:
            yield Text(self._head, style="bold")
        now, trainings = self._now, self._trainings
        if total := now.done + now.left:
            told = count(now, left=self._left, began=self._began)
            length = min(max(options.max_width - len(told) - 1, _SHORTEST), _BAR)
            filled = round(length * now.done / total)
            bar = [("━" * filled, "green"), ("━" * (length - filled), "bright_black")]
            yield Text.assemble(*bar, f" {told}")
        ids = max((len(training.trial) for training in trainings), default=0)
        for training in trainings:
            first, *more = training_words(training, now.objectives[0])
            line = f"  {first:{ids}}"
            for part in more:
                if len(line) + 2 + len(part) > options.max_width:
                    yield Text(line)
                    line = "  "
                line += f"  {part}"
            yield Text(line)
        for told in found_words(now):
            yield Text(told)


def count(now: Standing, *, left: bool = True, began: float | None = None) -> str:
    """How many trainings are done of how many, and the time that has gone and is left."""
    told = f"{now.done}/{now.done + now.left} done"
    if now.failed:
        told += f", {now.failed} failed"
    if began is not None:
        told += f", {timedelta(seconds=int(time.monotonic() - began))}"
    if left and now.seconds_left is not None and now.left:
        told += f", about {duration(now.seconds_left)} left"
    return told


def training_words(training: Training, metric: str) -> list[str]:
    """A running training: its id, epochs, loss, validation and time to its end."""
    if not training.epoch:
        return [training.trial, "starting"]
    of = f"/{training.epochs}" if training.epochs >= training.epoch else ""
    told = [training.trial, f"epoch {training.epoch}{of}"]
    if training.loss is not None:
        told.append(f"loss {training.loss:.4f}")
    if training.validation is not None:
        told.append(f"val {OBJECTIVES[metric].text(training.validation)}")
    if training.seconds_left:
        told.append(f"{duration(training.seconds_left)} left")
    return told


def found_words(now: Standing) -> list[str]:
    """What has been found so far."""
    if not now.front:
        return ["nothing on the front yet"]
    best = max(now.front, key=lambda point: metric_merit(point.values, now.objectives))
    metric = now.objectives[0]
    reached = OBJECTIVES[metric].text(best.values[metric])
    told = [f"front {len(now.front)}, best {reached} ({best.id})"]
    if now.hypervolume is not None:
        told.append(f"hypervolume {now.hypervolume:.3f}")
    return told


class ProgressDisplay:
    """Shows each `Progress` a search in the folder `run` reports, and in between the epochs of what
    trains there; use as a context and pass `show` to `search`."""

    def __init__(self, console: Console, run: Path) -> None:
        self._console, self._run = console, run
        self._now: Progress | None = None
        self._began = time.monotonic()
        self._trainings: list[Training] = []
        self._looked = 0.0
        self._told: dict[str, int] = {}
        self._ended = threading.Event()
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(
                get_renderable=self._picture,
                console=console,
                refresh_per_second=2,
                transient=True,
            )
        else:
            # The search may train in this very thread.
            self._teller = threading.Thread(target=self._tell_epochs, daemon=True)
            self._teller.start()

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._live is not None:
            self._live.stop()
        else:
            self._teller.join()

    def show(self, now: Progress) -> None:
        """Prints what happened; on a terminal also brings the live lines up to date."""
        self._now, self._looked = now, 0.0
        if self._live is None:
            if now.kind != "start":
                parts = [now.event, *(found_words(now) if now.front else [])]
                if now.seconds_left is not None and now.left:
                    parts.append(f"about {duration(now.seconds_left)} left")
                self._print(f"[{now.done}/{now.done + now.left}] {'; '.join(parts)}")
            return
        self._live.start()  # not before: images that are decoded have a bar of their own
        if now.kind != "start":
            self._console.print(escape(now.event))

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def _look(self) -> list[Training]:
        """The running trainings, as their logs say not long ago."""
        from planter.driver.run_folder.watched import training_of

        if (now := self._now) is None:
            return []
        if time.monotonic() - self._looked > _LOOKS_EVERY_S:
            self._looked, metric = time.monotonic(), now.objectives[0]
            self._trainings = [
                training_of(self._run, trial, most, metric) for trial, most in now.epochs.items()
            ]
        return self._trainings

    def _picture(self) -> Picture | Text:
        if self._now is None:
            return Text("")
        head = None if self._now.running or self._now.kind != "start" else self._now.event
        return Picture(self._now, self._look(), head, began=self._began)

    def _tell_epochs(self) -> None:
        while not self._ended.wait(_TOLD_EVERY_S):
            for training in self._look():
                if (now := self._now) and training.epoch > self._told.get(training.trial, 0):
                    self._told[training.trial] = training.epoch
                    told = "  ".join(training_words(training, now.objectives[0]))
                    self._print(f"[{now.done}/{now.done + now.left}] {told}")
