"""What `TrainStep` is compared with: which peers there are, which run here, and why the others do not."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Sequence

from . import compiled, cuda_training, jax_training
from .training import Build, adam, eager, modules, train_step

# The last contender of a case is what the others are compared with: eager PyTorch with its fused Adam.
BASELINE = "torch"

OURS: dict[str, Build] = {
    "fastgan": train_step,
    "fastgan bf16": functools.partial(train_step, precision="bf16"),
    "fastgan modules": modules,
}
PEERS: dict[str, Build] = {
    "torch.compile": compiled.whole,
    "torch.compile max-autotune": functools.partial(compiled.whole, mode="max-autotune"),
    "torch.compile halves": compiled.halves,
    **cuda_training.BUILDS,
    "jax": jax_training.train,
    "torch foreach": lambda configuration: eager(configuration, adam(foreach=True)),
    "torch one batch": functools.partial(eager, one_batch=True),
}
# What the others take to compile would make a default run several times as long.
DEFAULT = ("CUDA graph of torch", "jax", "torch foreach", "torch one batch")


def slug(label: str) -> str:
    """A peer's name on the command line."""
    return label.replace(" ", "-")


def chosen(names: Sequence[str], device: str) -> tuple[list[str], list[str]]:
    """The labels of the peers to measure, and a sentence for each that was asked for and cannot be.

    Args:
        names: slugs, or `default`, `all` or `none`.
        device: `cpu` or `cuda`.
    """
    wanted = list(PEERS)
    if "all" not in names:
        wanted = [p for p in PEERS if slug(p) in names or ("default" in names and p in DEFAULT)]
    reasons = {label: unavailable_reason(label, device) for label in wanted}
    named = [label for label in wanted if slug(label) in names or not _belongs_elsewhere(label, device)]
    notes = [f"without {label}: {reasons[label]}" for label in named if reasons[label]]
    return [label for label in wanted if not reasons[label]], notes


def unavailable_reason(label: str, device: str) -> str | None:
    """Why a peer cannot be measured on `cpu` or `cuda`, in a sentence; None where it can."""
    if _belongs_elsewhere(label, device):
        return "it needs --device cuda"
    if label.startswith("torch.compile") and not (os.environ.get("CXX") or shutil.which("g++")):
        return "torch.compile needs a C++ compiler (g++, or CXX)"
    if label == "apex":
        return cuda_training.apex_unavailable_reason()
    if label == "jax":
        return jax_training.unavailable_reason(device)
    return None


def contenders(ours: Sequence[str], labels: Sequence[str]) -> dict[str, Build]:
    """Builds by label: ours first, the baseline last."""
    return {**{n: OURS[n] for n in ours}, **{n: PEERS[n] for n in labels}, BASELINE: eager}


def _belongs_elsewhere(label: str, device: str) -> bool:
    return label in cuda_training.BUILDS and device != "cuda"
