"""The four standard configurations, and what a training step of each costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise


@dataclass(frozen=True)
class Configuration:
    """Widths of both networks, the generator's activations, and the batch."""

    name: str
    generator: tuple[int, ...]
    activation: str
    output_activation: str | None
    discriminator: tuple[int, ...]
    batch: int

    @property
    def step_flops(self) -> float:
        """Operations of one step that reuses the fake batch: B (6 g - 2 g0 + 16 d - 4 d0).

        g and d are the summed weight sizes, g0 and d0 the first layers'. A weight costs 2 operations a sample in each
        product: G goes forward once and backward once (its first layer without an input gradient); D forward three
        times, backward with weight gradients twice (its first layer without input gradients) and once without.
        """
        g, d = self._weights
        g0, d0 = (sizes[0] * sizes[1] for sizes in (self.generator, self.discriminator))
        return float(self.batch * (6 * g - 2 * g0 + 16 * d - 4 * d0))

    @property
    def step_bytes(self) -> float:
        """Least bytes that a float32 step moves through memory.

        Each parameter and both its Adam moments are read and written once; data, noise and fakes are read or written
        once. That is for caches that hold all activations, and for one pass over the weights, which no step has.
        """
        parameters = sum(self._weights) + sum(self.generator[1:]) + sum(self.discriminator[1:])
        return 4.0 * (6 * parameters + self.batch * (self.generator[0] + 2 * self.generator[-1]))

    @property
    def _weights(self) -> tuple[int, int]:
        g, d = (sum(a * b for a, b in pairwise(sizes)) for sizes in (self.generator, self.discriminator))
        return g, d


CONFIGURATIONS = (
    Configuration("ring", (2, 128, 128, 2), "relu", None, (2, 128, 128, 1), 256),
    Configuration("digits", (64, 256, 512, 64), "relu", "tanh", (64, 512, 256, 1), 128),
    Configuration("mnist", (100, 256, 512, 1024, 784), "leaky_relu", "tanh", (784, 1024, 512, 256, 1), 128),
    Configuration("wide", (128, 2048, 2048, 1024), "leaky_relu", "tanh", (1024, 2048, 2048, 1), 1024),
)

BATCHES = (32, 64, 128, 256, 512, 1024)
WIDTHS = (32, 64, 128, 256, 512, 1024)


def by_name(name: str) -> Configuration:
    """One of the four."""
    return next(c for c in CONFIGURATIONS if c.name == name)


def batch_sweep() -> list[Configuration]:
    """The networks of `digits` at every batch of BATCHES."""
    return [replace(by_name("digits"), name=f"digits batch {batch}", batch=batch) for batch in BATCHES]


def width_sweep() -> list[Configuration]:
    """Networks of two hidden layers of every width of WIDTHS, from and to 64 values, at batch 256."""
    return [Configuration(f"width {w}", (64, w, w, 64), "relu", "tanh", (64, w, w, 1), 256) for w in WIDTHS]
