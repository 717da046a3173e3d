"""The options of a training run: defaults for each kind of data, and the one place that validates them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from fastgan import checks, reference
from fastgan.data.dataset import Dataset
from fastgan.step import PRECISIONS


@dataclass(frozen=True)
class TrainConfig:
    """The options of a run. `TrainConfig.for_dataset` gives the defaults that suit a data set.

    Attributes:
        data: what `fastgan.data.load` loads.
        steps: training steps in all.
        batch_size: samples a batch, at most those of the data.
        latent_size: width of z.
        g_hidden: widths of the generator's hidden layers.
        d_hidden: widths of the discriminator's hidden layers.
        g_activation: after the generator's hidden layers.
        d_activation: after the discriminator's hidden layers.
        output_activation: after the generator's last layer; the data lies in [-1, 1].
        negative_slope: of leaky_relu below zero.
        loss: of the generator, `non_saturating` or `minimax`.
        real_target: the discriminator's target for real samples; 0.9 is one-sided label smoothing.
        fake_target: the discriminator's target for fakes.
        d_steps: discriminator updates a step.
        reuse_fake: the last D step's fakes serve the G step too, which saves a forward pass of the generator.
        g_lr: the generator's learning rate, with Adam.
        d_lr: the discriminator's.
        beta1: of both Adams.
        beta2: of both Adams.
        ema: keep an exponential moving average of the generator and draw the samples from it.
        ema_decay: its decay a step.
        r1_gamma: weight of the R1 penalty; 0 is off.
        r1_every: steps from one R1 penalty to the next.
        conditional: feed both networks the labels.
        seed: of the parameters, the order of the data, the noise and the pictures.
        precision: `fp32` or `bf16`.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        log_every: steps from one reading of the statistics to the next.
        sample_every: steps from one picture of samples to the next.
        checkpoint_every: steps from one checkpoint to the next.
        keep_checkpoints: the newest so many are kept.
        runs: the folder of the run folders.
    """

    data: str = "digits"
    steps: int = 15_000
    batch_size: int = 128
    latent_size: int = 64
    g_hidden: tuple[int, ...] = (256, 512)
    d_hidden: tuple[int, ...] = (512, 256)
    g_activation: str = "relu"
    d_activation: str = "leaky_relu"
    output_activation: str = "tanh"
    negative_slope: float = 0.2
    loss: str = "non_saturating"
    real_target: float = 1.0
    fake_target: float = 0.0
    d_steps: int = 1
    reuse_fake: bool = True
    g_lr: float = 1e-3
    d_lr: float = 1e-3
    beta1: float = 0.5
    beta2: float = 0.999
    ema: bool = True
    ema_decay: float = 0.999
    r1_gamma: float = 0.3
    r1_every: int = 8
    conditional: bool = False
    seed: int = 0
    precision: str = "fp32"
    device: str = "auto"
    log_every: int = 100
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    runs: str = "runs"

    def __post_init__(self) -> None:
        """Check every option by itself.

        Raises:
            TypeError, ValueError: an option is of the wrong kind or out of range; the message names it.
        """
        for name in ("data", "runs"):
            value = getattr(self, name)
            if isinstance(value, (bytes, os.PathLike)):
                value = os.fsdecode(value)
                object.__setattr__(self, name, value)
            if not isinstance(value, str):
                raise TypeError(f"{name} must be a string, not {type(value).__name__} {value!r}")
            if not value:
                raise ValueError(f"{name} must not be empty")
        for name in ("steps", "r1_every", "log_every", "sample_every", "checkpoint_every", "keep_checkpoints"):
            _whole(name, getattr(self, name), 2**63 - 1)
        for name in ("batch_size", "latent_size", "d_steps"):
            _whole(name, getattr(self, name), 2**31 - 1)
        checks.integer("seed", self.seed, 0)
        checks.number("seed", self.seed, 0, 2**63 - 1)
        for name in ("g_hidden", "d_hidden"):
            widths = getattr(self, name)
            if not isinstance(widths, (tuple, list)):
                raise TypeError(f"{name} must be a tuple of widths, not {type(widths).__name__} {widths!r}")
            for i, width in enumerate(widths):
                _whole(f"{name}[{i}]", width, 2**31 - 1)
            object.__setattr__(self, name, tuple(widths))
        for name in ("g_activation", "d_activation", "output_activation"):
            checks.choice(name, getattr(self, name), reference.ACTIVATIONS)
        checks.number("negative_slope", self.negative_slope)
        checks.choice("loss", self.loss, checks.GENERATOR_LOSSES)
        checks.number("real_target", self.real_target, 0.0, 1.0)
        checks.number("fake_target", self.fake_target, 0.0, 1.0)
        checks.number("g_lr", self.g_lr, 0.0, low_open=True)
        checks.number("d_lr", self.d_lr, 0.0, low_open=True)
        for name in ("beta1", "beta2", "ema_decay"):
            checks.number(name, getattr(self, name), 0.0, 1.0)
            if getattr(self, name) == 1.0:
                raise ValueError(f"{name} must be in [0, 1), not 1: the average would never move")
        checks.number("r1_gamma", self.r1_gamma, 0.0)
        for name in ("reuse_fake", "ema", "conditional"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        checks.choice("precision", self.precision, PRECISIONS)
        parse_device(self.device)

    def check_dataset(self, dataset: Dataset) -> None:
        """ValueError where the options ask for what the data set does not have."""
        if self.batch_size > len(dataset):
            raise ValueError(
                f"batch_size must be at most {len(dataset)}, the number of samples in {dataset.name}, not "
                f"{self.batch_size}"
            )
        if self.conditional and dataset.labels is None:
            raise ValueError(f"conditional must be False for {dataset.name}, which has no labels")

    @classmethod
    def for_dataset(cls, dataset: Dataset, data: str, **options: Any) -> TrainConfig:
        """The defaults for a data set, changed by the options that are given and not None.

        Raises:
            TypeError, ValueError: an option is unknown or out of range.
        """
        known = {option.name for option in fields(cls)}
        for name in options:
            if name not in known:
                raise TypeError(f"{name} is no option of training; the options are {', '.join(sorted(known))}")
        given = {name: value for name, value in options.items() if value is not None}
        defaults = default_options(dataset)
        # Where nobody chose a batch size, small data gets one that it can fill.
        defaults["batch_size"] = min(defaults.get("batch_size", cls.batch_size), len(dataset))
        config = cls(**{**defaults, "data": data, **given})
        config.check_dataset(dataset)
        return config

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `as_dict`.

        Raises:
            TypeError, ValueError: an option is missing, unknown or out of range.
        """
        known = {option.name for option in fields(cls)}
        for kind, names in (("unknown", set(values) - known), ("missing", known - set(values))):
            if names:
                raise ValueError(f"options of training are {kind}: {', '.join(sorted(names))}")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """All options, as TOML can hold them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def with_(self, **options: Any) -> TrainConfig:
        """A copy with some options changed, checked again."""
        return replace(self, **options)


def default_options(dataset: Dataset) -> dict[str, Any]:
    """Where the defaults for a data set differ from TrainConfig's own, which are tuned on digits."""
    if dataset.modes is not None:
        return dict(MIXTURE)
    options = dict(WIDE) if dataset.width > 256 else {}
    if dataset.image_shape is None:
        options.update(output_activation="identity", latent_size=16)
    # Told which class to draw, the same networks draw fewer images that lie between two classes.
    options["conditional"] = dataset.image_shape is not None and dataset.labels is not None
    return options


