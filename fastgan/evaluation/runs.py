"""Measuring a run of any kind but a table of words and numbers, whose report is in fastgan.training.table_report."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.data import load
from fastgan.data.dataset import DataError, Dataset
from fastgan.evaluation import measures
from fastgan.training.run_folder import RunFolder, is_same_data
from fastgan.training.run_samples import sample_run
from fastgan.training.table_report import load_again

# Samples that are drawn where no number is asked for.
SAMPLES = 5000


@dataclass(frozen=True)
class RunMeasures:
    """What `measure_run` returns.

    Attributes:
        samples: generated ones that were measured.
        against: what they were compared with, in words.
        generated: their measures, by name.
        real: the same of real samples in their place.
    """

    samples: int
    against: str
    generated: dict[str, float]
    real: dict[str, float]

    def lines(self) -> list[str]:
        """A few lines for a reader."""
        width = max(len(name) for name in self.generated)
        lines = [f"{self.samples:,} generated samples, and real ones in their place, beside {self.against}"]
        lines.append(f"{'':{width}}  {'generated':>10}  {'real':>10}")
        for name, value in self.generated.items():
            lines.append(f"{name:{width}}  {value:10.4g}  {self.real.get(name, float('nan')):10.4g}")
        return lines


def is_on_table(run: str | os.PathLike[str] | int | None, runs: str) -> bool:
    """Whether a run is one on a .csv table, which has a report of its own.

    Raises:
        CheckpointError: there is no such run.
    """
    facts = RunFolder.find(run, runs).read_dataset()
    return "table" in facts or "layout" in facts


def measure_run(
    run: str | os.PathLike[str] | int | None,
    *,
    count: int | None = None,
    holdout: str | os.PathLike[str] | None = None,
    seed: int = 0,
    runs: str = "runs",
) -> RunMeasures:
    """Measure samples of a run's newest checkpoint; the run stays as it is.

    Args:
        run: a run folder, the number of one in runs, or None for the newest.
        count: number of samples; by default half the data, at most 5,000.
        holdout: data that the run has not seen, as `fastgan.data.load` loads it; by default half of the run's own data,
            the other half of which takes the place of real samples. Of a mixture that is known, half of it too.
        seed: of the samples and of the halves.
        runs: the folder of run folders.

    Returns:
        The RunMeasures.

    Raises:
        CheckpointError: the run or its checkpoint cannot be used.
        DataError: the data is not what the run began with, or the holdout has other columns.
        TypeError, ValueError: an argument is out of range.
    """
    folder = RunFolder.find(run, runs)
    config, facts = folder.read_config(), folder.read_dataset()
    dataset = load_again(config, facts)
    if not is_same_data(dataset.describe(), facts):
        raise DataError(f"{config.data} must hold the data that {folder.path} began with, but it has changed")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    half = len(dataset) // 2
    if half < 10:
        raise ValueError(f"run must be one on 20 samples or more to be measured, but {config.data} has {len(dataset)}")
    number = min(half, SAMPLES) if count is None else count
    if holdout is None:
        known, unseen = order[:half], order[half:]
        real, real_labels = dataset.samples[unseen], None if dataset.labels is None else dataset.labels[unseen]
        against = f"half of {config.data}, which the run has learned from"
    else:
        known = order
        real, real_labels = _held_out(dataset, load(holdout), torch.Generator().manual_seed(seed))
        against = f"{os.fsdecode(holdout)}, which the run has not seen"
    rows = known[:number]
    labels = None
    if config.conditional and dataset.labels is not None:
        # As many of each class as the real samples have: classes in turn would be another distribution.
        wanted = dataset.labels[known[torch.arange(number) % len(known)]]
        turns = torch.tensor(facts["labels"])
        most = int(wanted.bincount().amax())
        samples, _ = sample_run(folder.path, most * len(turns), seed=seed, runs=runs)
        places = [torch.arange(int((wanted == label).sum())) * len(turns) + i for i, label in enumerate(turns.tolist())]
        taken = torch.cat(places)
        taken = taken[torch.randperm(len(taken), generator=torch.Generator().manual_seed(seed))]
        samples, labels = samples[taken], turns[taken % len(turns)]
    else:
        samples, _ = sample_run(folder.path, number, seed=seed, runs=runs)
    samples = measures.on_levels(samples, dataset)
    own_labels = None if dataset.labels is None or labels is None else dataset.labels[rows]
    real, real_labels = real[:SAMPLES], None if real_labels is None else real_labels[:SAMPLES]
    found = []
    for points, of_points in ((samples, labels), (dataset.samples[rows], own_labels)):
        if dataset.modes is not None:
            found.append(measures.of_mixture(points, dataset.modes, dataset.mode_std, real))
        else:
            found.append(measures.of_data(points, of_points, real, real_labels, seed))
    return RunMeasures(number, against, found[0], found[1])


def _held_out(dataset: Dataset, other: Dataset, seeded: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Samples and labels of other data, scaled as a data set is, at most SAMPLES of them.

    Raises:
        DataError: it has another width, or labels that the data set does not have.
    """
    if other.width != dataset.width:
        raise DataError(f"holdout must have {dataset.width} values a sample, as the run's data, not {other.width}")
    rows = torch.arange(len(other)) if len(other) <= SAMPLES else torch.randperm(len(other), generator=seeded)[:SAMPLES]
    samples = ((other.unscale(other.samples[rows]) - dataset.offset) / dataset.scale).float()
    labels = other.labels[rows] if dataset.labels is not None and other.labels is not None else None
    if labels is not None and not set(other.classes) <= set(dataset.classes):
        raise DataError("holdout must have no labels but those of the run's data")
    return samples, labels
