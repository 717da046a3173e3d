"""The options of a training run: each declared once, with its default for each kind of data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypedDict

from fastgan import data as data_module
from fastgan import reference
from fastgan.data.dataset import Dataset
from fastgan.step_options import StepOptions, names_of
from fastgan.training.defaults import MIXTURE, SEGMENTED, SMALL, SMALL_ROWS, TABLE, WIDE, default_options
from fastgan.training.options import (
    MOST_INTEGER,
    MOST_SIZE,
    decay,
    device_name,
    integer,
    number,
    of_step,
    one_of,
    option,
    or_none,
    path,
    switch,
    widths,
    words,
    zero_or_from_one,
)
from fastgan.training.schedules import SCHEDULES

LOSSES = tuple(reference.GAN_LOSSES)
_BOUNDED = ("tanh", "sigmoid")
# Options that the first runs did not have.
LATER = (
    *("r2_gamma", "gp_weight", "gp_center", "pac", "clip_grad_norm"),
    *("instance_noise", "instance_noise_steps"),
    *("condition_weight", "columns"),
    *("data_scale", "lr_schedule", "lr_final"),
    *("keep_best", "report"),
    *("d_first_activation", "g_first_slope", "d_first_slope", "d_lr_final", "gamma_final"),
    "latent_scale",
)
# Options that a run may go on with changed: they say how long, how often and where, not what is learned.
EXTENDABLE = (
    "steps",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best",
    "report",
    "device",
)
# Of these a moved run folder or file changes the value, and dataset.json tells whether the data is the same.
_PLACES = ("data", "runs")


@dataclass(frozen=True)
class TrainConfig:
    """The options of a run. `TrainConfig.for_dataset` gives the defaults that suit a data set.

    Attributes:
        data: what `fastgan.data.load` loads.
        steps: training steps in all.
        batch_size: samples a batch, at most those of the data; several processes share it.
        latent_size: width of z.
        latent_scale: samples are drawn from z times this; training takes z as it is. Over 1 they differ more from each
            other, and fewer look real; under 1 the reverse.
        g_hidden: widths of the generator's hidden layers.
        d_hidden: widths of the discriminator's hidden layers.
        g_activation: after the generator's hidden layers.
        d_activation: after the discriminator's hidden layers.
        d_first_activation: after the first of them, where it is another; None is d_activation.
        g_first_slope: the largest slope of a unit of the generator's first layer, from 1; 0 is torch's initialisation.
            See `fastgan.training.first_layer`.
        d_first_slope: likewise of the discriminator's.
        output_activation: after the generator's last layer; the data lies in [-1, 1].
        negative_slope: of leaky_relu below zero.
        loss: `non_saturating`, `minimax`, `relativistic`, `hinge`, `wasserstein` or `least_squares`.
        real_target: the discriminator's target for real samples, where the loss has one; 0.9 is one-sided label
            smoothing.
        fake_target: the discriminator's target for fakes.
        d_steps: discriminator updates a step.
        reuse_fake: the last D step's fakes serve the G step too, which saves a forward pass of the generator.
        g_lr: the generator's learning rate, with Adam.
        d_lr: the discriminator's.
        data_scale: the networks learn the data times this; samples are divided by it again.
        lr_schedule: what becomes of both learning rates over the steps: `constant`, or `cosine`, `linear` or
            `exponential`, which fall.
        lr_final: the share of them that is left at the end of a schedule that falls.
        d_lr_final: the share of the discriminator's, where it is another; None is lr_final.
        beta1: of both Adams.
        beta2: of both Adams.
        ema: keep an exponential moving average of the generator and draw the samples from it.
        ema_decay: its decay a step.
        r1_gamma: weight of the R1 penalty, on real samples; 0 is off.
        r1_every: steps from one R1 and R2 penalty to the next.
        r2_gamma: weight of the R2 penalty, the same on fakes; 0 is off.
        gamma_final: the share of r1_gamma and r2_gamma that is left at the end; they fall by equal factors, every 100
            steps.
        gp_weight: weight of the WGAN-GP penalty, in each update of the discriminator; 0 is off.
        gp_center: the norm of the gradient that costs nothing.
        pac: so many samples are one input of the discriminator; divides batch_size.
        clip_grad_norm: the largest norm of a network's gradient; None is off.
        instance_noise: standard deviation of noise on what the discriminator is given; 0 is off.
        instance_noise_steps: steps over which it falls to 0; 0 keeps it constant.
        conditional: feed both networks the labels, or, of a table, the level of a discrete column that is asked for.
        condition_weight: of a table, weight of the cross-entropy of that column in G's loss; 0 is off.
        columns: of a .csv table, what its columns are where their cells do not tell; see `fastgan.data.load`.
        seed: of the parameters, the order of the data, the noise and the pictures.
        precision: `fp32` or `bf16`.
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
        log_every: steps from one reading of the statistics to the next.
        sample_every: steps from one picture of samples to the next.
        checkpoint_every: steps from one checkpoint to the next.
        keep_checkpoints: the newest so many are kept.
        keep_best: the one whose samples are the nearest to the data is kept too; see `fastgan.training.judge`.
        report: write report.html at the end: the run on one page.
        runs: the folder of the run folders.

    Raises:
        TypeError, ValueError: an option is of the wrong kind or out of range; the message names it.
    """

    data: str = option("digits", "", path)
    steps: int = option(15_000, "Training steps, at least 1.", integer(MOST_INTEGER))
    batch_size: int = option(128, "1 to the number of samples; of several processes, of all.", integer(MOST_SIZE))
    latent_size: int = option(64, "Width of z, at least 1.", integer(MOST_SIZE))
    latent_scale: float = option(1.0, "Samples are drawn from z times this, over 0.", number(0.0, low_open=True))
    g_hidden: tuple[int, ...] = option((256, 512), "Generator's hidden widths.", widths)
    d_hidden: tuple[int, ...] = option((512, 256), "Discriminator's.", widths)
    g_activation: str = option("relu", "Such as relu, leaky_relu, tanh.", one_of(reference.ACTIVATIONS))
    d_activation: str = option("leaky_relu", "Likewise.", one_of(reference.ACTIVATIONS))
    d_first_activation: str | None = option(
        None, "Of its first hidden layer; off is d_activation.", or_none(one_of(reference.ACTIVATIONS))
    )
    g_first_slope: float = option(0.0, "Largest of G's first layer, from 1; 0 for torch's start.", zero_or_from_one)
    d_first_slope: float = option(0.0, "Of D's first layer, likewise.", zero_or_from_one)
    output_activation: str = option("tanh", "After the generator's last layer.", one_of(reference.ACTIVATIONS))
    negative_slope: float = option(0.2, "Of leaky_relu below zero.", number())
    loss: str = option("non_saturating", f"{', '.join(LOSSES[:-1])} or {LOSSES[-1]}.", of_step())
    real_target: float = option(
        1.0, "D's target for real samples, 0 to 1 (least_squares: any); 0.9 smooths the labels.", number()
    )
    fake_target: float = option(0.0, "D's target for fakes, 0 to 1 (least_squares: any).", number())
    d_steps: int = option(1, "D's updates a step, at least 1.", of_step(MOST_SIZE))
    reuse_fake: bool = option(True, "One fake batch for D's and G's update.", switch)
    g_lr: float = option(1e-3, "G's learning rate, over 0.", number(0.0, low_open=True))
    d_lr: float = option(1e-3, "D's learning rate, over 0.", number(0.0, low_open=True))
    data_scale: float = option(1.0, "The networks learn the data times this, over 0.", number(0.0, low_open=True))
    lr_schedule: str = option("constant", "Of both rates: constant, cosine, linear or exponential.", one_of(SCHEDULES))
    lr_final: float = option(0.0, "Share of the rates at the end of the schedule, 0 to 1.", number(0.0, high=1.0))
    d_lr_final: float | None = option(None, "Of D's, 0 to 1; off is lr_final.", or_none(number(0.0, high=1.0)))
    beta1: float = option(0.5, "Adam's, 0 to 1, not 1.", decay)
    beta2: float = option(0.999, "Adam's, 0 to 1, not 1.", decay)
    ema: bool = option(True, "Draw samples from a moving average of G.", switch)
    ema_decay: float = option(0.999, "Its decay a step, 0 to 1, not 1.", of_step())
    r1_gamma: float = option(0.3, "Weight of the R1 penalty, on real samples, 0 for none.", of_step())
    r1_every: int = option(8, "Steps between R1 and R2 penalties, at least 1.", of_step(MOST_INTEGER))
    r2_gamma: float = option(0.0, "Weight of the R2 penalty, on fakes, 0 for none.", of_step())
    gamma_final: float = option(
        1.0, "Share of R1's and R2's weights at the end, over 0 to 1.", number(0.0, high=1.0, low_open=True)
    )
    gp_weight: float = option(0.0, "Weight of the WGAN-GP penalty, 0 for none.", of_step())
    gp_center: float = option(1.0, "Norm of the gradient that costs nothing, at least 0.", of_step())
    pac: int = option(1, "Samples packed into one input of D, at least 1; divides the batch.", of_step(MOST_SIZE))
    clip_grad_norm: float | None = option(None, "Largest norm of a network's gradient, over 0.", of_step())
    instance_noise: float = option(0.0, "Standard deviation of noise on D's inputs, at least 0.", of_step())
    instance_noise_steps: int = option(
        0, "Steps over which it falls to 0, at least 0; 0 keeps it.", of_step(MOST_INTEGER, least=0)
    )
    conditional: bool = option(False, "Feed both networks the labels, or of a table one of its levels.", switch)
    condition_weight: float = option(0.0, "Of a table, G's loss for another level than it was asked for.", of_step())
    columns: str = option(
        "", "Of a .csv table: name=kind,... (discrete, continuous, integer, date, date:FORMAT, drop), or plain.", words
    )
    seed: int = option(0, "At least 0.", integer(MOST_INTEGER, least=0))
    precision: str = option("fp32", "fp32 or bf16.", of_step())
    device: str = option("auto", "auto (CUDA where there is one), cpu, cuda or cuda:N.", device_name)
    log_every: int = option(100, "Steps between readings of the losses, at least 1.", integer(MOST_INTEGER))
    sample_every: int = option(1000, "Steps between pictures, at least 1.", integer(MOST_INTEGER))
    checkpoint_every: int = option(1000, "Steps between checkpoints, at least 1.", integer(MOST_INTEGER))
    keep_checkpoints: int = option(3, "Checkpoints kept, at least 1.", integer(MOST_INTEGER))
    keep_best: bool = option(True, "Keep the checkpoint nearest to the data, too.", switch)
    report: bool = option(False, "Write report.html at the end: the run on one page.", switch)
    runs: str = option("runs", "Folder of the run folders.", path)

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, each.metadata["check"](each.name, getattr(self, each.name)))
        StepOptions(**self._shared())  # what the options must be together, such as the targets of the loss
        if self.data_scale > 1 and self.output_activation in _BOUNDED:
            raise ValueError(
                f"output_activation must be one without bounds with data_scale={self.data_scale:g}, such as identity, "
                f"not {self.output_activation!r}"
            )
        for name, final in (("lr_final", self.lr_final), ("d_lr_final", self.d_lr_final)):
            if self.lr_schedule == "exponential" and final == 0:
                raise ValueError(f"{name} must be over 0 with lr_schedule='exponential', such as 0.01, not {final:g}")
        if self.batch_size % self.pac:
            raise ValueError(f"batch_size must be a multiple of pac={self.pac}, not {self.batch_size}")

    def check_processes(self, count: int) -> None:
        """ValueError where so many processes cannot share a batch."""
        if self.batch_size % (count * self.pac):
            packs = f" with pac={self.pac}" if self.pac > 1 else ""
            raise ValueError(
                f"batch_size must be a multiple of {count * self.pac} where {count} processes share it{packs}, not "
                f"{self.batch_size}"
            )

    def check_dataset(self, dataset: Dataset) -> None:
        """ValueError where the options ask for what the data set does not have."""
        if self.batch_size > len(dataset):
            raise ValueError(
                f"batch_size must be at most {len(dataset)}, the number of samples in {dataset.name}, not "
                f"{self.batch_size}"
            )
        if self.conditional and dataset.conditions == 0:
            lacks = "labels" if dataset.table is None else "discrete columns"
            raise ValueError(f"conditional must be False for {dataset.name}, which has no {lacks}")
        if self.data_scale != 1 and dataset.table is not None:
            raise ValueError(f"data_scale must be 1 for a table of words and numbers, not {self.data_scale:g}")
        if self.condition_weight > 0 and (not self.conditional or dataset.table is None):
            raise ValueError(
                f"condition_weight must be 0 but for a conditional run on a table with discrete columns, not "
                f"{self.condition_weight:g}"
            )

    @classmethod
    def for_dataset(cls, dataset: Dataset, data: str, **options: Any) -> TrainConfig:
        """The defaults for a data set, changed by the options that are given and not None.

        Raises:
            TypeError, ValueError: an option is unknown or out of range.
        """
        known = {each.name for each in fields(cls)}
        for name in options:
            if name not in known:
                raise TypeError(f"{name} is no option of training; the options are {', '.join(sorted(known))}")
        given = {name: value for name, value in options.items() if value is not None}
        defaults = default_options(dataset, given)
        # Where nobody chose a batch size, small data gets one that it can fill.
        size, pac = min(defaults.get("batch_size", cls.batch_size), len(dataset)), given.get("pac", defaults.get("pac"))
        if type(pac) is int and 0 < pac <= size:
            size -= size % pac
        defaults["batch_size"] = size
        config = cls(**{**defaults, "data": data, **given})
        config.check_dataset(dataset)
        return config

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `as_dict`. Options that runs did not have once are as they were then, off,
        but for keep_best, which changes no step.

        Raises:
            TypeError, ValueError: an option is missing, unknown or out of range.
        """
        known = {each.name for each in fields(cls)}
        for kind, names in (("unknown", set(values) - known), ("missing", known - set(values) - set(LATER))):
            if names:
                raise ValueError(f"options of training are {kind}: {', '.join(sorted(names))}")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """All options that have a value, as TOML can hold them: it has no None."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def with_(self, **options: Any) -> TrainConfig:
        """A copy with some options changed, checked again."""
        return replace(self, **options)

    def extended(self, **options: Any) -> TrainConfig:
        """A copy with options changed that a run may go on with changed.

        Raises:
            TypeError, ValueError: an option is none of those, or out of range.
        """
        for name, value in options.items():
            if name not in EXTENDABLE:
                raise ValueError(
                    f"extend must name options that a run can go on with changed ({', '.join(EXTENDABLE)}), "
                    f"not {name}={value}: with another value it would be another run"
                )
        return self.with_(**options)

    def changes_of_course(self, then: Mapping[str, Any]) -> list[str]:
        """What of an earlier `as_dict` differs so that the course of training would, each as "loss was X and is Y"."""
        before = asdict(TrainConfig.from_dict(then))
        return [
            f"{name} was {_in_words(before[name])} and is {_in_words(value)}"
            for name, value in asdict(self).items()
            if name not in (*EXTENDABLE, *_PLACES) and value != before[name]
        ]

    def step_options(self, num_classes: int) -> dict[str, Any]:
        """Those of a `fastgan.TrainStep` over data of so many classes."""
        return {**self._shared(), "num_classes": num_classes if self.conditional else 0}

    def _shared(self) -> dict[str, Any]:
        shared = {each.name for each in fields(self)} & set(names_of(StepOptions))
        return {name: getattr(self, name) for name in shared}


class TrainOptions(TypedDict, total=False):
    """The keywords of `fastgan.Trainer`, for type checkers and editors: what TrainConfig has, but for the data."""

    steps: int | None
    batch_size: int | None
    latent_size: int | None
    latent_scale: float | None
    g_hidden: tuple[int, ...] | list[int] | None
    d_hidden: tuple[int, ...] | list[int] | None
    g_activation: str | None
    d_activation: str | None
    d_first_activation: str | None
    g_first_slope: float | None
    d_first_slope: float | None
    output_activation: str | None
    negative_slope: float | None
    loss: str | None
    real_target: float | None
    fake_target: float | None
    d_steps: int | None
    reuse_fake: bool | None
    g_lr: float | None
    d_lr: float | None
    data_scale: float | None
    lr_schedule: str | None
    lr_final: float | None
    d_lr_final: float | None
    beta1: float | None
    beta2: float | None
    ema: bool | None
    ema_decay: float | None
    r1_gamma: float | None
    r1_every: int | None
    r2_gamma: float | None
    gamma_final: float | None
    gp_weight: float | None
    gp_center: float | None
    pac: int | None
    clip_grad_norm: float | None
    instance_noise: float | None
    instance_noise_steps: int | None
    conditional: bool | None
    condition_weight: float | None
    columns: str | None
    seed: int | None
    precision: str | None
    device: str | None
    log_every: int | None
    sample_every: int | None
    checkpoint_every: int | None
    keep_checkpoints: int | None
    keep_best: bool | None
    report: bool | None
    runs: str | os.PathLike[str] | None


def configure(
    data: str | os.PathLike[str] | Dataset | TrainConfig, dataset: Dataset | None, options: TrainOptions
) -> tuple[TrainConfig, Dataset]:
    """The configuration and the data set that a Trainer's arguments mean."""
    if isinstance(data, TrainConfig):
        if options:
            raise TypeError(f"options must be inside the TrainConfig, not beside it: {', '.join(options)}")
        dataset = dataset or data_module.load(data.data, data.seed, columns=data.columns)
        data.check_dataset(dataset)
        return data, dataset
    if dataset is not None:
        raise TypeError("dataset must be given with a TrainConfig; otherwise give it as data")
    if isinstance(data, Dataset):
        return TrainConfig.for_dataset(data, data.name, **options), data
    seed = options.get("seed")
    dataset = data_module.load(data, TrainConfig.seed if seed is None else seed, columns=options.get("columns"))
    name = os.fsdecode(data)
    if name not in data_module.BUILT_IN:
        name = os.path.abspath(name)  # so that the run can be resumed from another folder
    return TrainConfig.for_dataset(dataset, name, **options), dataset


