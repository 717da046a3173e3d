"""The defaults of a run for each kind of data, where they differ from TrainConfig's own, which are tuned on digits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastgan.data.dataset import Dataset

WIDE: dict[str, Any] = {
    "latent_size": 100,
    "g_hidden": (256, 512, 1024),
    "d_hidden": (1024, 512, 256),
    "g_activation": "leaky_relu",
}
TABLE: dict[str, Any] = {"latent_size": 16, "output_activation": "identity"}
# Those of CTGAN (Xu et al. 2019, arXiv:1907.00503, section 4.4), but for a generator that has no residual layers.
SEGMENTED: dict[str, Any] = {
    "steps": 10_000,
    "batch_size": 500,
    "latent_size": 128,
    "g_hidden": (256, 256),
    "d_hidden": (256, 256),
    "loss": "wasserstein",
    "gp_weight": 10.0,
    "pac": 10,
    "r1_gamma": 0.0,
    "g_lr": 2e-4,
    "d_lr": 2e-4,
    "beta2": 0.9,
    "condition_weight": 1.0,
}
# Where they differ in a table of few rows, of which an epoch is a step or two: many small steps at a high rate learn
# more in the same time. 569 rows are the most that was tried. A pac of 1 makes the first layer of D narrow.
SMALL: dict[str, Any] = {
    "steps": 2000,
    "batch_size": 50,
    "g_hidden": (128, 128),
    "d_hidden": (128, 128),
    "pac": 1,
    "g_lr": 1e-3,
    "d_lr": 1e-3,
    "beta1": 0.0,
    "beta2": 0.99,
}
SMALL_ROWS = 1000
SIMPLE_MIXTURE: dict[str, Any] = {
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
# One configuration for ring8 and grid25, whose samples it scales to [-4, 4]; figures in bench/results/evaluation.md.
# Batch and latent are PacGAN's (arXiv:1712.04086), loss, penalties and their fall R3GAN's (arXiv:2501.05441).
MIXTURE: dict[str, Any] = {
    "steps": 15_000,
    "batch_size": 100,
    "latent_size": 2,
    "g_hidden": (256, 256, 256, 256),
    "d_hidden": (256, 128, 128),
    # A mode is a hundredth of the domain. A first layer of leaky_relu learns so slowly what lies within one that modes
    # stay too narrow; one of tanh with steep units among its own does not.
    "d_first_activation": "tanh",
    "g_first_slope": 10.0,
    "d_first_slope": 10.0,
    "output_activation": "identity",
    "data_scale": 4.0,
    "loss": "relativistic",
    # Strong at first, without which rows of the grid are lost; weak at the end, for it hides the width of a mode.
    "r1_gamma": 0.5,
    "r2_gamma": 0.5,
    "gamma_final": 2e-4,
    "r1_every": 4,
    # Modes are too narrow where the discriminator lags behind a generator that moves to and fro.
    "d_steps": 3,
    "beta1": 0.0,
    "beta2": 0.99,
    "lr_schedule": "exponential",
    "lr_final": 0.004,
    "d_lr_final": 0.1,
    "ema_decay": 0.99,
}


def default_options(dataset: Dataset, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Where the defaults for a data set differ from TrainConfig's own, beside the options that are given."""
    if dataset.table is not None:
        return _table_options(dataset, given or {})
    if dataset.modes is not None:
        return _mixture_options(given or {})
    options = {**(WIDE if dataset.width > 256 else {}), **(TABLE if dataset.image_shape is None else {})}
    # Told which class to draw, the same networks draw fewer images that lie between two classes.
    options["conditional"] = dataset.image_shape is not None and dataset.labels is not None
    return options


def _mixture_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those for a mixture. Nearly all belong to the loss: where another is asked for, there are simple ones instead.

    A target asks for another loss too, for this one takes none.
    """
    has_target = any(
        given.get(name, default) != default for name, default in (("real_target", 1.0), ("fake_target", 0.0))
    )
    loss = given.get("loss", "non_saturating" if has_target else MIXTURE["loss"])
    return dict(MIXTURE if loss == MIXTURE["loss"] else SIMPLE_MIXTURE)


def _table_options(dataset: Dataset, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those for a table. What belongs to the loss stays out where another is given, and packs where they do not fit."""
    options = dict(SEGMENTED)
    is_own_loss = given.get("loss", options["loss"]) == options["loss"]
    if is_own_loss and len(dataset) < SMALL_ROWS:
        options.update(SMALL)
    if not is_own_loss:
        for name in ("gp_weight", "r1_gamma"):
            del options[name]
    size = given.get("batch_size", min(options["batch_size"], len(dataset)))
    if ("batch_size" in given and type(size) is int and size % options["pac"]) or size < options["pac"]:
        options["pac"] = 1
    options["conditional"] = bool(given.get("conditional", dataset.conditions > 0))
    if not options["conditional"]:
        options["condition_weight"] = 0.0
    return options
