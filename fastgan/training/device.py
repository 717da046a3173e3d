"""The device of a run, by its name."""

from __future__ import annotations

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


def pick_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` means on this machine.

    Raises:
        ValueError: the name is none of these, or this machine has no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = parse_device(name) or torch.device("cuda" if count else "cpu")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device must be one that this machine has, with {count} CUDA devices, not {name!r}")
    # Random states and streams belong to one numbered device.
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device
