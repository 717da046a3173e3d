"""The watch over a training run: the first loss or tensor that is no longer a finite number, in words."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastgan.step import StepStats


class NonFiniteError(RuntimeError):
    """Training stopped: a loss or parameter became infinite or NaN. The message names step and tensor."""


def find_non_finite(step: int, values: Tensor, networks: Mapping[str, nn.Module | None]) -> str | None:
    """What is not finite, as "step N: ...", or None.

    Waits for the device.

    Args:
        step: steps done.
        values: (n, 4), the StepStats of the last n steps, on the CPU.
        networks: by name; those that are None are left out.
    """
    tensors = [
        (network, name, value)
        for network, module in networks.items()
        if module is not None
        for name, value in module.state_dict().items()
        if value.is_floating_point()
    ]
    finite = torch.stack([value.isfinite().all() for _, _, value in tensors]).tolist()
    bad = [tensor for tensor, ok in zip(tensors, finite, strict=True) if not ok]
    faults = []
    bad_rows = (~values.isfinite().all(dim=1)).nonzero()
    if len(bad_rows):
        row = int(bad_rows[0])
        step += row + 1 - len(values)
        column = int((~values[row].isfinite()).nonzero()[0])
        name = StepStats._fields[column]
        owner = "generator" if name == "g_loss" else "discriminator"
        faults.append(f"the {owner}'s {name} became {float(values[row, column])}")
    if bad:
        network, name, value = bad[0]
        others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        count = int((~value.isfinite()).sum())
        faults.append(f"{count} of {value.numel()} values of the {network}'s tensor {name}{others} are not finite")
    return f"step {step}: {'; '.join(faults)}" if faults else None
