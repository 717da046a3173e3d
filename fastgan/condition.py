"""The condition's cross-entropy in G's loss, where the labels are levels of the discrete columns of a table.

A condition asks for one level of one column (CTGAN: Xu et al. 2019, arXiv:1907.00503, section 4.3). That G's sample has
it is learned by the cross-entropy of what G says of that column, before its activation, against the level asked for.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.nn import SegmentedActivation
from fastgan.step_options import StepOptions


def last_activation(generator: nn.Module) -> SegmentedActivation | None:
    """The SegmentedActivation that an nn.Sequential ends in; None where it ends in another."""
    last = generator
    while isinstance(last, nn.Sequential) and len(last):
        last = last[-1]
    return last if isinstance(last, SegmentedActivation) else None


def check(generator: nn.Module, options: StepOptions) -> None:
    """ValueError where the options ask for a cross-entropy that this generator does not have."""
    if options.condition_weight == 0:
        return
    last = last_activation(generator)
    if last is None:
        raise ValueError(
            f"condition_weight must be 0, not {options.condition_weight:g}, for a generator that is no nn.Sequential "
            "ending in fastgan.nn.SegmentedActivation"
        )
    if "gumbel_softmax" not in last.kinds:
        raise ValueError(
            f"condition_weight must be 0, not {options.condition_weight:g}, for a generator without gumbel_softmax "
            "segments, of which the conditions would be levels"
        )
    if asked_segments(last.widths, last.kinds, options.num_classes) is None:
        levels = sum(width for width, kind in zip(last.widths, last.kinds, strict=True) if kind == "gumbel_softmax")
        raise ValueError(
            f"num_classes must be {levels}, the columns of the generator's gumbel_softmax segments, or of the last of "
            f"them, where condition_weight is over 0, not {options.num_classes}"
        )


def asked_segments(widths: tuple[int, ...], kinds: tuple[str, ...], classes: int) -> tuple[int, ...] | None:
    """The segments whose columns are the classes: the last gumbel_softmax ones that have as many; None where none do.

    Those before them are drawn without being asked for, as the modes of the reals of a table are.
    """
    found: list[int] = []
    for i in reversed(range(len(widths))):
        if classes > 0 and kinds[i] == "gumbel_softmax":
            found.insert(0, i)
            classes -= widths[i]
    return tuple(found) if classes == 0 and found else None


def run(generator: nn.Module, input: Tensor) -> tuple[Tensor, Tensor]:
    """What a generator returns, and what its SegmentedActivation was given."""
    last = last_activation(generator)
    assert last is not None
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0])

    with last.register_forward_pre_hook(look):
        output: Tensor = generator(input)
    return output, seen[-1]


def cross_entropy(generator: nn.Module, before: Tensor, condition: Tensor) -> Tensor:
    """The batch mean of the cross-entropy of the column that is asked for against the level that is.

    Args:
        generator: ends in a SegmentedActivation.
        before: (batch, data), what that was given.
        condition: (batch, classes), one-hot; the classes are the columns of the last gumbel_softmax segments.

    Returns:
        A 0-d tensor, in float32 at least.
    """
    last = last_activation(generator)
    assert last is not None
    columns, segments = _levels(last.widths, last.kinds, condition.shape[1], before.device)
    logits = before.to(torch.promote_types(before.dtype, torch.float32)).index_select(1, columns)
    condition = condition.to(logits.dtype)
    asked = condition @ segments.to(logits.dtype)
    others = asked.unsqueeze(1) != segments
    total = logits.masked_fill(others, -torch.inf).logsumexp(dim=1)
    return (total - (logits * condition).sum(dim=1)).mean()


@functools.lru_cache(maxsize=16)
def _levels(
    widths: tuple[int, ...], kinds: tuple[str, ...], classes: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The columns (classes,) of the segments that are asked for, and the number of the segment of each."""
    asked = asked_segments(widths, kinds, classes) or ()
    columns: list[int] = []
    segments: list[int] = []
    start = 0
    for i, width in enumerate(widths):
        if i in asked:
            columns += range(start, start + width)
            segments += [i] * width
        start += width
    return torch.tensor(columns, device=device), torch.tensor(segments, device=device)
