"""Samples of a run: of any of its checkpoints, all at once or a part at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.data.table import Table
from fastgan.nn import MLP
from fastgan.training.checkpoint import load_checkpoint
from fastgan.training.config import TrainConfig
from fastgan.training.run_folder import RunFolder
from fastgan.training.sampling import Drawn, build_networks, drawn, walk

# Times as many samples as are wanted that are drawn before a level is given up.
_ATTEMPTS = 50


class RunGenerator(NamedTuple):
    """The generator of a run, as one of its checkpoints has it.

    Attributes:
        folder: of the run.
        config: its options.
        facts: what dataset.json says of the data.
        table: the Table of a run on a table, else None.
        checkpoint: where the parameters are from.
        step: of that.
        weights: `ema` where the run has an average of the generator, which is then this one, else `generator`.
        network: the generator, on the CPU.
    """

    folder: RunFolder
    config: TrainConfig
    facts: dict[str, Any]
    table: Table | None
    checkpoint: Path
    step: int
    weights: str
    network: MLP

    @property
    def num_classes(self) -> int:
        """Classes that a conditional generator is told; of a table, the levels of its discrete columns."""
        return int(self.facts["num_classes"]) if self.table is None else self.table.num_classes

    @property
    def labels(self) -> list[int]:
        """The classes that samples of the data have; of a table, none."""
        return list(self.facts["labels"])

    def drawn(
        self, count: int, *, label: int | Sequence[int] | None = None, seed: int = 0, where: str | None = None
    ) -> Iterator[Drawn]:
        """Samples of the run, a part at a time; see `sample_run` for the arguments and the errors."""
        if where is not None:
            if self.table is None:
                raise ValueError(
                    f"where must not be given, but it is {where!r}: {self.folder.path} is no run on a table"
                )
            return self._where(count, self.table, where, seed)
        return drawn(self.network, self.config, count, label=label, seed=seed, **self._data())

    def walk(
        self, count: int, frames: int, *, label: int | Sequence[int] | None = None, seed: int = 0
    ) -> Iterator[Drawn]:
        """A closed walk through count samples, with so many frames from one to the next: see `sampling.walk`."""
        return walk(self.network, self.config, count, frames, label=label, seed=seed, **self._data())

    def turns(self, label: int | Sequence[int] | None) -> int:
        """How many classes take turns in the samples, 0 where they do not."""
        if not self.config.conditional or self.table is not None or isinstance(label, int):
            return 0
        return len(self.labels if label is None else label)

    def _data(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes, "labels": self.labels, "table": self.table}

    def _where(self, count: int, table: Table, where: str, seed: int) -> Iterator[Drawn]:
        """Samples with a level, which the generator is asked for; those that have another are drawn again.

        Raises:
            ValueError: there is no such column or level, or hardly a sample has it.
        """
        name, _, level = where.partition("=")
        wanted = table.class_of(name.strip(), level.strip())
        column = table.level_columns[wanted]
        first, last = table.segment_of(column)
        label = wanted if self.config.conditional else None
        have = 0
        for attempt in range(_ATTEMPTS):
            for part in drawn(self.network, self.config, count, label=label, seed=seed + attempt, **self._data()):
                has_it = part.samples[:, first:last].argmax(dim=1) == column - first
                kept = part.samples[has_it][: count - have]
                have += len(kept)
                if len(kept):
                    yield Drawn(kept, None)
                if have == count:
                    return
        raise ValueError(
            f"where must ask for what the run can draw, but of {_ATTEMPTS * count:,} samples only {have:,} have {where}"
        )


def open_run(
    run: str | os.PathLike[str] | int | None,
    runs: str | os.PathLike[str] = "runs",
    checkpoint: str | int | None = None,
    latent_scale: float | None = None,
) -> RunGenerator:
    """The generator of a run, its EMA generator if it has one; the run stays as it is.

    Args:
        run: a run folder, the number of one in runs, or None for the newest.
        runs: the folder of run folders.
        checkpoint: the step of one that is kept, `best`, or `newest`, which None is too.
        latent_scale: over 0, what latents are multiplied by; None is the run's own.

    Raises:
        CheckpointError: the run or its checkpoint cannot be used.
        TypeError, ValueError: checkpoint is none of these, or the run does not have it; latent_scale is out of range.
    """
    folder = RunFolder.find(run, runs)
    config, facts = folder.read_config(), folder.read_dataset()
    if latent_scale is not None:
        config = config.with_(latent_scale=latent_scale)
    table = table_of(facts)
    path = folder.checkpoint(checkpoint)
    network, _ = build_networks(
        config, facts["width"], facts["num_classes"] if table is None else table.num_classes, table
    )
    weights = "ema" if config.ema else "generator"
    groups, saved = load_checkpoint(path, {weights: network.state_dict()})
    network.load_state_dict(groups[weights])
    return RunGenerator(folder, config, facts, table, path, saved["step"], weights, network)


def sample_run(
    run: str | os.PathLike[str] | int | None,
    count: int,
    *,
    label: int | Sequence[int] | None = None,
    seed: int = 0,
    runs: str | os.PathLike[str] = "runs",
    where: str | None = None,
    checkpoint: str | int | None = None,
    latent_scale: float | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Samples of a run, from its EMA generator if it has one; the run stays as it is.

    Args:
        run: a run folder, the number of one in runs, or None for the newest.
        count: number of samples.
        label: for conditional runs, the class of all, or several that take turns; None for all classes in turn.
        seed: of the noise.
        runs: the folder of run folders.
        where: of a table, `column=level` that all samples must have.
        checkpoint: the step of one that is kept, `best`, or `newest`, which None is too.
        latent_scale: over 0, what latents are multiplied by; None is the run's own.

    Returns:
        The samples (count, data) in [-1, 1], and what dataset.json says of the data, with `classes`: how many
        take turns in the samples, 0 where they do not.

    Raises:
        CheckpointError: the run or its checkpoint cannot be used.
        TypeError, ValueError: count, seed, label, checkpoint or latent_scale is out of range.
    """
    opened = open_run(run, runs, checkpoint, latent_scale)
    parts = list(opened.drawn(count, label=label, seed=seed, where=where))
    samples = torch.cat([part.samples for part in parts])
    return samples, {**opened.facts, "classes": opened.turns(label)}


def table_of(facts: Mapping[str, Any]) -> Table | None:
    """The Table of a run on a table, by what its dataset.json says."""
    return Table.from_json(facts["table"]) if "table" in facts else None
