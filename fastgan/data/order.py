"""Random orders of many samples: a permutation in memory, or, of more than fit there, one that is computed."""

from __future__ import annotations

import torch
from torch import Tensor

# Up to so many samples the order is held in memory: 128 MB.
MOST_HELD = 2**24
_ROUNDS = 6
# Positions that are computed at once.
_BLOCK = 2**16
_POSITIVE = 2**63 - 1


class ComputedOrder:
    """A permutation of range(count) that takes no memory: a Feistel network over the bits of the position.

    What leaves the range goes through the network again ("cycle walking": Black & Rogaway 2002, "Ciphers with arbitrary
    finite domains", section 3), so that each sample comes once.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        """Draw the keys of a permutation from a CPU generator."""
        self._count = count
        self._half = (max(count - 1, 1).bit_length() + 1) // 2
        keys = torch.randint(2**62, (_ROUNDS,), generator=generator, dtype=torch.int64, device="cpu")
        self._keys: list[int] = keys.tolist()
        self._first, self._block = 0, torch.empty(0, dtype=torch.int64, device="cpu")

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> Tensor:
        """The samples at positions start to stop, int64, on the CPU."""
        first, last, _ = part.indices(self._count)
        if first < self._first or last > self._first + len(self._block):
            self._first = first
            self._block = self._at(torch.arange(first, min(self._count, max(last, first + _BLOCK)), device="cpu"))
        return self._block[first - self._first : last - self._first]

    def _at(self, positions: Tensor) -> Tensor:
        found = self._network(positions)
        while bool((outside := found >= self._count).any()):
            found[outside] = self._network(found[outside])
        return found

    def _network(self, positions: Tensor) -> Tensor:
        mask = (1 << self._half) - 1
        left, right = positions >> self._half, positions & mask
        for key in self._keys:
            # Multiplications that wrap around, and shifts, as hashes of integers have them.
            mixed = ((right + key) * 0x9E3779B97F4A7C1) & _POSITIVE
            mixed = ((mixed ^ (mixed >> 29)) * 0x94D049BB133111E) & _POSITIVE
            left, right = right, (left ^ (mixed >> 31)) & mask
        return (left << self._half) | right


def random_order(count: int, generator: torch.Generator) -> Tensor | ComputedOrder:
    """A random permutation of range(count), drawn from a CPU generator; its slices are Tensors on the CPU."""
    if count > MOST_HELD:
        return ComputedOrder(count, generator)
    return torch.randperm(count, generator=generator, device="cpu")
