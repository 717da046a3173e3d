"""The backend `simt`: the CUDA kernels and their bindings, run on CPU tensors by the host model of tests/simt/.

With FASTGAN_SIMT_DEVICE=1 they run on tensors of a made-up device, also called `simt`, which new tensors then lie on.
Its memory is closed to the host: who touches it ends the program, with a sentence and the status DEVICE_TOUCHED.
Kernels are kept to it, and have no races there (tests/simt/README.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import os
import shutil
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from simt import build

from fastgan import backend, functional, gate

HAS_DEVICE = os.environ.get("FASTGAN_SIMT_DEVICE") == "1"
COUNTS = False  # whether the module is that which counts (tools/model_counts.py)
DEVICE_TOUCHED = 70


@functools.cache
def unavailable_reason() -> str | None:
    """Why the backend cannot run here, in a sentence; None where it can."""
    if os.environ.get("FASTGAN_SKIP_SIMT"):
        return "FASTGAN_SKIP_SIMT is set"
    if shutil.which("g++") is None:
        return "there is no g++ to build the host model with"
    if importlib.util.find_spec("ninja") is None:
        return "the Python package ninja, which builds the host model, is not installed"
    return None


@functools.cache
def module() -> ModuleType:
    """The compiled module, built where its sources changed."""
    path = build.build("device" if HAS_DEVICE else "count" if COUNTS else "module")
    spec = importlib.util.spec_from_file_location("_simt", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    loaded.build_facts = lambda: {"compiler": "the host model of CUDA", "cuda": None}
    if HAS_DEVICE:
        torch.utils.rename_privateuse1_backend("simt")
        device_module = types.ModuleType("torch.simt")  # its random numbers are the CPU's
        device_module.is_available = lambda: True
        device_module.device_count = lambda: 1
        device_module.current_device = lambda: 0
        device_module._is_in_bad_fork = lambda: False
        device_module.manual_seed_all = lambda seed: None
        device_module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
        torch._register_device_module("simt", device_module)
        loaded.use_device_memory()
    return loaded


# In the folder that clean_environment.py has made for all workers.
LOCK = Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "verification.lock"


def verify_beforehand(device: torch.device) -> None:
    """Have every family of kernels of the module in force verified, so that no test meets its first use.

    The first of several workers does, and the others take from its cache what it has found: of the host model's kernels
    that takes 4 s.

    Raises:
        RuntimeError: one fails; the tests would run what serves in its place.
    """
    keys = [gate.Key(backend.module, family, device, dtype) for family in gate.FAMILIES for dtype in backend._dtypes]
    left = [key for key in keys if key not in gate.known]
    if device.type == "simt" or COUNTS:  # whose memory such a comparison reads; whose counts it adds to
        for key in left:
            gate.settle(key, {"passed": True, "fault": ""})
    elif left:
        with open(LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for key in left:
                if not gate._first_use(key.family, device, key.dtype):
                    raise RuntimeError(f"{key}: {gate.faults[key]}")


LARGEST_CLUSTER = 8


@contextlib.contextmanager
def use_simt(largest_cluster: int = LARGEST_CLUSTER) -> Iterator[None]:
    """In a `with` block, fastgan.functional's compiled ops are those of the host model.

    Its device has clusters of so many blocks, as from compute capability 9.0 on, or none where that is 1.
    """
    compiled = module()
    compiled.set_largest_cluster(largest_cluster)
    before = backend.module, backend.ops, backend._device_types, backend._name
    backend.module, backend.ops = compiled, torch.ops.fastgan_simt
    backend._device_types, backend._name = frozenset(compiled.device_types()), "simt" if HAS_DEVICE else "cpu"
    functional.ACTIVATION.update({name: number for number, name in enumerate(compiled.activations())})
    try:
        device = torch.device("simt:0" if HAS_DEVICE else "cpu")
        verify_beforehand(device)
        with device if HAS_DEVICE else contextlib.nullcontext():
            yield
    finally:
        compiled.set_largest_cluster(LARGEST_CLUSTER)
        backend.module, backend.ops, backend._device_types, backend._name = before


if HAS_DEVICE:
    module()  # before the first backward: autograd counts the devices once
