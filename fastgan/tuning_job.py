"""The same choice on every process of a job of torch.distributed.

A collective would wait for ever where only some of the processes step. Instead the job's own store decides: who first
asks for a signature claims it, finds a choice, and puts it there; the others wait for that, and where it takes too long
put the default there. What is in the store once, by an atomic exchange, is what every process takes.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import torch.distributed

_PATIENCE = 30.0  # seconds: timing takes 2, and the first step of a process may load libraries for as long as 20
_POLL = 0.02
_CLAIM = "claimed by "


def agreed(signature: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `find` gives or, in a job of several processes, what it gave the first of them.

    Args:
        signature: of the step; those who ask for the same take the same.
        find: makes a choice, as JSON has it.

    Returns:
        The choice; empty where the processes did not agree on one, on each of them.
    """
    store = _store()
    if store is None:
        return find()
    key = f"fastgan/choice/{hashlib.sha256(signature.encode()).hexdigest()}"
    claim = f"{_CLAIM}{uuid.uuid4()}"
    try:
        held = store.compare_set(key, "", claim).decode()
        if held == claim:
            held = store.compare_set(key, claim, json.dumps(find())).decode()
        end = time.monotonic() + _PATIENCE
        while held.startswith(_CLAIM):
            if time.monotonic() < end:
                time.sleep(_POLL)
                held = store.get(key).decode()
            else:
                held = store.compare_set(key, held, json.dumps({})).decode()
        found: dict[str, Any] = json.loads(held)
        return found
    except RuntimeError:  # the store is gone, with the process that held it
        return {}


def _store() -> Any:
    """The store of the job, where it is one of several processes."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    if torch.distributed.get_world_size() < 2:
        return None
    return torch.distributed.distributed_c10d._get_default_store()
