"""The step again at which a run was stopped by a value that is not finite."""

from __future__ import annotations

import os
from typing import Any

from fastgan.training import failure
from fastgan.training.checkpoint import CheckpointError, complete_checkpoints
from fastgan.training.run_folder import RunFolder
from fastgan.training.trainer import Trainer


def replay(run: str | os.PathLike[str] | int | None, runs: str | os.PathLike[str] = "runs", **parts: Any) -> list[str]:
    """Take the step again after which a run was stopped.

    Args:
        run: a run folder, the number of one in runs, or None for the newest.
        runs: the folder of run folders.
        parts: the networks, optimizers and dataset that were given to the Trainer, as `Trainer.resume` takes them.

    Returns:
        Lines that say what the step began with, where it fails, and what is not finite after it.

    Raises:
        CheckpointError: the run was not stopped so, or cannot be used.
    """
    folder = RunFolder.find(run, runs)
    dumps = complete_checkpoints(folder.failure)
    if not dumps:
        raise CheckpointError(f"{folder.failure} is not there: the run was not stopped at a value that is not finite")
    trainer = Trainer.resume(folder.path, **parts)
    _, groups = trainer.state.load(dumps[-1])
    batch = groups["batch"]
    labels = batch["labels"].to(trainer.device) if "labels" in batch else None
    real = batch["real"].to(trainer.device)
    lines = [f"{dumps[-1]}: the state before step {trainer.step + 1}, and its batch, {tuple(real.shape)}"]
    with trainer.state.random_states.in_force():
        where = failure.non_finite_layer(trainer.state, trainer.config, trainer.dataset.conditions, real, labels)
        fault = failure.take(trainer.state, trainer.config, real, labels)
    lines.append(f"on the way forward: {where or 'everything is finite'}")
    lines.append(f"after the step: {fault or 'everything is finite'}")
    return lines