def parse_extension(texts: Iterable[str]) -> dict[str, Any]:
    """The options of `name=value` texts, for `TrainConfig.extended`, which checks them.

    Raises:
        ValueError: a text is not of that form, or its value is none of the option's kind.
    """
    switches = {"on": True, "true": True, "off": False, "false": False}
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not equals:
            raise ValueError(f"extend must be name=value, such as steps=20000, not {text!r}")
        default = getattr(TrainConfig, name, None)
        if isinstance(default, bool) and value.lower() in switches:
            found[name] = switches[value.lower()]
        elif isinstance(default, int) and re.fullmatch(r"[+-]?\d+", value):
            found[name] = int(value)
        else:
            found[name] = value
    return found


def default_in_words(name: str) -> str:
    """The default of an option, and those for the kinds of data that have another: "64; tables: 16"."""
    if name == "conditional":
        return "on for labelled images and for tables with discrete columns"
    if name == "columns":
        return "told by the cells"
    kinds: dict[str, list[str]] = {}
    named = {
        "over 256 values a sample": WIDE,
        "tables": TABLE,
        "tables with words": SEGMENTED,
        f"of under {SMALL_ROWS:,} rows": SMALL,
        "ring8, grid25": MIXTURE,
    }
    for kind, defaults in named.items():
        if name in defaults:
            kinds.setdefault(_in_words(defaults[name]), []).append(kind)
    others = [f"{', '.join(of)}: {value}" for value, of in kinds.items()]
    return "; ".join([_in_words(getattr(TrainConfig, name)), *others])


def _in_words(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
