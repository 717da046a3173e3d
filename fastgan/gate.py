"""Which kernels may serve a device: those that have been compared with their reference there.

The first time that a family of kernels is about to serve a device in a dtype, it is compared
(fastgan/verification.py): once for a device, its driver, PyTorch and this build, since what was found is kept
(fastgan/device_cache.py). A family that fails is switched off, with one warning, and the fallback serves.

The check runs in a thread of its own, whose thread-local state is the default one: whatever the caller is in
(inference mode, autocast, modes of torch.overrides and of dispatch, a default device, torch.compile's tracing) neither
sees the check nor changes it.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan import backend, device_cache

# What a user calls each family, and what serves in its place.
FAMILIES = {
    "cross_entropy": ("the cross-entropy with logits", "plain PyTorch"),
    "gan_losses": ("the losses of D and G", "plain PyTorch"),
    "layers": ("layers", "plain PyTorch"),
    "segments": ("segmented activations", "plain PyTorch"),
    "step": ("whole steps", "the step composed of single functions"),
    "step_dropout": ("whole steps with dropout or segments", "the step composed of single functions"),
}
_KIND = "verification"  # of the entries in the cache
_LONGEST = 60.0  # seconds for a check, which takes hundredths of one


class Inconclusive(Exception):
    """A check could not be made, for a reason that says nothing of the kernels.

    Attributes:
        is_passing: whether it may be gone at the next call, as where memory ran out.
    """

    def __init__(self, reason: str, is_passing: bool = False) -> None:
        super().__init__(reason)
        self.is_passing = is_passing


class Key(NamedTuple):
    """A family of kernels on a device in a dtype; of a step in precision bf16 the dtype is bfloat16."""

    module: Any  # the compiled module that has them
    family: str
    device: torch.device
    dtype: torch.dtype

    @property
    def entry(self) -> str:
        """Its name in the cache."""
        return f"{self.family} {_name(self.dtype)}"

    def __str__(self) -> str:
        return f"{FAMILIES[self.family][0]} in {_name(self.dtype)} on {self.device}"


# Each key that was looked at, with whether its kernels serve. Replaced where one is switched off or on again, so that
# the engine's watch sees it (fastgan/engine.py).
known: dict[Key, bool] = {}
faults: dict[Key, str] = {}  # of those that are switched off: what was found
# Compares a family with its reference: the entry for the cache, {"passed": bool, "fault": str}; or raises Inconclusive.
check: Callable[[str, torch.device, torch.dtype], dict[str, Any]] | None = None

_here = threading.local()
_lock = threading.RLock()


def _new_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)  # a thread that held it is not there in the child


def serves(tensor: Tensor, family: str) -> bool:
    """Whether the compiled kernels of a family serve a call with this tensor; otherwise the reference does."""
    return backend.is_compiled(tensor) and _is_right(family, tensor.device, tensor.dtype)


def _is_right(family: str, device: torch.device, dtype: torch.dtype) -> bool:
    # A plain tuple equals the Key of the same.
    found = known.get((backend.module, family, device, dtype))  # type: ignore[call-overload]
    return _first_use(family, device, dtype) if found is None else bool(found)


# To torch.compile, the answer is a constant. What torch.compiler.assume_constant_result does, which would import
# torch._dynamo (1 s) with fastgan.
_is_right._dynamo_marked_constant = True  # type: ignore[attr-defined]


def step_refusal(device: torch.device, dtype: torch.dtype, draws: bool) -> str | None:
    """Why the kernels of whole steps may not serve a device, as the end of a sentence; None where they may.

    Args:
        device: of the parameters.
        dtype: theirs, or bfloat16 for precision bf16.
        draws: whether a network has dropout or segments.
    """
    for family in ("step", "step_dropout") if draws else ("step",):
        key = Key(backend.module, family, with_index(device), dtype)
        if _is_checking() or known.get(key) or (key not in known and _first_use(family, device, dtype)):
            continue
        fault = faults.get(key)
        return "its kernels are not verified yet" if fault is None else f"its kernels failed verification: {fault}"
    return None


def _first_use(family: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Find out whether a family serves, remembered from an earlier process or by comparing it now."""
    if _is_checking():
        return True
    if check is None or (device.type == "cuda" and not torch.cuda.is_available()):
        return True  # a fake tensor, of which only the shape is computed
    if device.type != "cpu" and (
        (device.type == "cuda" and torch.cuda.is_current_stream_capturing())  # what would run now would be recorded
        or torch._C._current_graph_task_id() != -1  # in a backward, on the one thread that runs a device's backwards
    ):
        return False
    key = Key(backend.module, family, with_index(device), dtype)
    with _lock:
        if key in known:
            return known[key]
        entry: Any = device_cache.load(_KIND, key.device).get(key.entry)
        if not _is_entry(entry):
            try:
                entry = in_fresh_thread(functools.partial(check, family, key.device, dtype), _LONGEST)
            except Inconclusive as reason:
                if not reason.is_passing:
                    settle(key, {"passed": True, "fault": ""})
                return True
            except Exception as error:  # of no single kernel, hence not kept
                entry = {"passed": False, "fault": f"the check raised {type(error).__name__}: {error}"}
            else:
                device_cache.merge(_KIND, key.device, {key.entry: entry})
        settle(key, entry)
    if not entry["passed"]:
        warnings.warn(_warning(key), RuntimeWarning, stacklevel=_callers_level())
    return bool(entry["passed"])


