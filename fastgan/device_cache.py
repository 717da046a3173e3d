"""What was found out about a device, kept between processes in the user's cache folder.

One JSON file for each kind of entry and each identity: the device, its driver, PyTorch and this build. A file that
cannot be read counts as none, and one that cannot be written is done without.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastgan import backend
from fastgan.version import __version__

try:
    import fcntl
except ModuleNotFoundError:  # it is of Unix
    fcntl = None  # type: ignore[assignment]

_FORM = 1  # of the files; another is not read
_LONGEST_WAIT = 2.0  # seconds for the lock: who holds it writes a few kilobytes
_LEFT_BEHIND = 3600.0  # seconds after which a temporary file is that of a process that has died


def identity(device: torch.device) -> dict[str, str]:
    """What must be the same for an entry to hold: device, driver or processor, PyTorch, fastgan, compiled module.

    Args:
        device: of the CPU or CUDA; without an index, the current one.

    Returns:
        Names and values, all text.
    """
    facts = {"type": device.type, "torch": str(torch.__version__), "fastgan": __version__, "module": _module_hash()}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        facts["device"] = found.name
        facts["capability"] = f"{found.major}.{found.minor}"
        facts["multiprocessors"] = str(found.multi_processor_count)
        facts["driver"] = _first_line("/sys/module/nvidia/version")
        facts["cuda"] = str(torch.version.cuda)
    else:
        build: dict[str, Any] = getattr(backend.module, "build_facts", dict)()
        facts["device"] = _processor()
        facts["instructions"] = str(build.get("cpu_instructions", ""))
        facts["bf16_instructions"] = str(build.get("cpu_bf16_instructions", ""))
        facts["threads"] = str(torch.get_num_threads())
    return facts


def folder() -> Path:
    """Where the files lie: fastgan/ in $XDG_CACHE_HOME (if that is an absolute path) or in ~/.cache.

    Source: XDG Base Directory Specification 0.8.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        base = Path(os.path.expanduser("~")) / ".cache"
    if not base.is_absolute():  # no home is known
        base = Path(os.devnull)  # in which there is nothing, and can be nothing
    return base / "fastgan"


def load(kind: str, device: torch.device) -> dict[str, Any]:
    """The entries of one kind for this identity.

    Args:
        kind: such as `verification` or `choices`.
        device: see `identity`.

    Returns:
        Entries by name; none where there is no file, or it is unreadable, cut short, of another identity or not of the
        expected form.
    """
    try:
        facts = identity(device)
        return _read(_file(kind, facts), facts)
    except Exception:  # whatever the driver or the file system says: there is nothing to be had
        return {}


def merge(kind: str, device: torch.device, entries: dict[str, Any]) -> None:
    """Add entries to those on disk; of one name, the new one stays. Does nothing where that cannot be done.

    Args:
        kind: such as `verification` or `choices`.
        device: see `identity`.
        entries: by name, of what JSON has.
    """
    try:
        facts = identity(device)
        file = _file(kind, facts)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _lock(file.with_suffix(".lock")):
            _remove_left_behind(file)
            _write(file, {"form": _FORM, "identity": facts, "entries": {**_read(file, facts), **entries}})
    except Exception:  # a full or read-only disk, a home that does not exist: next time it is found out again
        return


def _file(kind: str, facts: dict[str, str]) -> Path:
    number = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return folder() / f"{kind}-{number}.json"


def _read(file: Path, facts: dict[str, str]) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or found.get("form") != _FORM or found.get("identity") != facts:
        return {}
    entries = found.get("entries")
    return entries if isinstance(entries, dict) else {}


def _write(file: Path, content: dict[str, Any]) -> None:
    """By way of a temporary file, so that at each moment there is the former file or the new one, whole."""
    text = json.dumps(content, indent=1, sort_keys=True)
    number, name = tempfile.mkstemp(".tmp", f"{file.stem}.", file.parent)
    try:
        with open(number, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _remove_left_behind(file: Path) -> None:
    for path in file.parent.glob(f"{file.stem}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFT_BEHIND:
                path.unlink()


@contextlib.contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Keep other processes and threads out, for as long as they wait; where nothing can be locked, do not."""
    if fcntl is None:
        yield
        return
    with file.open("a") as opened:
        end = time.monotonic() + _LONGEST_WAIT
        while True:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < end:
                    time.sleep(0.005)
                    continue
            except OSError:  # a file system without locks
                pass
            break
        try:
            yield
        finally:
            # Closing would not do: a process that was forked meanwhile has the file open too.
            with contextlib.suppress(OSError):
                fcntl.flock(opened, fcntl.LOCK_UN)


def _module_hash() -> str:
    file = getattr(backend.module, "__file__", None)
    return _hash_of(file) if file else ""


@functools.cache
def _hash_of(file: str) -> str:
    """Of the content: a build of the same size, or of the same second, is another."""
    found = hashlib.sha256()
    with open(file, "rb") as opened:
        while block := opened.read(1 << 20):
            found.update(block)
    return found.hexdigest()[:32]


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as opened:
        for line in opened:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def _first_line(file: str) -> str:
    with contextlib.suppress(OSError), open(file, encoding="utf-8", errors="replace") as opened:
        return opened.readline().strip()
    return ""
