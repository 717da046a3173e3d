"""The networks of a configuration, and samples drawn from a generator or from a run folder."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import checks
from fastgan.data.table import Table, rounded
from fastgan.data.units import unscale
from fastgan.nn import MLP, SegmentedActivation
from fastgan.training import pictures
from fastgan.training.checkpoint import load_checkpoint
from fastgan.training.config import TrainConfig
from fastgan.training.run_folder import RunFolder

# Of a grid, and of a scatter plot, which needs more to show a density.
PICTURE_IMAGES, PICTURE_POINTS = 100, 2000
# Times as many samples as are wanted that are drawn before a level is given up.
_ATTEMPTS = 50


def build_networks(config: TrainConfig, width: int, num_classes: int, table: Table | None = None) -> tuple[MLP, MLP]:
    """The generator and the discriminator of a configuration, float32, for samples of the given width.

    The generator of a table ends in a SegmentedActivation instead of the configured activation.
    """
    classes = num_classes if config.conditional else 0

    def output(name: str) -> str | None:
        return None if name == "identity" else name

    generator = MLP(
        [config.latent_size + classes, *config.g_hidden, width],
        activation=config.g_activation,
        output_activation=output(config.output_activation) if table is None else None,
        negative_slope=config.negative_slope,
        device="cpu",
        dtype=torch.float32,
    )
    if table is not None:
        generator.append(SegmentedActivation(table.widths, table.segments))
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
    table: Table | None = None,
) -> Tensor:
    """Samples of noise that depends on the seed alone, so that pictures of different steps show the same z.

    Args:
        generator: maps (count, latent [+ num_classes]) to (count, data).
        config: gives the latent size and whether the generator is conditional.
        count: number of samples, at least 1.
        num_classes: of the data; used by a conditional generator, as is labels.
        labels: those that samples of the data have; only they can be drawn.
        label: asked of every sample; None asks for those of labels in turn, of a table for levels as often as the data
            has them.
        seed: of the noise.
        table: of a table, its Table; labels are not used then.

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
        if table is None and label not in labels:
            raise ValueError(
                f"label must be one that samples of the data have ({', '.join(map(str, labels))}), not {label}"
            )
    noise = torch.Generator("cpu").manual_seed(seed)
    z = torch.randn(count, config.latent_size, generator=noise, dtype=torch.float32, device="cpu")
    if config.conditional:
        if table is not None and label is None:
            asked = _levels_of(table, count, noise)
        else:
            asked = torch.tensor(labels if label is None else [label], dtype=torch.int64, device="cpu")
            asked = asked.repeat(-(-count // len(asked)))[:count]
        z = torch.cat([z, F.one_hot(asked, num_classes).to(z.dtype)], dim=1)
    first = next(iter(generator.parameters()), z)
    was_training = generator.training
    try:
        with torch.random.fork_rng([first.device] if first.is_cuda else []):
            torch.manual_seed(seed)  # of the draws of a SegmentedActivation
            samples: Tensor = generator.eval()(z.to(first)).float().cpu()
        if config.data_scale != 1:
            samples = samples / config.data_scale
        return samples
    finally:
        generator.train(was_training)


def _levels_of(table: Table, count: int, generator: torch.Generator) -> Tensor:
    """Classes (count,) of a table: of columns that are drawn alike, levels as frequent as they are in the data."""
    shares = [np.array(of_column) / sum(of_column) / len(table.counts) for of_column in table.counts]
    bounds = torch.from_numpy(np.concatenate(shares).cumsum())
    draws = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
    return torch.searchsorted(bounds, draws, right=True).clamp_(max=len(bounds) - 1)


def sample_run(
    run: str | os.PathLike[str] | int | None,
    count: int,
    *,
    label: int | None = None,
    seed: int = 0,
    runs: str = "runs",
    where: str | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Samples of a run's newest checkpoint, from its EMA generator if it has one; the run stays as it is.

    Args:
        run: a run folder, the number of one in runs, or None for the newest.
        count: number of samples.
        label: for conditional runs, the class of all; None for the classes in turn.
        seed: of the noise.
        runs: the folder of run folders.
        where: of a table, `column=level` that all samples must have.

    Returns:
        The samples (count, data) in [-1, 1], and what dataset.json says of the data, with `classes`: how many
        take turns in the samples, 0 where they do not.

    Raises:
        CheckpointError: the run or its checkpoint cannot be used.
        TypeError, ValueError: count, seed or label is out of range.
    """
    folder = RunFolder.find(run, runs)
    config, facts = folder.read_config(), folder.read_dataset()
    table = table_of(facts)
    classes, labels = facts["num_classes"] if table is None else table.num_classes, facts["labels"]
    if where is not None and table is None:
        raise ValueError(f"where must not be given, but it is {where!r}: {folder.path} is no run on a table")
    generator, _ = build_networks(config, facts["width"], classes, table)
    stem = "ema" if config.ema else "generator"
    groups, _ = load_checkpoint(folder.newest_checkpoint(), {stem: generator.state_dict()})
    generator.load_state_dict(groups[stem])
    if table is not None and where is not None:
        samples = _where(generator, config, count, table, where, seed)
    else:
        samples = draw(
            generator, config, count, num_classes=classes, labels=labels, label=label, seed=seed, table=table
        )
    turns = len(labels) if config.conditional and label is None and table is None else 0
    return samples, {**facts, "classes": turns}


def table_of(facts: Mapping[str, Any]) -> Table | None:
    """The Table of a run on a table, by what its dataset.json says."""
    return Table.from_json(facts["table"]) if "table" in facts else None


def _where(generator: nn.Module, config: TrainConfig, count: int, table: Table, where: str, seed: int) -> Tensor:
    """Samples with a level, which the generator is asked for; those that have another are drawn again.

    Raises:
        ValueError: there is no such column or level, or hardly a sample has it.
    """
    name, _, level = where.partition("=")
    wanted = table.class_of(name.strip(), level.strip())
    column = table.level_columns[wanted]
    first, last = table.segment_of(column)
    found: list[Tensor] = []
    have = 0
    for attempt in range(_ATTEMPTS):
        label = wanted if config.conditional else None
        samples = draw(
            generator, config, count, num_classes=table.num_classes, label=label, seed=seed + attempt, table=table
        )
        kept = samples[samples[:, first:last].argmax(dim=1) == column - first]
        found.append(kept)
        have += len(kept)
        if have >= count:
            return torch.cat(found)[:count]
    raise ValueError(
        f"where must ask for what the run can draw, but of {_ATTEMPTS * count:,} samples only {have:,} have {where}"
    )


def write_samples(samples: Tensor, facts: dict[str, Any], out: Path) -> None:
    """Write samples as a picture or as an array.

    Args:
        samples: (count, data), in [-1, 1].
        facts: what `sample_run` says of the data.
        out: a .png; a .npy of shape (count, h, w[, 3]) or (count, data), float64, in the data's own units; or, of
            what is no image, a .csv as the data's own is written.

    Raises:
        ValueError: out ends in none of them, or in one that such data cannot be written to.
        OSError: it cannot be written.
    """
    check_out(out)
    shape, content, table = facts["image_shape"], io.BytesIO(), table_of(facts)
    kind = out.suffix.lower()
    if kind == ".npy" and table is not None:
        raise ValueError(f"out must end in .csv or .png for a table of words and numbers, not {str(out)!r}")
    if kind == ".csv" and shape:
        raise ValueError(f"out must end in .png or .npy for images, not {str(out)!r}")
    if kind == ".csv" and table is not None:
        content.write(table.write(table.decode(samples), len(samples)))
    elif kind == ".png" and table is not None:
        pictures.save_columns(table, table.decode(samples), content)
    elif kind == ".png":
        pictures.save_samples(samples, shape, content, classes=facts["classes"])
    else:
        scale, offset = (torch.tensor(facts[name], dtype=torch.float64, device="cpu") for name in ("scale", "offset"))
        values = unscale(samples, scale, offset).reshape(len(samples), *(shape or [-1])).numpy()
        if kind == ".npy":
            np.save(content, values)
        else:
            content.write(_numbers_as_csv(values, facts))
    existed = out.exists()
    try:
        out.write_bytes(content.getvalue())
    except OSError as error:
        if not existed:
            with contextlib.suppress(OSError):
                out.unlink()  # half a file, of a full disk
        raise OSError(f"out cannot be written: {out}: {error.strerror or error}") from error


def _numbers_as_csv(values: np.ndarray, facts: Mapping[str, Any]) -> bytes:
    """Numbers (count, data) as the .csv file that they were learned from was written; without one, as they are."""
    if "layout" not in facts:
        text = io.StringIO()
        np.savetxt(text, values, fmt="%r", delimiter=",")
        return text.getvalue().encode()
    layout = Table.from_json(facts["layout"])
    found = [rounded(column, of_column) for column, of_column in zip(layout.columns, values.T, strict=True)]
    return layout.write(list(found), len(values))


def check_out(out: Path) -> None:
    """ValueError unless a file's name ends in what `write_samples` can write."""
    if out.suffix.lower() not in (".png", ".npy", ".csv"):
        raise ValueError(f"out must end in .png, .npy or .csv, not {str(out)!r}")