def settle(key: Key, entry: dict[str, Any]) -> None:
    """Switch a family on or off, as its entry says."""
    global known, faults
    passed = bool(entry["passed"])
    changed = known.get(key, True) != passed
    found = {**faults, key: str(entry["fault"])}
    if passed:
        del found[key]
    faults = found
    if changed:
        known = {**known, key: passed}
    else:
        known[key] = passed
    if hasattr(key.module, "set_verified"):
        key.module.set_verified(key.family, str(key.device), key.dtype, passed)


def store(key: Key, entry: dict[str, Any]) -> None:
    """Switch a family on or off, as a check has found, and keep that for other processes."""
    with _lock:
        settle(key, entry)
    device_cache.merge(_KIND, key.device, {key.entry: entry})


def switched_off(device: torch.device) -> dict[str, str]:
    """What this process or an earlier one has switched off on a device.

    Returns:
        The families in words, each with what serves in its place and why.
    """
    if backend.module is None:
        return {}
    entries = device_cache.load(_KIND, device)
    found = {}
    for family, (words, instead) in FAMILIES.items():
        for dtype in sorted(backend._dtypes, key=str):
            key = Key(backend.module, family, with_index(device), dtype)
            entry: Any = entries.get(key.entry)
            fault = faults.get(key)
            if fault is None and key not in known and _is_entry(entry) and not entry["passed"]:
                fault = entry["fault"]
            if fault is not None:
                found[f"{words} in {_name(dtype)} on {key.device}"] = (
                    f"{instead} runs instead: the kernels failed verification: {fault}"
                )
    return found


def in_fresh_thread(function: Callable[[], Any], limit: float | None = None) -> Any:
    """The result of a function, run in a thread of its own in which every family serves.

    Raises:
        TimeoutError: it does not end in so many seconds.
        Inconclusive: no thread can be started.
        BaseException: what the function raises.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        _here.is_checking = True
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="fastgan verification", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # the interpreter ends, or there are too many
        raise Inconclusive(str(error), is_passing=True) from None
    thread.join(limit)
    if thread.is_alive():
        raise TimeoutError(f"the comparison with the reference did not end in {limit:.0f} seconds")
    if errors:
        raise errors[0]
    return results[0]


def _is_checking() -> bool:
    return getattr(_here, "is_checking", False)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and type(entry.get("passed")) is bool and type(entry.get("fault")) is str


def with_index(device: torch.device) -> torch.device:
    """The device as its tensors name it."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if device.type == "cpu" else device


def _warning(key: Key) -> str:
    return (
        f"fastgan's kernels of {key} are switched off, and {FAMILIES[key.family][1]} runs instead, correct but slower: "
        f"{faults[key]}. `fastgan doctor --verify` checks them again; please report what it prints"
    )


def _callers_level() -> int:
    """The stacklevel of the first caller outside of fastgan, and of torch, which calls modules."""
    level, frame = 2, sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("fastgan", "torch"):
        level, frame = level + 1, frame.f_back
    return level


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
