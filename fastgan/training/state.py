"""All that a training run changes: what a checkpoint holds, and what a resumed run goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from fastgan.data.dataset import Dataset
from fastgan.processes import Processes, seed_of_rank
from fastgan.step import StepStats, TrainStep, average_of
from fastgan.training.batches import Batches, LevelBatches
from fastgan.training.checkpoint import (
    MANIFEST,
    CheckpointError,
    Tensors,
    flatten,
    load_checkpoint,
    save_checkpoint,
    unflatten,
)
from fastgan.training.config import TrainConfig
from fastgan.training.random_states import RandomStates
from fastgan.training.sampling import build_networks
from fastgan.training.schedules import set_learning_rates, share_of_gamma, share_of_rate


@dataclass
class TrainState:
    """The state of a training run, owned by its Trainer.

    Attributes:
        generator: on the device, as all of it.
        discriminator: likewise.
        ema: the moving average of the generator, or None.
        g_optimizer: updates the generator.
        d_optimizer: updates the discriminator.
        train_step: over all these; what it keeps itself is in its `state_dict`.
        batches: the order of the data.
        random_states: what noise and dropout are drawn from.
        step: steps done.
        seconds: that they took.
    """

    generator: nn.Module
    discriminator: nn.Module
    ema: nn.Module | None
    g_optimizer: Optimizer
    d_optimizer: Optimizer
    train_step: TrainStep
    batches: Batches | LevelBatches
    random_states: RandomStates
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def build(
        cls,
        config: TrainConfig,
        dataset: Dataset,
        device: torch.device,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        g_optimizer: Optimizer | None = None,
        d_optimizer: Optimizer | None = None,
        process_group: Any = None,
        sync_batch_norm: bool = True,
    ) -> TrainState:
        """The state that a run begins with. Networks and optimizers that are given replace those of the options."""
        random_states = RandomStates(device, config.seed)
        with random_states.in_force():
            networks = build_networks(config, dataset.width, dataset.conditions, dataset.table)
        generator = (generator if generator is not None else networks[0]).to(device)
        discriminator = (discriminator if discriminator is not None else networks[1]).to(device)
        ema = average_of(generator) if config.ema else None
        betas = (config.beta1, config.beta2)
        g_optimizer = g_optimizer or Adam(generator.parameters(), lr=config.g_lr, betas=betas, fused=True)
        d_optimizer = d_optimizer or Adam(discriminator.parameters(), lr=config.d_lr, betas=betas, fused=True)
        step_options = config.step_options(dataset.conditions)
        rank, size = (0, 1) if process_group is None else (process_group.rank(), process_group.size())
        config.check_processes(size)
        if rank > 0:
            random_states.begin_at(seed_of_rank(config.seed, rank))
        with random_states.in_force():
            train_step = TrainStep(
                generator,
                discriminator,
                g_optimizer,
                d_optimizer,
                ema=ema,
                process_group=process_group,
                sync_batch_norm=sync_batch_norm,
                **step_options,
            )
        # The MLPs of the options are float32 whatever torch's default dtype is; a network that is given keeps its own.
        dtype = next((p.dtype for p in discriminator.parameters() if p.is_floating_point()), torch.float32)
        kind = LevelBatches if dataset.table is not None and config.conditional else Batches
        share = rank, size
        batches = kind(dataset, config.batch_size, config.d_steps, device, config.seed, dtype, share)
        return cls(generator, discriminator, ema, g_optimizer, d_optimizer, train_step, batches, random_states)

    def take_step(self, config: TrainConfig, real: Tensor, labels: Tensor | None) -> StepStats:
        """Train one step, at the rates and weights that the schedules say, on a batch as the data has it."""
        if config.lr_schedule != "constant":
            d_final = config.lr_final if config.d_lr_final is None else config.d_lr_final
            for optimizer, final in ((self.g_optimizer, config.lr_final), (self.d_optimizer, d_final)):
                set_learning_rates([optimizer], share_of_rate(config.lr_schedule, self.step, config.steps, final))
        if config.gamma_final != 1:
            left = share_of_gamma(self.step, config.steps, config.gamma_final)
            for name, gamma in (("r1_gamma", config.r1_gamma), ("r2_gamma", config.r2_gamma)):
                if getattr(self.train_step, name) != gamma * left:
                    setattr(self.train_step, name, gamma * left)
        if config.data_scale != 1:
            real = real * config.data_scale
        stats = self.train_step.step(real, labels if config.conditional else None)
        self.step += 1
        return stats

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that there are, by the names of their files in a checkpoint."""
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        return networks if self.ema is None else {**networks, "ema": self.ema}

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """The optimizers, by their names in a checkpoint."""
        return {"g": self.g_optimizer, "d": self.d_optimizer}

    def save(
        self, folder: Path, more: Mapping[str, Any] | None = None, tensors_too: Mapping[str, Tensors] | None = None
    ) -> Path:
        """Write folder/step_N, whole or not at all, and return its path. Call it inside `random_states.in_force()`.

        Of several processes each must call it; rank 0 writes, after all have been found to have the same bits.

        Args:
            folder: the run's checkpoints folder.
            more: facts to keep beside the state, as JSON has them.
            tensors_too: tensors to keep beside the state, by the stem of their file.

        Raises:
            OSError: it cannot be written.
            TypeError: an optimizer's state is of what a checkpoint without pickle cannot hold.
        """
        random = self.random_states.current()
        self.train_step.check_processes()
        if self.processes is not None:
            for rank, states in enumerate(self.processes.gather(random)):
                random.update({f"{name}.{rank}": state for name, state in states.items() if rank > 0})
            if self.processes.rank == 0:  # which goes on from its own
                random.update(self.random_states.current())
        tensors: Tensors = {}
        options = {key: flatten(each.state_dict(), key, tensors) for key, each in self.optimizers.items()}
        epoch_state, position = self.batches.state()
        groups = {
            **{name: network.state_dict() for name, network in self.networks.items()},
            "optimizers": tensors,
            "random": {**random, "batches": epoch_state},
            **(tensors_too or {}),
        }
        facts = {
            "optimizers": options,
            "position": position,
            "train_step": self.train_step.state_dict(),
            "seconds": self.seconds,
            "processes": 1 if self.processes is None else self.processes.size,
            **(more or {}),
        }
        if self.processes is None:
            return save_checkpoint(folder, self.step, groups, facts)
        return self.processes.on_first(lambda: save_checkpoint(folder, self.step, groups, facts))

    @property
    def processes(self) -> Processes | None:
        """Those that take the steps together; None where this one does alone."""
        return self.train_step.processes

    def load(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensors]]:
        """Go on from a checkpoint, all of which is verified before anything is changed.

        Args:
            path: a step_N folder.

        Returns:
            The facts that it was saved with, and its tensors.

        Raises:
            CheckpointError: it is damaged, or does not fit these networks and optimizers.
        """
        groups, facts = load_checkpoint(path, {name: network.state_dict() for name, network in self.networks.items()})
        states = {key: unflatten(facts["optimizers"][key], groups["optimizers"]) for key in self.optimizers}
        for key, optimizer in self.optimizers.items():
            _check_optimizer(f"{path / 'optimizers.safetensors'}: {key}_optimizer", states[key], optimizer)
        # Before it held choices, the state was a number.
        step_state = facts.get("train_step") or {"steps_done": facts["steps_done"], "choices": {}}
        try:
            self.train_step.load_state_dict(step_state)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path / MANIFEST} has a train_step that this fastgan cannot take: {error}"
            ) from error
        self.batches.load_state(groups["random"].pop("batches"), facts["position"])
        self._load_random(groups["random"], facts.get("processes", 1), facts["step"])
        for name, network in self.networks.items():
            network.load_state_dict(groups[name])
        for key, optimizer in self.optimizers.items():
            optimizer.load_state_dict(states[key])
        self.step, self.seconds = facts["step"], facts["seconds"]
        return facts, groups

    def _load_random(self, states: Tensors, saved: int, step: int) -> None:
        """Go on from the random states of a checkpoint of so many processes: each from its own, where there is one.
        Another number of processes draws other noise anyway; those that are new are seeded by step and rank."""
        rank = 0 if self.processes is None else self.processes.rank
        if rank == 0:
            self.random_states.load({name: state for name, state in states.items() if "." not in name})
        elif rank < saved:
            own = {name.partition(".")[0]: state for name, state in states.items() if name.endswith(f".{rank}")}
            self.random_states.load(own)
        else:
            self.random_states.begin_at(seed_of_rank(step + 1, rank))


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
