"""The four standard configurations, and what a training step of each costs."""

from __future__ import annotations

from dataclasses import dataclass
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
        g, d = (sum(a * b for a, b in pairwise(sizes)) for sizes in (self.generator, self.discriminator))
        g0, d0 = (sizes[0] * sizes[1] for sizes in (self.generator, self.discriminator))
        return float(self.batch * (6 * g - 2 * g0 + 16 * d - 4 * d0))


CONFIGURATIONS = (
    Configuration("ring", (2, 128, 128, 2), "relu", None, (2, 128, 128, 1), 256),
    Configuration("digits", (64, 256, 512, 64), "relu", "tanh", (64, 512, 256, 1), 128),
    Configuration("mnist", (100, 256, 512, 1024, 784), "leaky_relu", "tanh", (784, 1024, 512, 256, 1), 128),
    Configuration("wide", (128, 2048, 2048, 1024), "leaky_relu", "tanh", (1024, 2048, 2048, 1), 1024),
)
