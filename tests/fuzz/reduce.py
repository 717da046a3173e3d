"""Replays of an example in a process of its own, and the smallest example that still shows a fault."""

from __future__ import annotations

import copy
import faulthandler
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .example import REFUSALS, Example, Fault

Statements = list[tuple[str, int]]


def in_child(work: Callable[[], str], seconds: float) -> str:
    """What `work` returns in a forked process; "killed by ..." where it dies, "hangs" where it takes too long."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            faulthandler.disable()
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 2)
            os.write(writing, work().encode()[:4000])
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    told = b""
    until = time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reading)
            return "hangs"
        part = os.read(reading, 4096)
        if not part:
            break
        told += part
    os.close(reading)
    status = os.waitpid(child, 0)[1]
    return ended(status) or told.decode()


def ended(status: int) -> str:
    """How a process died, by its wait status."""
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exited with {os.WEXITSTATUS(status)}" if os.WEXITSTATUS(status) else ""


def told(
    description: dict[str, Any],
    statements: Statements,
    backend: str,
    without: Sequence[str] = (),
    log: list[str] | None = None,
) -> str:
    """The message of the fault of an example, run here; "" where there is none, or torch refuses to build it."""
    try:
        example = Example(description, backend, None, without).__enter__()
    except REFUSALS:
        return ""
    try:
        for name, number in statements:
            example.run(name, number)
    except Fault as fault:
        return str(fault)
    except Exception as error:
        return f"the fuzzer itself: {type(error).__name__}: {error} in {traceback.extract_tb(error.__traceback__)[-1]}"
    finally:
        example.__exit__(None, None, None)
        if log is not None:
            log += example.log
    return ""


def replay(
    description: dict[str, Any],
    statements: Statements,
    backend: str,
    without: Sequence[str] = (),
    seconds: float = 60.0,
) -> str:
    """As `told`, in a process of its own."""
    message = in_child(lambda: told(description, statements, backend, without) or "no fault", seconds)
    return "" if message == "no fault" else message


def words(description: dict[str, Any], statements: Statements, backend: str, without: Sequence[str] = ()) -> str:
    """What the statements did, up to the last that returned."""

    def work() -> str:
        log: list[str] = []
        told(description, statements, backend, without, log)
        return " | ".join(log) or "nothing"

    return in_child(work, 60.0)


def kind_of(message: str) -> str:
    """A message without its numbers and paths: what two examples of one fault have in common."""
    message = re.sub(r"\b(G|D|EMA)\.[\w.\[\]]*", "T", message)
    message = re.sub(r"[gd]_optimizer(\.param_groups)?", "optimizer", message)
    return re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?|\b(nan|inf)\b", "N", message)


def smaller(description: dict[str, Any], statements: Statements) -> Iterator[tuple[dict[str, Any], Statements]]:
    """Simpler examples, the boldest first."""
    size = len(statements)
    while size >= 1:
        for start in range(0, len(statements) - size + 1, size):
            yield description, statements[:start] + statements[start + size :]
        size //= 2
    if description:
        yield {}, statements
        yield {"seed": description.get("seed", 0)}, statements
    for key in description:
        yield {k: v for k, v in description.items() if k in (key, "seed")}, statements
    for key, value in description.items():
        yield {k: v for k, v in description.items() if k != key}, statements
        if isinstance(value, dict):
            for inner in value:
                yield {**description, key: {k: v for k, v in value.items() if k != inner}}, statements
        elif isinstance(value, list):
            for i in range(len(value)):
                yield {**description, key: value[:i] + value[i + 1 :]}, statements


def reduced(
    description: dict[str, Any],
    statements: Statements,
    backend: str,
    without: Sequence[str],
    message: str,
    seconds: float,
) -> tuple[dict[str, Any], Statements, str]:
    """The smallest example found in some time that shows a fault of the same kind, and its message."""
    kind, until = kind_of(message), time.monotonic() + seconds
    best = (copy.deepcopy(description), list(statements), message)
    while True:
        for candidate in smaller(*best[:2]):
            if time.monotonic() > until:
                return best
            if candidate == best[:2]:
                continue
            got = replay(*candidate, backend, without, 20.0)
            if got and kind_of(got) == kind:
                best = (*candidate, got)
                break
        else:
            return best
