"""The protocols of `fastgan eval NAME`: data, networks, optimiser, steps and measures, with their source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.data import Dataset, grid25, load, ring8
from fastgan.data.dataset import DataError
from fastgan.training.defaults import MIXTURE

# Where Debian's package dataset-fashion-mnist puts it.
FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
# Seeds of held-out points, far from those of runs.
HELD_OUT_SEED = 1_000_003
Networks = Callable[[], tuple[nn.Module, nn.Module]]


@dataclass(frozen=True)
class Entrant:
    """A GAN that a protocol trains.

    Attributes:
        options: of TrainConfig, beside the defaults for the data.
        networks: makes other networks than those of the options, float32.
        by_default: whether it runs where no entrant is named.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    networks: Networks | None = None
    by_default: bool = True


@dataclass(frozen=True)
class Protocol:
    """What `fastgan eval NAME` runs.

    Attributes:
        source: of the data and the measures.
        note: what a reader must know of it.
        published: the published row, by the names of the measures, in words.
        build: the data for a seed, from where its files are: what is trained on, and what is held out.
        entrants: the GANs, by name.
        samples: generated ones that are measured.
        components: of the Gaussian mixture beside them, of each class.
        least_variance: added to its variances.
        where: the files of the data, where it has any.
    """

    source: str
    note: str
    published: Mapping[str, str]
    build: Callable[[int, str], tuple[Dataset, Dataset]]
    entrants: Mapping[str, Entrant]
    samples: int
    components: int
    least_variance: float = 1e-6
    where: str = ""


def _mixture(kind: Callable[[int, int], Dataset]) -> Callable[[int, str], tuple[Dataset, Dataset]]:
    return lambda seed, _: (kind(seed, 100_000), kind(HELD_OUT_SEED + seed, 2500))


def _split(name: str, held_out: int) -> Callable[[int, str], tuple[Dataset, Dataset]]:
    """Data that is there once: some of it, by the seed, is held out."""

    def build(seed: int, where: str) -> tuple[Dataset, Dataset]:
        try:
            whole = load(where or name)
        except (DataError, OSError) as error:
            raise DataError(f"{name} must be there to be evaluated; name its folder with --data: {error}") from error
        shape = whole.image_shape
        if shape is None or len(shape) != 2 or shape[0] != shape[1] or len(whole) <= held_out:
            raise DataError(f"{name} must be over {held_out:,} square grey images, but {where or name} holds others")
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(HELD_OUT_SEED + seed))
        return part_of(whole, order[held_out:]), part_of(whole, order[:held_out])

    return build


def part_of(dataset: Dataset, rows: Tensor) -> Dataset:
    """Some rows of a data set."""
    return Dataset(
        name=dataset.name,
        samples=dataset.samples[rows],
        labels=None if dataset.labels is None else dataset.labels[rows],
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
        scale=dataset.scale,
        offset=dataset.offset,
        modes=dataset.modes,
        mode_std=dataset.mode_std,
    )


class Maxout(nn.Module):
    """A Linear layer whose outputs are the largest of some pieces each (Goodfellow et al. 2013, arXiv:1302.4389)."""

    def __init__(self, inputs: int, outputs: int, pieces: int) -> None:
        """Make the layer of pieces times as many outputs."""
        super().__init__()
        self.linear, self.pieces = nn.Linear(inputs, outputs * pieces), pieces

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs) to (batch, outputs)."""
        pieces: Tensor = self.linear(x).unflatten(1, (-1, self.pieces))
        return pieces.amax(dim=2)


def pacgan_networks() -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator of PacGAN's mixtures, from the authors' code: weights from N(0, 0.02^2)."""
    widths = (2, 400, 400, 400, 400)
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [nn.Linear(widths[i], widths[i + 1], bias=False), nn.BatchNorm1d(widths[i + 1]), nn.ReLU()]
    generator = nn.Sequential(*layers, nn.Linear(400, 2))
    discriminator = nn.Sequential(Maxout(2, 200, 5), Maxout(200, 200, 5), Maxout(200, 200, 5), nn.Linear(200, 1))
    for module in (*generator.modules(), *discriminator.modules()):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return generator, discriminator


# What `fastgan train ring8` and `grid25` do by themselves; its batch and its latent are the protocol's.
STOCK = Entrant()
# The plain loss, without anything that this engine adds to it; the authors' optimiser.
PLAIN: dict[str, Any] = {
    "loss": "non_saturating",
    "r1_gamma": 0.0,
    "r2_gamma": 0.0,
    "d_steps": 1,
    "data_scale": 1.0,
    "lr_schedule": "constant",
    "ema": False,
}
PACGAN_PLAIN = {"batch_size": 100, "g_lr": 1e-4, "d_lr": 1e-4, "beta1": 0.8, "beta2": 0.999, **PLAIN}


