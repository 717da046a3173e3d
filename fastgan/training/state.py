"""What a checkpoint holds of a Trainer, and how a Trainer goes on from one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from fastgan.training.checkpoint import CheckpointError, Tensors, flatten, load_checkpoint, unflatten
from fastgan.training.run_folder import RunFolder

if TYPE_CHECKING:
    from fastgan.training.trainer import Trainer


def take(trainer: Trainer) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """All that training depends on: tensors by file, and the rest as JSON has it."""
    optimizers: Tensors = {}
    options = {
        "g": flatten(trainer.g_optimizer.state_dict(), "g", optimizers),
        "d": flatten(trainer.d_optimizer.state_dict(), "d", optimizers),
    }
    epoch_state, position = trainer.batches.state()
    groups = {
        **_networks(trainer),
        "optimizers": optimizers,
        "random": {**trainer.random_states.current(), "batches": epoch_state},
    }
    facts = {
        "optimizers": options,
        "position": position,
        "steps_done": trainer.train_step.steps_done,
        "seconds": trainer.seconds,
    }
    return groups, facts


def restore(trainer: Trainer, run: RunFolder) -> None:
    """Put a Trainer into the state of a run's newest checkpoint, all of which is verified first.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit the trainer's networks and optimizers.
    """
    path = run.newest_checkpoint()
    groups, facts = load_checkpoint(path, _networks(trainer))
    file = path / "optimizers.safetensors"
    optimizers: list[tuple[Optimizer, dict[str, Any]]] = []
    for key, optimizer in (("g", trainer.g_optimizer), ("d", trainer.d_optimizer)):
        state = unflatten(facts["optimizers"][key], groups["optimizers"])
        _check_optimizer(f"{file}: {key}_optimizer", state, optimizer)
        optimizers.append((optimizer, state))
    trainer.batches.load_state(groups["random"].pop("batches"), facts["position"])
    trainer.random_states.load(groups["random"])
    for stem, module in (
        ("generator", trainer.generator),
        ("discriminator", trainer.discriminator),
        ("ema", trainer.ema),
    ):
        if module is not None:
            module.load_state_dict(groups[stem])
    for optimizer, state in optimizers:
        optimizer.load_state_dict(state)
    trainer.step, trainer.seconds = facts["step"], facts["seconds"]
    trainer.train_step.steps_done = facts["steps_done"]
    trainer.run = run


def _networks(trainer: Trainer) -> dict[str, Tensors]:
    networks = {
        "generator": trainer.generator.state_dict(),
        "discriminator": trainer.discriminator.state_dict(),
    }
    if trainer.ema is not None:
        networks["ema"] = trainer.ema.state_dict()
    return networks


def _check_optimizer(name: str, state: dict[str, Any], optimizer: Optimizer) -> None:
    """CheckpointError unless a saved optimizer state has this optimizer's groups and parameters."""
    live, saved = optimizer.param_groups, state["param_groups"]
    counts = [len(group["params"]) for group in live], [len(group["params"]) for group in saved]
    if counts[0] != counts[1]:
        raise CheckpointError(f"{name} has {counts[1]} parameters in its groups, but this run needs {counts[0]}")
    for live_group, saved_group in zip(live, saved, strict=True):
        for parameter, index in zip(live_group["params"], saved_group["params"], strict=True):
            for key, value in state["state"].get(index, {}).items():
                if isinstance(value, Tensor) and value.dim() > 0 and value.shape != parameter.shape:
                    raise CheckpointError(
                        f"{name}'s {key} of parameter {index} has shape {tuple(value.shape)}, but this run "
                        f"needs {tuple(parameter.shape)}"
                    )
