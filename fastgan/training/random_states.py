"""The random states of a training run, kept apart from the caller's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class RandomStates:
    """The states of torch's own generators (the CPU's, and on CUDA the device's) that one run draws from."""

    def __init__(self, device: torch.device, seed: int) -> None:
        """Begin with the states that a seed gives."""
        self._device = device
        self._saved: dict[str, Tensor] = {}
        with self.in_force():
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                torch.cuda.default_generators[device.index].manual_seed(seed)

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Put these states in place of the caller's for the length of a block."""
        with torch.random.fork_rng(devices=[self._device.index] if self._device.type == "cuda" else []):
            self.put_in_force()
            try:
                yield
            finally:
                self._saved = self.current()

    def begin_at(self, seed: int) -> None:
        """Go on from the states that another seed gives."""
        with self.in_force():
            torch.default_generator.manual_seed(seed)
            if self._device.type == "cuda":
                torch.cuda.default_generators[self._device.index].manual_seed(seed)

    def put_in_force(self) -> None:
        """Inside `in_force`, go on from what was loaded since."""
        if "cpu" in self._saved:
            torch.set_rng_state(self._saved["cpu"])
        if "cuda" in self._saved and self._device.type == "cuda":
            torch.cuda.set_rng_state(self._saved["cuda"], self._device)

    def current(self) -> dict[str, Tensor]:
        """The states now, inside `in_force`."""
        states = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._device)
        return states

    def load(self, states: Mapping[str, Tensor]) -> None:
        """Go on from the states that `current` gave; one that is missing, as on another device, stays."""
        self._saved.update(states)
