"""The networks of a configuration, and samples drawn from a generator or from a run folder."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import checks
from fastgan.data.units import unscale
from fastgan.nn import MLP
from fastgan.training import pictures
from fastgan.training.checkpoint import load_checkpoint
from fastgan.training.config import TrainConfig
from fastgan.training.run_folder import RunFolder

# Of a grid, and of a scatter plot, which needs more to show a density.
PICTURE_IMAGES, PICTURE_POINTS = 100, 2000


def build_networks(config: TrainConfig, width: int, num_classes: int) -> tuple[MLP, MLP]:
    """The generator and the discriminator of a configuration, float32, for samples of the given width."""
    classes = num_classes if config.conditional else 0

    def output(name: str) -> str | None:
        return None if name == "identity" else name

    generator = MLP(
        [config.latent_size + classes, *config.g_hidden, width],
        activation=config.g_activation,
        output_activation=output(config.output_activation),
        negative_slope=config.negative_slope,
        device="cpu",
        dtype=torch.float32,
    )
    discriminator = MLP(
        [config.pac * (width + classes), *config.d_hidden, 1],
        activation=config.d_activation,
        negative_slope=config.negative_slope,
        device="cpu",
        dtype=torch.float32,
    )
    return generator, discriminator


@torch.no_grad()
def draw(
    generator: nn.Module,
    config: TrainConfig,
    count: int,
    *,
    num_classes: int = 0,
    labels: Sequence[int] = (),
    label: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Samples of noise that depends on the seed alone, so that pictures of different steps show the same z.

    Args:
        generator: maps (count, latent [+ num_classes]) to (count, data).
        config: gives the latent size and whether the generator is conditional.
        count: number of samples, at least 1.
        num_classes: of the data; used by a conditional generator, as is labels.
        labels: those that samples of the data have; only they can be drawn.
        label: asked of every sample; None asks for those of labels in turn.
        seed: of the noise.

    Returns:
        (count, data), float32, on the CPU.

    Raises:
        TypeError, ValueError: count, seed or label is out of range.
    """
    checks.integer("count", count, 1)
    checks.number("count", count, 1, 2**31 - 1)
    checks.integer("seed", seed, 0)
    checks.number("seed", seed, 0, 2**63 - 1)
    if label is not None:
        checks.integer("label", label, 0)
        if not config.conditional:
            raise ValueError(f"label must not be given, but it is {label}: this generator is not conditional")
        checks.number("label", label, 0, num_classes - 1)
        if label not in labels:
            raise ValueError(
                f"label must be one that samples of the data have ({', '.join(map(str, labels))}), not {label}"
            )
    noise = torch.Generator("cpu").manual_seed(seed)
    z = torch.randn(count, config.latent_size, generator=noise, dtype=torch.float32, device="cpu")
    if config.conditional:
        asked = torch.tensor(labels if label is None else [label], dtype=torch.int64, device="cpu")
        asked = asked.repeat(-(-count // len(asked)))[:count]
        z = torch.cat([z, F.one_hot(asked, num_classes).to(z.dtype)], dim=1)
    first = next(iter(generator.parameters()), z)
    was_training = generator.training
    try:
        samples: Tensor = generator.eval()(z.to(first)).float().cpu()
        return samples
    finally:
        generator.train(was_training)


def sample_run(
    run: str | os.PathLike[str] | int | None, count: int, *, label: int | None = None, seed: int = 0, runs: str = "runs"
) -> tuple[Tensor, dict[str, Any]]:
    """Samples of a run's newest checkpoint, from its EMA generator if it has one; the run stays as it is.

    Args:
        run: a run folder, the number of one in runs, or None for the newest.
        count: number of samples.
        label: for conditional runs, the class of all; None for the classes in turn.
        seed: of the noise.
        runs: the folder of run folders.

    Returns:
        The samples (count, data) in [-1, 1], and what dataset.json says of the data, with `classes`: how many
        take turns in the samples, 0 where they do not.

    Raises:
        CheckpointError: the run or its checkpoint cannot be used.
        TypeError, ValueError: count, seed or label is out of range.
    """
    folder = RunFolder.find(run, runs)
    config, facts = folder.read_config(), folder.read_dataset()
    generator, _ = build_networks(config, facts["width"], facts["num_classes"])
    stem = "ema" if config.ema else "generator"
    groups, _ = load_checkpoint(folder.newest_checkpoint(), {stem: generator.state_dict()})
    generator.load_state_dict(groups[stem])
    classes, labels = facts["num_classes"], facts["labels"]
    samples = draw(generator, config, count, num_classes=classes, labels=labels, label=label, seed=seed)
    turns = len(labels) if config.conditional and label is None else 0
    return samples, {**facts, "classes": turns}


def write_samples(samples: Tensor, facts: dict[str, Any], out: Path) -> None:
    """Write samples as a picture or as an array.

    Args:
        samples: (count, data), in [-1, 1].
        facts: what `sample_run` says of the data.
        out: a .png, or a .npy of shape (count, h, w[, 3]) or (count, data), float64, in the data's own units.

    Raises:
        ValueError: out ends in neither.
        OSError: it cannot be written.
    """
    check_out(out)
    shape, content = facts["image_shape"], io.BytesIO()
    if out.suffix.lower() == ".png":
        pictures.save_samples(samples, shape, content, classes=facts["classes"])
    else:
        scale, offset = (torch.tensor(facts[name], dtype=torch.float64, device="cpu") for name in ("scale", "offset"))
        np.save(content, unscale(samples, scale, offset).reshape(len(samples), *(shape or [-1])).numpy())
    existed = out.exists()
    try:
        out.write_bytes(content.getvalue())
    except OSError as error:
        if not existed:
            with contextlib.suppress(OSError):
                out.unlink()  # half a file, of a full disk
        raise OSError(f"out cannot be written: {out}: {error.strerror or error}") from error


def check_out(out: Path) -> None:
    """ValueError unless a file's name ends in what `write_samples` can write."""
    if out.suffix.lower() not in (".png", ".npy"):
        raise ValueError(f"out must end in .png or .npy, not {str(out)!r}")
