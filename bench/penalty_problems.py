"""Training with gradient penalties: what losses, penalties and networks are measured, and what a step of each costs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from .configurations import CONFIGURATIONS, Configuration


@dataclass(frozen=True)
class Objective:
    """A loss with its penalties, named as in `fastgan.TrainStep`."""

    title: str
    loss: str
    r1_gamma: float = 0.0
    r2_gamma: float = 0.0
    r1_every: int = 1
    gp_weight: float = 0.0
    d_steps: int = 1
    fake_target: float = 0.0

    @property
    def slopes_of(self) -> tuple[float, float]:
        """What the mean squared slope at real data, and at fakes, is weighted with where it is due."""
        return self.r1_gamma / 2 * self.r1_every, self.r2_gamma / 2 * self.r1_every

    @property
    def cancels_last_bias(self) -> bool:
        """Whether what is added to all of D's scores changes nothing in its loss."""
        return self.loss in ("wasserstein", "relativistic")


@dataclass(frozen=True)
class Problem:
    """An objective, the networks and the batch. A configuration without a generator is a discriminator alone."""

    objective: Objective
    configuration: Configuration
    d_activation: str = "leaky_relu"

    @property
    def name(self) -> str:
        """Of the case: the objective and the configuration."""
        return f"{self.objective.title} {self.configuration.name}"

    @property
    def trains_generator(self) -> bool:
        """Whether there is a generator."""
        return bool(self.configuration.generator)

    @property
    def step_flops(self) -> float:
        """Operations of the products that a step cannot do without, the mean over the steps of a lazy penalty.

        d, d0 and dl are the weight sizes of D: all, the first layer's, the last layer's; g and g0 those of G. A weight
        costs 2 operations a sample in each product. Counted in weights a sample, with delta_l the gradient of D's
        output by z_l, h_l the activations, c the derivative of the loss by the logit:

        - The loss of D, at real data and at fakes: forward d; the chain of delta d - d0; weight gradients
          dW_l = sum delta_l (c h_(l-1))^T d. Each side 3 d - d0.
        - R1 at real data, R2 at fakes, of a D whose activations are linear in pieces: the loss's forward pass and its
          chain serve. What is added is the gradient by the data, the chain's product with the first layer, d0; and
          tangents t_0 = (gamma / batch) grad_x D, t_l = act'(z_l) W_l t_(l-1), whose last layer nothing needs, d - dl.
          The weight gradients dW_l = sum delta_l (c h_(l-1) + t_(l-1))^T are as many products as without: each
          d0 + d - dl.
        - The WGAN-GP penalty lies at other points: forward d - dl (only the slopes act'(z_l) are needed, the output is
          not), chain to the data d, tangents d - dl, weight gradients delta_l t_(l-1)^T d: 4 d - 2 dl.
        - A step of G, its fakes those of D's last update: D forward d and its chain to the data d; a relativistic loss
          needs the updated D at real data too, d. G forward g for each update of D, weight gradients g, chain g - g0.
        """
        objective = self.objective
        d, d0, last = _weights(self.configuration.discriminator)
        update = 2 * (3 * d - d0)
        update += ((objective.r1_gamma > 0) + (objective.r2_gamma > 0)) * (d0 + d - last) / objective.r1_every
        update += (objective.gp_weight > 0) * (4 * d - 2 * last)
        weights = objective.d_steps * update
        if self.trains_generator:
            g, g0, _ = _weights(self.configuration.generator)
            weights += (2 + (objective.loss == "relativistic")) * d + objective.d_steps * g + 2 * g - g0
        return 2.0 * self.configuration.batch * weights


def _weights(sizes: tuple[int, ...]) -> tuple[int, int, int]:
    """Sizes of the weights of a network: all, the first layer's, the last layer's."""
    layers = [a * b for a, b in pairwise(sizes)]
    return sum(layers), layers[0], layers[-1]


R1 = Objective("R1", "non_saturating", r1_gamma=10.0)
RELATIVISTIC = Objective("relativistic R1+R2", "relativistic", r1_gamma=10.0, r2_gamma=10.0)
OBJECTIVES = (
    Objective("WGAN-GP", "wasserstein", gp_weight=10.0, d_steps=5),
    R1,
    Objective("R1 each 16th", "non_saturating", r1_gamma=10.0, r1_every=16),
    RELATIVISTIC,
)
# The discriminator of adversarial motion priors (Peng et al. 2021, arXiv:2104.02180): least squares with targets 1 and
# -1, and R1 at each step.
AMP = Problem(
    Objective("AMP", "least_squares", r1_gamma=10.0, fake_target=-1.0),
    Configuration("discriminator", (), "relu", None, (128, 1024, 512, 1), 4096),
    d_activation="relu",
)
# The discriminator of generative adversarial imitation (Ho & Ermon 2016, arXiv:1606.03476, appendix B): cross-entropy
# alone, two hidden layers of 100 units with tanh, here of the 17 observations and 6 actions of HalfCheetah.
GAIL = Problem(
    Objective("GAIL", "non_saturating"),
    Configuration("discriminator", (), "tanh", None, (23, 100, 100, 1), 1024),
    d_activation="tanh",
)
# Five updates of D, or sixteen steps in a turn, take long with `wide`, which has the other two alone.
PROBLEMS = (
    *(
        Problem(objective, configuration)
        for configuration in CONFIGURATIONS
        for objective in (OBJECTIVES if configuration.name != "wide" else (R1, RELATIVISTIC))
    ),
    AMP,
    GAIL,
)
