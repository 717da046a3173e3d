"""The memory that the processes of a group share where all are on one computer: how they find it.

What they add up they then read from each other's places (csrc/cpu/shared_group.h), instead of sending it through
sockets. It is memory without a name, so that nothing is left of it whichever way the processes end.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastgan import backend

__all__ = ["MOST_PROCESSES", "share"]

# Each reads the places of all, so that what is read grows with their number, where sums that are sent do not.
MOST_PROCESSES = 8


def share(
    gather: Callable[[Any], list[Any]], rank: int, size: int, bytes: int, patience: float, is_wanted: bool = True
) -> Any:
    """Open the memory of a group, or none on any of its processes. Every process must call it.

    Args:
        gather: gives a picklable value of each process, in the order of their ranks, on every one.
        rank: of this process.
        size: of the group.
        bytes: that each hands in at most.
        patience: seconds that one waits for another.
        is_wanted: whether this process can do with it.

    Returns:
        The SharedGroup of the compiled module, or None.
    """
    is_possible = is_wanted and 1 < size <= MOST_PROCESSES and _can_share()
    kinds = gather((_place() if is_possible else None, bytes))
    if kinds[0][0] is None or any(kind != kinds[0] for kind in kinds):
        return None
    group, token = None, secrets.randbits(63)
    if rank == 0:
        group = _opened("", token, rank, size, bytes, patience)
    path, token = gather((None if group is None else group.path, token))[0]
    if rank > 0 and path is not None:
        group = _opened(path, token, rank, size, bytes, patience)
    are_there = all(gather(group is not None))
    is_watched = are_there and _is_watched(group)
    return group if all(gather(is_watched)) else None


def _can_share() -> bool:
    return backend.module is not None and hasattr(backend.module, "SharedGroup") and backend.module.SharedGroup.exists()


def _place() -> tuple[str, str] | None:
    """The computer, since it was started, and the numbers by which its processes know each other; None where that is
    not to be found out."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")
    return None


def _opened(path: str, token: int, rank: int, size: int, bytes: int, patience: float) -> Any:
    with contextlib.suppress(RuntimeError):
        return backend.module.SharedGroup(path, token, rank, size, bytes, patience)
    return None


def _is_watched(group: Any) -> bool:
    with contextlib.suppress(RuntimeError):
        group.watch()
        return True
    return False