MIXTURE: dict[str, Any] = {
    "steps": 10_000,
    "batch_size": 256,
    "latent_size": 2,
    "g_hidden": (128, 128),
    "d_hidden": (128, 128),
    "output_activation": "identity",
    # The penalty leaves samples between the narrow modes: of 10,000 samples of grid25, 62 % lay within three
    # standard deviations of a mode with 0.3, 87 % with 0.05 and 90 % without; all 25 modes were reached.
    "r1_gamma": 0.0,
}
WIDE: dict[str, Any] = {
    "latent_size": 100,
    "g_hidden": (256, 512, 1024),
    "d_hidden": (1024, 512, 256),
    "g_activation": "leaky_relu",
}


def _whole(name: str, value: Any, most: int) -> None:
    """An integer of at least 1 that torch can count with."""
    checks.integer(name, value, 1)
    checks.number(name, value, 1, most)


def parse_device(name: str) -> torch.device | None:
    """The device that a name means; None for `auto`.

    Raises:
        ValueError: the name is not auto, cpu, cuda or cuda:N.
    """
    if name == "auto":
        return None
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index is not None):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}")
    return device


def pick_device(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda` or `cuda:N` means on this machine.

    Raises:
        ValueError: the name is none of these, or this machine has no such device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = parse_device(name) or torch.device("cuda" if count else "cpu")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device must be one that this machine has, with {count} CUDA devices, not {name!r}")
    # Random states and streams belong to one numbered device.
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device
