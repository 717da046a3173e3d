"""binary_cross_entropy_with_logits against torch.nn.functional's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fastgan.functional import binary_cross_entropy_with_logits

from .pairs import pair
from .timing import Case

SIZES = [(64, 1), (4096, 1), (1024, 256), (4096, 1024)]


def cases() -> Iterator[Case]:
    """Mean over logits and targets of each size; one size in bfloat16; one with pos_weight.

    The gradient from above arrives after the forward pass, so both passes read logits and targets, and one writes.
    """
    for dtype, sizes in ((torch.float32, SIZES), (torch.bfloat16, SIZES[2:3])):
        for size in sizes:
            n = size[0] * size[1] * dtype.itemsize
            yield from pair(
                f"bce {size[0]}x{size[1]}",
                binary_cross_entropy_with_logits,
                F.binary_cross_entropy_with_logits,
                [size, size],
                dtype=dtype,
                constants=1,
                bytes=(2 * n, 5 * n),
            )
    n = 1024 * 256 * 4
    yield from pair(
        "bce pos_weight 1024x256",
        lambda x, t, p: binary_cross_entropy_with_logits(x, t, pos_weight=p),
        lambda x, t, p: F.binary_cross_entropy_with_logits(x, t, pos_weight=p),
        [(1024, 256), (1024, 256), (256,)],
        constants=2,
        bytes=(2 * n, 5 * n),
    )
