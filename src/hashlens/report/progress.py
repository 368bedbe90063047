"""Progress of long work on standard error: a bar with its rate and the time left."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def say(console: Console, line: str, style: str | None = None) -> None:
    """Print a line as it is: neither wrapped nor coloured by what stands in it."""
    console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def working(what: str) -> AbstractContextManager[object]:
    """Show on a terminal that something is being done, while the block runs."""
    from rich.console import Console

    return Console(stderr=True).status(what)


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """A bar for ``total`` steps (None: not known), shown from now until it is closed.

    It is a context manager, and a callable that takes the number of steps done since the last
    call. ``done`` steps are filled at the start. The rate counts ``per_step`` units in each step.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        *,
        done: int = 0,
        unit: str = "",
        console: Console | None = None,
        hidden: bool = False,
    ) -> None:
        from rich import progress
        from rich.console import Console
        from rich.text import Text

        self.per_step = 1
        bar = self

        class Rate(progress.ProgressColumn):
            def render(self, task: progress.Task) -> Text:
                speed = bar.per_step * (task.finished_speed or task.speed or 0)
                return Text(f"{speed:,.0f}{unit and ' '}{unit}/s" if speed else "")

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            Rate(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=console or Console(stderr=True),
            disable=hidden,
        )
        self._task = self._bar.add_task(what, total=total, completed=done)
        self._bar.start()

    def __call__(self, steps: int = 1) -> None:
        self._bar.advance(self._task, steps)

    def reach(self, done: int, total: int) -> None:
        """Say how many steps of how many are done."""
        self._bar.update(self._task, completed=done, total=total)

    def rename(self, what: str) -> None:
        """Change the text in front of the bar."""
        self._bar.update(self._task, description=what)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        say(self._bar.console, line)

    def close(self) -> None:
        """Stop drawing; the bar stays on the screen as it is, if there was something to do."""
        self._bar.update(self._task, visible=self._bar.tasks[self._task].total is not None)
        self._bar.stop()

    def __exit__(self, *error: Any) -> None:
        self.close()