def _pacgan_entrants(data_scale: float) -> dict[str, Entrant]:
    """The GANs of PacGAN's mixtures, of which the published networks see the published numbers: the data times this."""
    plain = {**PACGAN_PLAIN, "steps": MIXTURE["steps"], "data_scale": data_scale}
    return {
        "stock GAN": STOCK,
        "published networks, plain loss": Entrant(plain, networks=pacgan_networks, by_default=False),
    }


# Of Fashion-MNIST, both GANs. Constant rates leave a generator that moves to and fro, and an average of it that has
# lost what images differ in: the rates fall. Latents are wider in sampling than in training, for recall.
FASHION: dict[str, Any] = {
    "steps": 8000,
    "g_hidden": (256, 512),
    "d_hidden": (512, 256),
    "lr_schedule": "cosine",
    "lr_final": 0.02,
    "d_lr_final": 0.1,
    "latent_scale": 1.25,
}

_PACGAN = "PacGAN: Lin, Khetan, Fanti & Oh 2018, arXiv:1712.04086, section 4.1; data of VEEGAN, arXiv:1705.07761"
_PACGAN_NOTE = (
    "100,000 points, batches of 100, latent N(0, I_2), 2,500 samples. The published row is the best of each column of "
    "the paper's table 1, from different methods. Their networks train 400,000 steps (400 epochs); ours take other "
    "networks and the steps of the stock configuration."
)

PROTOCOLS: dict[str, Protocol] = {
    "pacgan-ring8": Protocol(
        source=_PACGAN,
        note=f"Eight means on the unit circle, standard deviation 0.01. {_PACGAN_NOTE}",
        published={"modes": "7.9", "high quality": "0.982"},
        build=_mixture(ring8),
        entrants=_pacgan_entrants(1.0),
        samples=2500,
        components=8,
    ),
    "pacgan-grid25": Protocol(
        source=_PACGAN,
        note=f"Means {{-4, -2, 0, 2, 4}} squared, standard deviation 0.05. {_PACGAN_NOTE} Log-likelihoods "
        "and distances are those of the data divided by 4.",
        published={"modes": "24.8", "high quality": "0.948"},
        build=_mixture(grid25),
        entrants=_pacgan_entrants(4.0),
        samples=2500,
        components=25,
    ),
    "unrolled-ring8": Protocol(
        source="Unrolled GAN: Metz, Poole, Pfau & Sohl-Dickstein 2017, arXiv:1611.02163, section 3.1 and appendix A",
        note="Eight means on a circle, standard deviation 0.01 of its radius (0.02 of 2). Networks of two layers of "
        "128 tanh units, latent N(0, I_256), batches of 512, 25,000 steps of the plain loss, without unrolling. "
        "Circles of a linspace from 0 to 2 pi, its end included, have their first mode twice and seven in all; here "
        "there are eight. The paper shows pictures and no table. Learning rate and beta1 are 1e-4 and 0.5, which were "
        "not checked against the authors' code. Log-likelihoods and distances are those of a circle of radius 1.",
        published={},
        build=_mixture(ring8),
        entrants={
            "published networks, plain loss": Entrant(
                {
                    "batch_size": 512,
                    "latent_size": 256,
                    "steps": 25_000,
                    "g_hidden": (128, 128),
                    "d_hidden": (128, 128),
                    "g_activation": "tanh",
                    "d_activation": "tanh",
                    "g_lr": 1e-4,
                    "d_lr": 1e-4,
                    "beta1": 0.5,
                    "beta2": 0.999,
                    **PLAIN,
                    "data_scale": 2.0,  # the paper's radius
                }
            ),
            "stock GAN": Entrant({"batch_size": 512}, by_default=False),
        },
        samples=2500,
        components=8,
    ),
    "digits": Protocol(
        source="scikit-learn's digits (Alpaydin & Kaynak 1998); measures of Naeem et al. 2020, arXiv:2002.09797",
        note="1,197 digits to learn from, 600 held out, by the seed; all measures of raw pixels in [-1, 1], samples "
        "rounded to the 17 grey levels. There is no published row of an MLP GAN on this data.",
        published={},
        build=_split("digits", 600),
        entrants={"conditional GAN": Entrant({"conditional": True}), "GAN": Entrant({"conditional": False})},
        samples=600,
        components=3,
        least_variance=0.01,
    ),
    "fashion-mnist": Protocol(
        source="Fashion-MNIST: Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747; measures of arXiv:2002.09797",
        note="55,000 images to learn from, 5,000 held out, by the seed; all measures of raw pixels in [-1, 1]. "
        f"Samples are drawn from latents times {FASHION['latent_scale']:g}, which trades precision for recall. There "
        "is no published row of an MLP GAN in this feature space.",
        published={},
        build=_split("fashion-mnist", 5000),
        entrants={
            "conditional GAN": Entrant({"conditional": True, **FASHION}),
            "GAN": Entrant({"conditional": False, **FASHION}),
        },
        samples=5000,
        components=3,
        least_variance=0.01,
        where=FASHION_MNIST,
    ),
}
