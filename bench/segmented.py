"""segmented_activation against what CTGAN's generator ends in: a slice and an op a segment, and their concatenation.

Both draw, as in training; they are compared on draws that are given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.functional import segmented_activation

from .pairs import Function, pair
from .timing import Case

REAL = [(1, "tanh"), (10, "gumbel_softmax")]  # a real column of CTGAN: its place within a mode, and ten modes
# The table of the benchmark: 4 real columns, and 8 discrete ones of 2 to 40 levels.
TABLE = 4 * REAL + [(levels, "gumbel_softmax") for levels in (2, 3, 4, 6, 8, 12, 20, 40)]
# Name, segments, rows.
SIZES = [("table", TABLE, 500), ("8 of 40", 8 * [(40, "gumbel_softmax")], 500)]


def torch_segmented(segments: Sequence[tuple[int, str]]) -> Function:
    """As ctgan 0.12 writes it, each segment on its own; of draws that are given, without those."""

    def function(x: Tensor, noise: Tensor | None = None) -> Tensor:
        parts, begin, drawn = [], 0, 0
        for width, kind in segments:
            part = x[:, begin : begin + width]
            begin += width
            if kind == "tanh":
                parts.append(torch.tanh(part))
            elif noise is None:
                parts.append(F.gumbel_softmax(part, tau=0.2))
            else:
                parts.append(((part + noise[:, drawn : drawn + width]) / 0.2).softmax(-1))
                drawn += width
        return torch.cat(parts, 1)

    return function


def cases() -> Iterator[Case]:
    """Each table forward, and forward with backward; least bytes without the draws."""
    for name, segments, rows in SIZES:
        widths, kinds = [width for width, _ in segments], [kind for _, kind in segments]
        gumbel = sum(width for width, kind in segments if kind == "gumbel_softmax")

        def ours(
            x: Tensor, noise: Tensor | None = None, widths: list[int] = widths, kinds: list[str] = kinds
        ) -> Tensor:
            return segmented_activation(x, widths, kinds, noise=noise)

        shape = (rows, sum(widths))
        n = rows * sum(widths) * torch.float32.itemsize
        title = f"segmented {name} {rows}x{sum(widths)}"
        functions = ours, torch_segmented(segments)
        drawing = pair(title, *functions, [shape], bytes=(2 * n, 5 * n))
        given = pair(title, *functions, [shape, (rows, gumbel)], constants=1)
        for case, same in zip(drawing, given, strict=True):
            yield dataclasses.replace(case, check=same.check, capturable=False)
