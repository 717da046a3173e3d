"""`fastgan.info()`: versions, build and backends, and why any is missing."""

from __future__ import annotations

import platform
from typing import Any

import torch

from fastgan import backend, choices, gate
from fastgan.version import __version__

# What the compiled kernels do not do, and what runs instead.
FALLBACKS = {
    "torch.func transforms, forward-mode AD": "plain PyTorch",
    "mixed dtypes in the cross-entropy, outside autocast": "plain PyTorch",
    "devices other than CPU and CUDA": "plain PyTorch",
    "third and higher derivatives of layers": "PyTorch differentiates the layers' definition",
    "CUDA: products above the crossover of csrc/cuda/crossover.h": "PyTorch's products (cuBLAS), with fused epilogues",
    "CUDA: second derivatives of layers": "PyTorch's products (cuBLAS), with fused activations",
}


def info() -> dict[str, Any]:
    """What is installed, how it was built, and which backend serves which device.

    Returns:
        A dict with `fastgan`, `python`, `torch` (versions), `build` (facts of the compiled module, None without one),
        `backend` (the one in force), `backends` (name to "available" or the reason why not), `devices`, `tuning`
        (whether a TrainStep measures which of its ways is the fastest), `fallbacks` (what the compiled kernels do not
        do, to what runs instead) and `switched_off` (kernels that failed verification on a device here, to what runs
        instead and what was found; see `fastgan.verify`).
    """
    backends = {}
    for name in ("reference", "cpu", "cuda"):
        backends[name] = backend.unavailable_reason(name) or "available"
    devices = {"cpu": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"}
    for i in range(torch.cuda.device_count()):
        devices[f"cuda:{i}"] = torch.cuda.get_device_name(i)
    switched_off: dict[str, str] = {}
    for name in devices:
        switched_off.update(gate.switched_off(torch.device(name)))
    return {
        "fastgan": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "build": backend.module.build_facts() if backend.module else None,
        "backend": backend.current_backend(),
        "backends": backends,
        "devices": devices,
        "tuning": "on" if choices.is_on() else "off (FASTGAN_TUNE=0)",
        "fallbacks": FALLBACKS,
        "switched_off": switched_off,
        "rebuild": backend.REBUILD if backend.module is None else None,
    }
