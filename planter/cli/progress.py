"""A search as it goes: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from planter.driver.progress import Progress as Standing
from planter.front.objectives import OBJECTIVES, metric_merit
from planter.study.quantities import duration


class ProgressDisplay:
    """Shows each `Standing` a search reports; use as a context and pass `show` to `search`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Progress | None = None
        if console.is_terminal:
            self._live = Progress(
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            self._task = self._live.add_task("", total=None)

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, now: Standing) -> None:
        """Prints what happened; on a terminal also brings the live line up to date."""
        total = now.done + now.left
        if self._live is None:
            if now.kind != "start":
                self._console.print(
                    f"[{now.done}/{total}] {now.event}{_tail(now)}", markup=False, soft_wrap=True
                )
            return
        self._live.start()  # not before: images that are decoded have a bar of their own
        if now.kind != "start":
            self._live.console.print(escape(now.event))
        running = f"running {', '.join(now.running)}" if now.running else escape(now.event)
        failed = f", [red]{now.failed} failed[/red]" if now.failed else ""
        self._live.update(
            self._task,
            total=total,
            completed=now.done,
            description=f"{now.done} done{failed}, {running}{_tail(now)}",
        )


def _tail(now: Standing) -> str:
    parts = []
    if now.front:
        best = max(now.front, key=lambda p: metric_merit(p.values, now.objectives))
        metric = now.objectives[0]
        reached = OBJECTIVES[metric].text(best.values[metric])
        parts.append(f"front {len(now.front)}, best {reached} ({best.id})")
        parts.append(f"hypervolume {now.hypervolume:.3f}")
    if now.seconds_left is not None and now.left:
        parts.append(f"about {duration(now.seconds_left)} left")
    return "".join(f"; {part}" for part in parts)
