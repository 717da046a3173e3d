"""Which implementation runs: the one place that decides between the compiled kernels and the reference.

`FASTGAN_BACKEND` chooses at import: `auto` (compiled where it can serve the call, else the reference), `reference`,
`cpu` or `cuda` (that compiled backend, or an error that says why it cannot run). `use_backend` changes it later.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import re
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from fastgan import reference

NAMES = ("auto", "reference", "cpu", "cuda")
REBUILD = (
    "Rebuild it for this PyTorch with: pip install --no-build-isolation --force-reinstall --no-deps fastgan "
    "(or, in a checkout, pip install --no-build-isolation .)"
)
_FACTS = Path(__file__).with_name("_build_facts.json")


def fits(built_for: str, running: str) -> bool:
    """Whether a module that was built for one PyTorch may be loaded into another.

    Both are `torch.__version__`. PyTorch promises no binary interface between two releases, so it must be the same one;
    its builds for CUDA of one major version (2.13.0+cu130 and 2.13.0+cu132) share their libraries' interface.
    """
    if built_for == running:
        return True
    (release, _, label), (own_release, _, own_label) = built_for.partition("+"), running.partition("+")
    majors = [re.fullmatch(r"cu(\d+)\d", each) for each in (label, own_label)]
    return release == own_release and None not in majors and len({match[1] for match in majors if match}) == 1


def _load() -> tuple[Any, str]:
    """The compiled module, or None and the reason in a sentence."""
    if not _FACTS.exists():
        return None, "the compiled module was not built"
    try:
        built_for = json.loads(_FACTS.read_text())["torch"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"the build facts beside the compiled module are unreadable ({error})"
    # Checked before loading: a library built for another PyTorch may load and then crash.
    if not fits(str(built_for), torch.__version__):
        return None, f"the compiled module was built for PyTorch {built_for}, and this is {torch.__version__}"
    # From this folder alone: an editable install elsewhere on the path would offer its own.
    spec = importlib.machinery.PathFinder.find_spec("fastgan._C", [str(_FACTS.parent)])
    if spec is None or spec.origin is None or spec.loader is None:
        return None, "the compiled module does not load (its file is missing)"
    try:
        if _is_cut_short(Path(spec.origin)):
            return None, "the compiled module does not load (its file is cut short)"
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"the compiled module does not load ({error})"
    if not hasattr(loaded, "activations") or set(loaded.activations()) != set(reference.ACTIVATIONS):
        return None, "the compiled module was built from other sources (its activations are not those of reference.py)"
    sys.modules["fastgan._C"] = loaded
    return loaded, ""


def _is_cut_short(file: Path) -> bool:
    """Whether a library lacks its end.

    The loader maps what is not there, and the process dies of SIGBUS; what is no library it refuses by itself.
    """
    with file.open("rb") as opened:
        header = opened.read(64)
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":  # 64-bit ELF
        return False
    # The table of section headers, which linkers write last: its offset, the size of an entry, their number.
    offset, size, count = struct.unpack("=40xQ10xHH2x", header)
    return bool(file.stat().st_size < offset + size * count)


module, missing_reason = _load()  # what is compiled has no types
_direct = module
ops = torch.ops.fastgan
_device_types = frozenset(module.device_types()) if module else frozenset()
_dtypes = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))

_name = os.environ.get("FASTGAN_BACKEND", "auto").strip().lower() or "auto"
if _name not in NAMES:
    raise ValueError(f"FASTGAN_BACKEND must be one of {', '.join(NAMES)}, not {_name!r}")
if module is None and _name != "reference":
    warnings.warn(
        f"fastgan runs on plain PyTorch, correct but slower: {missing_reason}. {REBUILD}",
        RuntimeWarning,
        stacklevel=3,
    )


def unavailable_reason(name: str) -> str | None:
    """Why the backend cannot run here, in a sentence; None where it can."""
    if name in ("auto", "reference"):
        return None
    if module is None:
        return missing_reason
    if name == "cuda" and not module.build_facts()["cuda"]:
        return "fastgan was built without CUDA"
    if name == "cuda" and not torch.cuda.is_available():
        return "this machine has no CUDA device that PyTorch can use"
    return None


def current_backend() -> str:
    """The backend in force: `auto`, `reference`, `cpu` or `cuda`."""
    return _name


def set_backend(name: str) -> None:
    """Choose the backend for every later call in this process.

    Args:
        name: `auto`, `reference`, `cpu` or `cuda`.

    Raises:
        ValueError: the name is not one of these.
        RuntimeError: the backend cannot run here; the message says why.
    """
    global _name
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(NAMES)}, not {name!r}")
    reason = unavailable_reason(name)
    if reason:
        raise RuntimeError(f"backend {name!r} cannot run here: {reason}. {REBUILD if module is None else ''}".strip())
    _name = name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """`set_backend` for the length of a `with` block.

    Args:
        name: `auto`, `reference`, `cpu` or `cuda`.

    Raises:
        ValueError: the name is not one of these.
        RuntimeError: the backend cannot run here; the message says why.
    """
    before = _name
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def direct() -> Any:
    """The compiled module, where a call may first try the functions there that skip what follows the usual course;
    else None.

    torch.compile traces torch.ops instead.
    """
    return _direct if _name == "auto" and not torch.compiler.is_compiling() else None


def has_kernels(device: torch.device) -> bool:
    """Whether the compiled module has kernels for a device of this type."""
    return device.type in _device_types


def is_compiled(tensor: Tensor) -> bool:
    """Whether the compiled kernels serve this call; otherwise the reference does.

    The compiled ops have no batching and no forward-mode rule, and torch.jit.trace cannot record them (lists of
    optional tensors), so there the reference runs, where PyTorch's own rules apply; so it does for sparse and jagged
    tensors.
    """
    if _name == "reference":
        return False
    if _name != "auto" and (module is None or _name != tensor.device.type):
        reason = unavailable_reason(_name)
        if reason:
            raise RuntimeError(f"FASTGAN_BACKEND={_name} cannot run here: {reason}.")
    if tensor.device.type not in _device_types or tensor.dtype not in _dtypes:
        return False
    if tensor.layout is not torch.strided:
        return False
    # Not `is None`: torch.compile of PyTorch 2.13 takes that for False where there is none.
    if forward_ad._current_level >= 0 or not isinstance(_functorch.peek_interpreter_stack(), type(None)):
        return False
    return torch.compiler.is_compiling() or not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
