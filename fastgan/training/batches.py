"""The order of the data: batches without replacement, reshuffled each epoch, resumable at any step."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import cast

import numpy as np
import torch
from torch import Tensor

from fastgan.data.dataset import Dataset
from fastgan.data.mapped import MappedSamples
from fastgan.data.order import ComputedOrder, random_order


class Rounds(ABC):
    """What is drawn a round at a time from a CPU generator of its own: an epoch's order, or a block of draws."""

    def __init__(self, seed: int) -> None:
        """Begin the first round; what `_draw` needs is there already."""
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._begin()

    def state(self) -> tuple[Tensor, int]:
        """The generator's state when the round began, and the position in the round."""
        return self._began, self._position

    def load_state(self, began: Tensor, position: int) -> None:
        """Go on where `state` was taken.

        Raises:
            RuntimeError, TypeError: the state is not one of a CPU generator.
        """
        self._generator.set_state(began)
        self._begin()
        self._position = position

    def peek(self) -> tuple[Tensor, Tensor | None]:
        """What `next` will give, which is as it would have been without."""
        state = self.state()
        try:
            return self.next()
        finally:
            self.load_state(*state)

    @abstractmethod
    def next(self) -> tuple[Tensor, Tensor | None]:
        """The next of what is drawn."""

    def _begin(self) -> None:
        self._began = self._generator.get_state()
        self._draw()
        self._position = 0

    @abstractmethod
    def _draw(self) -> None:
        """All of a round."""


def on_device(samples: Tensor | MappedSamples, device: torch.device, dtype: torch.dtype) -> Tensor | MappedSamples:
    """Samples on the device. Those of a mapped file stay there, but for a GPU that has room for twice as many."""
    if isinstance(samples, Tensor):
        return samples.to(device, dtype)
    size = samples.shape.numel() * dtype.itemsize
    if device.type != "cuda" or 2 * size > torch.cuda.mem_get_info(device)[0]:
        return samples
    moved = torch.empty(samples.shape, device=device, dtype=dtype)
    first = 0
    for part in samples.chunks():
        moved[first : first + len(part)] = part
        first += len(part)
    return moved


class Batches(Rounds):
    """An endless run of batches of a data set that lies on the device, or in a mapped file.

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
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Move the samples to the device and dtype, and the labels where the data set has them.

        Of a batch that several processes share, `share` is which of the parts, and of how many, `next` gives.
        """
        self._share = share
        self._samples = on_device(dataset.samples, device, dtype)
        self._device, self._dtype = device, dtype
        self._labels = None if dataset.labels is None else dataset.labels.to(device)
        self._batch_size, self._d_steps = batch_size, d_steps
        super().__init__(seed)

    def next(self) -> tuple[Tensor, Tensor | None]:
        """Samples (batch, data) and labels (batch,) or None; with d_steps > 1, (d_steps, batch, ...)."""
        rows = [self._next_rows() for _ in range(self._d_steps)]
        index = rows[0] if self._d_steps == 1 else torch.stack(rows)
        samples = self._samples[index].to(self._device, self._dtype)
        return samples, None if self._labels is None else self._labels[index.to(self._device)]

    def _next_rows(self) -> Tensor:
        if self._position + self._batch_size > len(self._order):
            self._begin()
        part = self._batch_size // self._share[1]
        first = self._position + self._share[0] * part
        rows = self._order[first : first + part]
        self._position += self._batch_size
        return rows

    def _draw(self) -> None:
        order = random_order(len(self._samples), self._generator)
        # Beside samples that lie on the device, so does what indexes them.
        beside = isinstance(order, Tensor) and isinstance(self._samples, Tensor)
        self._order: Tensor | ComputedOrder = cast(Tensor, order).to(self._device) if beside else order


class LevelBatches(Rounds):
    """An endless run of batches of a table by its levels ("training by sampling": CTGAN, Xu et al. 2019,
    arXiv:1907.00503, section 4.3).

    Each sample is drawn anew: one of the discrete columns, each as probable; one of its levels, with a probability that
    grows with the logarithm of its rows; one of the rows that have it. So rare levels are seen. The label is the
    level's number among those of all columns. Draws are the CPU generator's whatever the device; what they mean is
    looked up on the device, in one call for all samples.
    """

    # Batches that are drawn at once.
    _BLOCK = 64

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        d_steps: int,
        device: torch.device,
        seed: int,
        dtype: torch.dtype = torch.float32,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Move the samples to the device and dtype, and find the rows of each level. `share` is as of `Batches`."""
        part = batch_size // share[1]
        self._part = slice(share[0] * part, share[0] * part + part)
        assert dataset.table is not None
        self._samples = dataset.samples.to(device, dtype)
        self._batch_size, self._d_steps = batch_size, d_steps
        counts = dataset.table.counts
        # Of each level in turn, the rows that have it, one after another.
        at = dataset.table.level_columns
        self._rows = torch.cat([dataset.samples[:, start].nonzero()[:, 0] for start in at]).to(device)
        sizes = np.array(list(itertools.chain(*counts)))
        self._sizes = torch.from_numpy(sizes).double().to(device)
        self._starts = torch.from_numpy(np.concatenate([[0], sizes.cumsum()[:-1]])).to(device)
        # CTGAN's log(1 + rows): a level of a single row is drawn too.
        shares = [np.log1p(of_column) / np.log1p(of_column).sum() / len(counts) for of_column in counts]
        self._bounds = torch.from_numpy(np.concatenate(shares).cumsum()).to(device)
        self._bounds[-1] = 1.0
        super().__init__(seed)

    def next(self) -> tuple[Tensor, Tensor]:
        """Samples (batch, data) and labels (batch,); with d_steps > 1, (d_steps, batch, ...)."""
        if self._position == self._BLOCK:
            self._begin()
        draws = self._draws[self._position][..., self._part]
        self._position += 1
        labels = torch.searchsorted(self._bounds, draws[0], right=True).clamp_(max=len(self._bounds) - 1)
        places = (draws[1] * self._sizes[labels]).long()  # below the size: the largest draw is 1 - 2^-53
        rows = self._rows[self._starts[labels] + places]
        return (self._samples[rows], labels) if self._d_steps > 1 else (self._samples[rows[0]], labels[0])

    def _draw(self) -> None:
        shape = self._BLOCK, 2, self._d_steps, self._batch_size
        draws = torch.rand(shape, generator=self._generator, dtype=torch.float64, device="cpu")
        self._draws = draws.to(self._samples.device)
