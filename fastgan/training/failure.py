"""A step after which something is not finite: the state before it is kept, so that it can be taken again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastgan.training.checkpoint import CheckpointError, complete_checkpoints
from fastgan.training.finite import find_non_finite
from fastgan.training.run_folder import RunFolder

if TYPE_CHECKING:
    from fastgan.training.trainer import Trainer


def keep(trainer: Trainer, run: RunFolder, values: Tensor) -> tuple[Path, str] | None:
    """Go back to the newest checkpoint, find the step after which something is not finite, and keep what it began with.

    Call it inside `random_states.in_force()`. The Trainer is at that step afterwards.

    Args:
        trainer: whose last steps led there.
        run: its folder.
        values: (n, 4), the StepStats of the last n steps, on the CPU.

    Returns:
        The folder of the dump, and where the fault began, in words. None where going the same way again, as on a GPU
        that adds in another order, showed none.
    """
    bad_rows = (~values.isfinite().all(dim=1)).nonzero()
    # A step's statistics are those of the parameters before its updates: these may have been the step before.
    last = trainer.step - len(values) + int(bad_rows[0]) + 1 if len(bad_rows) else trainer.step
    state = trainer.state
    state.load(run.newest_checkpoint())
    state.random_states.put_in_force()
    while state.step < last:
        path = None
        real, labels = state.batches.peek()
        where = ""
        if state.step >= last - 2:
            batch = {"real": real} if labels is None else {"real": real, "labels": labels}
            path = state.save(run.failure, tensors_too={"batch": batch})
            where = non_finite_layer(trainer, real, labels)
        state.batches.next()
        fault = take(trainer, real, labels)
        if path is not None and fault is not None:
            for other in complete_checkpoints(run.failure):
                if other != path:
                    shutil.rmtree(other, ignore_errors=True)
            return path, where or f"step {state.step} made it: {fault}"
    return None


def take(trainer: Trainer, real: Tensor, labels: Tensor | None) -> str | None:
    """Take a step, and say what is not finite after it."""
    stats = trainer.train_step.step(real, labels if trainer.config.conditional else None)
    trainer.state.step += 1
    values = torch.stack(stats).double().cpu()[None]
    return find_non_finite(trainer.step, values, {**trainer.state.networks})


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
    from fastgan.training.trainer import Trainer

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
        where = non_finite_layer(trainer, real, labels)
        fault = take(trainer, real, labels)
    lines.append(f"on the way forward: {where or 'everything is finite'}")
    lines.append(f"after the step: {fault or 'everything is finite'}")
    return lines


def non_finite_layer(trainer: Trainer, real: Tensor, labels: Tensor | None) -> str:
    """The first layer whose output is not finite, of the generator on noise, then of the discriminator on the real
    batch; empty where there is none. The random state and the networks' buffers stay as they are."""
    config, classes = trainer.config, trainer.dataset.conditions
    real, labels = (real[-1], None if labels is None else labels[-1]) if real.dim() == 3 else (real, labels)
    one_hot = None
    if config.conditional and labels is not None:
        one_hot = nn.functional.one_hot(labels, classes).to(real.dtype)
    with torch.random.fork_rng([real.device] if real.is_cuda else []), torch.no_grad():
        noise = torch.randn(len(real), config.latent_size, device=real.device, dtype=real.dtype)
        inputs = [noise, real] if one_hot is None else [torch.cat([each, one_hot], 1) for each in (noise, real)]
        packed = inputs[1].reshape(len(real) // config.pac, -1)
        networks = {"generator": (trainer.generator, inputs[0]), "discriminator": (trainer.discriminator, packed)}
        for name, (network, given) in networks.items():
            if where := _first_layer(network, given):
                return f"the {name}'s {where}"
    return ""


def _first_layer(network: nn.Module, given: Tensor) -> str:
    found: list[str] = []
    handles = []
    for name, module in network.named_modules():
        if next(module.children(), None) is None:

            def look(layer: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and not found and not bool(output.isfinite().all()):
                    bad = int((~output.isfinite()).sum())
                    found.append(
                        f"layer {name}, {layer}: {bad} of {output.numel()} values of its output are not finite"
                    )

            handles.append(module.register_forward_hook(look))
    was_training = network.training
    try:
        network.eval()(given)
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return found[0] if found else ""
