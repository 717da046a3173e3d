"""The order of the data: batches without replacement, reshuffled each epoch, resumable at any step."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.data.dataset import Dataset


class Batches:
    """An endless run of batches of a data set that lies on the device.

    Each epoch is a new permutation from this object's own generator; its last samples that fill no batch
    wait for another epoch. The generator is the CPU's whatever the device, so that the order is the same
    everywhere.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        d_steps: int,
        device: torch.device,
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Move the samples to the device and dtype, and the labels where the data set has them."""
        self._samples = dataset.samples.to(device, dtype)
        self._labels = None if dataset.labels is None else dataset.labels.to(device)
        self._batch_size, self._d_steps = batch_size, d_steps
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._shuffle()

    def next(self) -> tuple[Tensor, Tensor | None]:
        """Samples (batch, data) and labels (batch,) or None; with d_steps > 1, (d_steps, batch, ...)."""
        rows = [self._next_rows() for _ in range(self._d_steps)]
        index = rows[0] if self._d_steps == 1 else torch.stack(rows)
        return self._samples[index], None if self._labels is None else self._labels[index]

    def state(self) -> tuple[Tensor, int]:
        """The generator's state when the epoch began, and the position in the epoch."""
        return self._epoch_state, self._position

    def load_state(self, epoch_state: Tensor, position: int) -> None:
        """Go on where `state` was taken.

        Raises:
            RuntimeError, TypeError: the state is not one of a CPU generator.
        """
        self._generator.set_state(epoch_state)
        self._shuffle()
        self._position = position

    def _next_rows(self) -> Tensor:
        if self._position + self._batch_size > len(self._order):
            self._shuffle()
        rows = self._order[self._position : self._position + self._batch_size]
        self._position += self._batch_size
        return rows

    def _shuffle(self) -> None:
        self._epoch_state = self._generator.get_state()
        order = torch.randperm(len(self._samples), generator=self._generator, device="cpu")
        self._order = order.to(self._samples.device)
        self._position = 0
