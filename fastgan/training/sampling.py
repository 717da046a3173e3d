"""The networks of a configuration, and samples drawn from a generator: all at once, or a part at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import checks
from fastgan.data.table import Table
from fastgan.layers import activation_module
from fastgan.nn import MLP, SegmentedActivation
from fastgan.training import first_layer
from fastgan.training.config import TrainConfig

# Of a grid, and of a scatter plot, which needs more to show a density.
PICTURE_IMAGES, PICTURE_POINTS = 100, 2000
# Numbers of one layer's output, and rows, that are drawn at a time: 4 MB, and few megabytes of text.
_NUMBERS_AT_A_TIME, _ROWS_AT_A_TIME = 2**20, 2**13
# PyTorch draws normal numbers in blocks of so many; whole blocks follow each other as if they were drawn at once.
_BLOCK = 16


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
    if config.d_first_activation is not None and config.d_hidden:
        discriminator[1] = activation_module(config.d_first_activation, config.negative_slope)
    if config.g_first_slope and config.g_hidden:
        zeros = torch.randn(len(generator[0].bias), config.latent_size, device="cpu", dtype=torch.float32)
        first_layer.spread(generator[0], config.g_first_slope, F.pad(zeros, (0, classes)))
    if config.d_first_slope and config.d_hidden:
        zeros = first_layer.in_a_box(len(discriminator[0].bias), config.pac, width, config.data_scale)
        first_layer.spread(discriminator[0], config.d_first_slope, F.pad(zeros, (0, classes)).flatten(1))
    return generator, discriminator


class Drawn(NamedTuple):
    """Some samples.

    Attributes:
        samples: (rows, data), float32, on the CPU.
        labels: (rows,) int64, the class that each was asked for; None where they have none.
    """

    samples: Tensor
    labels: Tensor | None


def draw(
    generator: nn.Module,
    config: TrainConfig,
    count: int,
    *,
    num_classes: int = 0,
    labels: Sequence[int] = (),
    label: int | Sequence[int] | None = None,
    seed: int = 0,
    table: Table | None = None,
) -> Tensor:
    """Samples of noise that depends on the seed alone, so that pictures of different steps show the same z.

    Args:
        generator: maps (count, latent [+ num_classes]) to (count, data).
        config: gives the size and the scale of the latents, and whether the generator is conditional.
        count: number of samples, at least 1.
        num_classes: of the data; used by a conditional generator, as is labels.
        labels: those that samples of the data have; only they can be drawn.
        label: asked of every sample, or several that take turns; None asks for those of labels in turn, of a table for
            levels as often as the data has them.
        seed: of the noise.
        table: of a table, its Table; labels are not used then.

    Returns:
        (count, data), float32, on the CPU.

    Raises:
        TypeError, ValueError: count, seed or label is out of range.
    """
    parts = drawn(generator, config, count, num_classes=num_classes, labels=labels, label=label, seed=seed, table=table)
    return torch.cat([part.samples for part in parts])


def drawn(
    generator: nn.Module,
    config: TrainConfig,
    count: int,
    *,
    num_classes: int = 0,
    labels: Sequence[int] = (),
    label: int | Sequence[int] | None = None,
    seed: int = 0,
    table: Table | None = None,
) -> Iterator[Drawn]:
    """The samples of `draw`, a part at a time: of the same noise, in memory that does not grow with their number."""
    asked = _checked(config, count, num_classes, labels, label, seed, table)
    runner = _Runner(generator, config, seed)
    for latents, of_rows in _latents(config, count, seed, num_classes, asked, table, rows_at_a_time(generator)):
        yield Drawn(runner.run([_input(latents, of_rows, num_classes)])[0], of_rows)


def walk(
    generator: nn.Module,
    config: TrainConfig,
    count: int,
    frames: int,
    *,
    num_classes: int = 0,
    labels: Sequence[int] = (),
    label: int | Sequence[int] | None = None,
    seed: int = 0,
    table: Table | None = None,
) -> Iterator[Drawn]:
    """A closed walk through the samples of `draw`: from each to the next, from the last to the first.

    The latents go along great circles (White 2016, arXiv:1609.04468), so that none is nearer to the origin than those
    of training are; the condition goes in a straight line. The draws of a table's levels are those of the sample that
    a row begins with.

    Args:
        generator, config, num_classes, labels, label, seed, table: as in `draw`.
        count: samples that the walk goes through, at least 2.
        frames: from one to the next, at least 1: the first of them is the sample itself.

    Returns:
        Parts of whole rows, each row of `frames` samples: (rows * frames, data) and no labels.
    """
    asked = _checked(config, count, num_classes, labels, label, seed, table)
    checks.number("count", count, 2)
    checks.integer("frames", frames, 1)
    runner = _Runner(generator, config, seed)
    rows = max(_BLOCK, rows_at_a_time(generator) // frames // _BLOCK * _BLOCK)
    parts = _latents(config, count, seed, num_classes, asked, table, rows)
    for points in _with_next((latents, _one_hot(of_rows, num_classes, latents)) for latents, of_rows in parts):
        (latents, conditions), (to_latents, to_conditions) = points
        inputs = []
        for share in (frame / frames for frame in range(frames)):
            condition = torch.lerp(conditions, to_conditions, share)
            inputs.append(torch.cat([_on_circle(latents, to_latents, share), condition], dim=1))
        yield Drawn(torch.stack(runner.run(inputs), dim=1).flatten(0, 1), None)


def rows_at_a_time(generator: nn.Module) -> int:
    """Rows that a generator is given at a time, a multiple of 16."""
    widest = max((max(p.shape) for p in generator.parameters() if p.dim()), default=1)
    return max(_BLOCK, min(_ROWS_AT_A_TIME, _NUMBERS_AT_A_TIME // widest) // _BLOCK * _BLOCK)


class _Runner:
    """Runs a generator in eval mode, its draws going on from part to part; the caller's random state stays as it is."""

    def __init__(self, generator: nn.Module, config: TrainConfig, seed: int) -> None:
        self._generator, self._scale = generator, config.data_scale
        self._like = next(iter(generator.parameters()), torch.zeros(0, dtype=torch.float32, device="cpu"))
        self._devices = [self._like.device] if self._like.is_cuda else []
        with torch.random.fork_rng(self._devices):
            torch.manual_seed(seed)  # of the draws of a SegmentedActivation
            self._state = self._current()

    @torch.no_grad()
    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Samples of each of the inputs, all with the same draws."""
        was_training = self._generator.training
        found = []
        try:
            self._generator.eval()
            with torch.random.fork_rng(self._devices):
                for each in inputs:
                    self._set(self._state)
                    samples: Tensor = self._generator(each.to(self._like)).float().cpu()
                    found.append(samples if self._scale == 1 else samples / self._scale)
                self._state = self._current()
        finally:
            self._generator.train(was_training)
        return found

    def _current(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._devices)]

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)


def _checked(
    config: TrainConfig,
    count: int,
    num_classes: int,
    labels: Sequence[int],
    label: int | Sequence[int] | None,
    seed: int,
    table: Table | None,
) -> list[int] | None:
    """The classes that take turns; None where there are none, or those of a table are drawn."""
    checks.integer("count", count, 1)
    checks.number("count", count, 1, 2**31 - 1)
    checks.integer("seed", seed, 0)
    checks.number("seed", seed, 0, 2**63 - 1)
    if label is None:
        return list(labels) if config.conditional and table is None else None
    asked = list(label) if isinstance(label, (list, tuple)) else [label]
    if not asked:
        raise ValueError("label must be a class or several, not an empty list")
    for each in asked:
        checks.integer("label", each, 0)
        if not config.conditional:
            raise ValueError(f"label must not be given, but it is {each}: this generator is not conditional")
        checks.number("label", each, 0, num_classes - 1)
        if table is None and each not in labels:
            raise ValueError(
                f"label must be one that samples of the data have ({', '.join(map(str, labels))}), not {each}"
            )
    return [int(each) for each in asked]  # type: ignore[arg-type]  # checked above


def _latents(
    config: TrainConfig,
    count: int,
    seed: int,
    num_classes: int,
    asked: list[int] | None,
    table: Table | None,
    rows: int,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Latents (rows, latent) and classes (rows,) int64 of a part at a time: those that `count` at once would have."""
    width = config.latent_size
    sizes = [rows] * (count // rows)
    left = count % rows
    if sizes and left * width < _BLOCK:  # too few numbers to be drawn in blocks
        sizes[-1] += left
    elif left:
        sizes.append(left)
    noise = torch.Generator("cpu").manual_seed(seed)
    levels = torch.Generator("cpu").manual_seed(seed)
    draws_levels = config.conditional and asked is None and table is not None
    if draws_levels:  # which come after all latents
        for size in sizes:
            torch.randn(size, width, generator=levels, dtype=torch.float32, device="cpu")
    done = 0
    for size in sizes:
        z = torch.randn(size, width, generator=noise, dtype=torch.float32, device="cpu")
        if config.latent_scale != 1:
            z *= config.latent_scale
        of_rows = None
        if draws_levels:
            assert table is not None
            of_rows = _levels_of(table, size, levels)
        elif asked is not None:
            turns = torch.arange(done, done + size, device="cpu") % len(asked)
            of_rows = torch.tensor(asked, dtype=torch.int64, device="cpu")[turns]
        yield z, of_rows
        done += size


def _one_hot(of_rows: Tensor | None, num_classes: int, like: Tensor) -> Tensor:
    """(rows, num_classes) of classes; (rows, 0) where there are none."""
    return like[:, :0] if of_rows is None else F.one_hot(of_rows, num_classes).to(like.dtype)


def _input(latents: Tensor, of_rows: Tensor | None, num_classes: int) -> Tensor:
    return latents if of_rows is None else torch.cat([latents, _one_hot(of_rows, num_classes, latents)], dim=1)


def _with_next(
    parts: Iterable[tuple[Tensor, ...]],
) -> Iterator[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Rows and the rows after each; after the last row comes the first."""
    first: tuple[Tensor, ...] = ()
    held: tuple[Tensor, ...] = ()
    for part in parts:
        first = first or tuple(each[:1] for each in part)
        rows = tuple(map(torch.cat, zip(held, part, strict=True))) if held else part
        held = tuple(each[-1:] for each in rows)
        if len(rows[0]) > 1:
            yield tuple(each[:-1] for each in rows), tuple(each[1:] for each in rows)
    yield held, first


def _on_circle(start: Tensor, end: Tensor, share: float) -> Tensor:
    """Points (rows, latent) at a share of the way from start to end; nearly parallel ones are joined by a line."""
    if share == 0:
        return start
    a, b = start.double(), end.double()
    cosine = (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(dim=1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    line = torch.lerp(a, b, share)
    circle = (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()
    return torch.where(angle.sin() > 1e-6, circle, line).to(start.dtype)


def _levels_of(table: Table, count: int, generator: torch.Generator) -> Tensor:
    """Classes (count,) of a table: of columns that are drawn alike, levels as frequent as they are in the data."""
    shares = [np.array(of_column) / sum(of_column) / len(table.counts) for of_column in table.counts]
    bounds = torch.from_numpy(np.concatenate(shares).cumsum())
    draws = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
    return torch.searchsorted(bounds, draws, right=True).clamp_(max=len(bounds) - 1)
