"""The device of a run, by its name."""

from __future__ import annotations

import os
from typing import Any

import torch


def parse_device(name: str) -> torch.device | None:
    """The device that a name means; None for `auto`.

    Raises:
        ValueError: the name is not auto, cpu, cuda or cuda:N.
    """
    if name == "auto":
        return None
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index is not None):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}")
    return device


def pick_device(name: str, process_group: Any = None) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` means on this machine.

    Of several processes each takes a GPU of its own, where the name leaves open which: that of torchrun's LOCAL_RANK,
    or else of its rank.

    Raises:
        ValueError: the name is none of these, or this machine has no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = parse_device(name) or torch.device("cuda" if count else "cpu")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device must be one that this machine has, with {count} CUDA devices, not {name!r}")
    if device.type == "cuda" and device.index is None and process_group is not None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", process_group.rank())) % count)
        torch.cuda.set_device(device)
    # Random states and streams belong to one numbered device.
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device
