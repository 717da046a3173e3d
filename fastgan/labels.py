"""Labels of a conditional step (Mirza & Osindero 2014, arXiv:1411.1784): as one-hot columns, and whether they are
labels at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class LabelCheck:
    """Labels on a GPU are looked at there; here it is heard of those that are not in [0, classes).

    To wait for the answer would be to wait for the GPU, and F.one_hot there ends the program. So such a sample is of no
    class, the statistics of its step are NaN, and a later step, which finds the answer there, raises.
    """

    def __init__(self) -> None:
        self._pending: tuple[torch.cuda.Event, Tensor, int] | None = None
        self._is_odd: Tensor | None = None

    def one_hot(self, labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
        """Labels as vectors of zeros with a one at their class.

        Args:
            labels: integers in [0, classes), of any shape.
            classes: how many there are.
            dtype: of the result.

        Returns:
            The labels' shape with `classes` columns more.
        """
        self._is_odd = None
        if not labels.is_cuda:
            return F.one_hot(labels, classes).to(dtype)
        odd = (labels < 0) | (labels >= classes)
        self._is_odd = odd.any()
        if not torch.cuda.is_current_stream_capturing():
            told = torch.empty((), dtype=torch.long, device="cpu", pin_memory=True)
            values = torch.where(odd, labels, 0).flatten()
            told.copy_(values.take(values.abs().argmax()), non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = event, told, classes
        return (labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)).to(dtype)

    def marked(self, statistic: Tensor) -> Tensor:
        """A statistic of the step that the last labels were of: NaN where one of them was odd."""
        return statistic if self._is_odd is None else torch.where(self._is_odd, torch.nan, statistic)

    def hear(self) -> None:
        """Raise ValueError where labels of an earlier step were odd, as far as that is known by now."""
        if self._pending is None or torch.cuda.is_current_stream_capturing() or not self._pending[0].query():
            return
        (_, told, classes), self._pending = self._pending, None
        if told.item() != 0:  # which is never odd
            raise ValueError(
                f"labels must be in [0, {classes}), but those of an earlier step held {int(told)}. That step took the "
                "sample as one of no class, and its statistics are NaN."
            )
