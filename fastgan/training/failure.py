"""A step after which something is not finite: the state before it is kept, so that it can be taken again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.training.checkpoint import complete_checkpoints
from fastgan.training.config import TrainConfig
from fastgan.training.finite import find_non_finite
from fastgan.training.report import StopSignals
from fastgan.training.run_folder import RunFolder
from fastgan.training.state import TrainState


def keep(
    state: TrainState, config: TrainConfig, classes: int, run: RunFolder, values: Tensor, stop: StopSignals
) -> tuple[Path, str] | None:
    """Go back to the newest checkpoint, find the step after which something is not finite, and keep what it began with.

    Call it inside `random_states.in_force()`. The state is at that step afterwards.

    Args:
        state: of the run, whose last steps led there.
        config: its options.
        classes: that a conditional run may ask for.
        run: its folder.
        values: (n, 4), the StepStats of the last n steps, on the CPU.
        stop: ends it, by Ctrl-C.

    Returns:
        The folder of the dump, and where the fault began, in words. None where going the same way again, as on a GPU
        that adds in another order, showed none, or where it was stopped.
    """
    bad_rows = (~values.isfinite().all(dim=1)).nonzero()
    # A step's statistics are those of the parameters before its updates: these may have been the step before.
    last = state.step - len(values) + int(bad_rows[0]) + 1 if len(bad_rows) else state.step
    state.load(run.newest_checkpoint())
    state.random_states.put_in_force()
    while state.step < last and stop.received is None:
        path = None
        real, labels = state.batches.peek()
        where = ""
        if state.step >= last - 2:
            batch = {"real": real} if labels is None else {"real": real, "labels": labels}
            path = state.save(run.failure, tensors_too={"batch": batch})
            where = non_finite_layer(state, config, classes, real, labels)
        state.batches.next()
        fault = take(state, config, real, labels)
        if path is not None and fault is not None:
            for other in complete_checkpoints(run.failure):
                if other != path:
                    shutil.rmtree(other, ignore_errors=True)
            return path, where or f"step {state.step} made it: {fault}"
    shutil.rmtree(run.failure, ignore_errors=True)
    return None


def take(state: TrainState, config: TrainConfig, real: Tensor, labels: Tensor | None) -> str | None:
    """Take a step, and say what is not finite after it."""
    stats = state.take_step(config, real, labels)
    values = torch.stack(stats).double().cpu()[None]
    return find_non_finite(state.step, values, {**state.networks})


def non_finite_layer(state: TrainState, config: TrainConfig, classes: int, real: Tensor, labels: Tensor | None) -> str:
    """The first layer whose output is not finite, of the generator on noise, then of the discriminator on the real
    batch; empty where there is none. The random state and the networks' buffers stay as they are."""
    real, labels = (real[-1], None if labels is None else labels[-1]) if real.dim() == 3 else (real, labels)
    real = real * config.data_scale
    one_hot = None
    if config.conditional and labels is not None:
        one_hot = nn.functional.one_hot(labels, classes).to(real.dtype)
    with torch.random.fork_rng([real.device] if real.is_cuda else []), torch.no_grad():
        noise = torch.randn(len(real), config.latent_size, device=real.device, dtype=real.dtype)
        inputs = [noise, real] if one_hot is None else [torch.cat([each, one_hot], 1) for each in (noise, real)]
        packed = inputs[1].reshape(len(real) // config.pac, -1)
        networks = {"generator": (state.generator, inputs[0]), "discriminator": (state.discriminator, packed)}
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
