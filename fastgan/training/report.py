"""What a run tells its user: a progress bar on a terminal, plain lines elsewhere, lines in log.txt."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fastgan.output import is_terminal, printable, say
from fastgan.training.run_folder import RunFolder


class Reporter:
    """Prints a run's progress; a context manager, because the progress bar has to be closed."""

    def __init__(self, run: RunFolder, step: int, steps: int, quiet: bool = False, writes: bool = True) -> None:
        """Report steps from `step` to `steps`; a quiet one writes log.txt alone, one that does not write nothing."""
        self._run, self._quiet, self._writes = run, quiet, writes
        self._live: Live | None = None
        if not quiet and is_terminal():
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TimeRemainingColumn(),
                expand=True,
            )
            self._task = self._progress.add_task("", total=steps, completed=step)
            self._status = Text()
            # The statistics on a line of their own: beside the bar they would not fit into 80 columns.
            self._live = Live(Group(self._progress, self._status), console=Console(highlight=False))

    def __enter__(self) -> Reporter:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def line(self, text: str) -> None:
        """A line for the user and for log.txt."""
        if self._writes:
            self._run.log(text)
        if self._live:
            console = self._live.console
            console.print(printable(text, console.encoding), markup=False, soft_wrap=True)
        elif not self._quiet:
            say(text)

    def table(self, names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A small table for the user and for log.txt."""
        table = Table(*names, box=None, header_style="bold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        text = io.StringIO()
        Console(file=text, width=100, highlight=False).print(table)
        for line in text.getvalue().splitlines():
            self.line(line.rstrip())

    def row(self, row: Mapping[str, Any]) -> None:
        """The statistics of a log interval, a row of metrics.jsonl."""
        status = (
            f"D loss {row['d_loss']:.3f}  G loss {row['g_loss']:.3f}  D(x) {row['real_score']:.2f}  "
            f"D(G(z)) {row['fake_score']:.2f}  {row['samples_per_second']:,.0f} samples/s"
        )
        line = f"step {row['step']:>6}  {status}"
        if self._live:
            if self._writes:
                self._run.log(line)
            self._progress.update(self._task, completed=row["step"])
            self._status.plain = status
        else:
            self.line(line)


class StopSignals:
    """Turns SIGINT (Ctrl-C) and SIGTERM into a request that the training loop honours between two steps.

    A second signal acts as if nothing were in its way. Outside the main thread, where Python forbids
    handlers, signals are left as they are.

    Attributes:
        received: the signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            # None stands for a handler that was not installed from Python and cannot be put back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
