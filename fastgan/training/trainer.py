"""The trainer: data, networks, `fastgan.TrainStep`, and a run folder that keeps what came of them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from fastgan.data.dataset import DataError, Dataset
from fastgan.step import StepStats, TrainStep
from fastgan.training import pictures, sampling
from fastgan.training.checkpoint import prune_checkpoints
from fastgan.training.config import TrainConfig, TrainOptions, configure
from fastgan.training.device import pick_device
from fastgan.training.finite import NonFiniteError, find_non_finite
from fastgan.training.report import Reporter, StopSignals
from fastgan.training.run_folder import RunFolder, is_same_data
from fastgan.training.state import TrainState
from fastgan.training.table_report import load_again


class Trainer:
    """Trains a GAN on a data set: `fastgan.Trainer("digits", steps=1000).train()`.

    Nothing is written before `train`. The caller's random state is left alone.

    Attributes:
        config: the TrainConfig in force.
        dataset: the Dataset.
        device: where the networks are.
        state: the TrainState: all that training changes.
        run: the RunFolder, None before `train`.
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | Dataset | TrainConfig = "digits",
        *,
        dataset: Dataset | None = None,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        g_optimizer: Optimizer | None = None,
        d_optimizer: Optimizer | None = None,
        **options: Unpack[TrainOptions],
    ) -> None:
        """Load the data and build what trains; see TrainConfig for the options.

        Args:
            data: what `fastgan.data.load` loads, a Dataset, or a whole TrainConfig (then without options).
            dataset: for a TrainConfig, its data where that is loaded already.
            generator: instead of the MLP of the options; maps (batch, latent_size [+ classes]) to (batch, data).
            discriminator: likewise; maps (batch, data [+ classes]) to one logit a sample, with pac over 1
                (batch / pac, pac (data [+ classes])) to one for each pack.
            g_optimizer: instead of Adam; given together with the network it updates.
            d_optimizer: likewise.
            options: the fields of TrainConfig, but for data; None stands for the default.

        Raises:
            DataError: the data cannot be used.
            TypeError, ValueError: an option is unknown, of the wrong kind or out of range.
        """
        for name, optimizer, network in (("g", g_optimizer, generator), ("d", d_optimizer, discriminator)):
            if optimizer is not None and network is None:
                raise ValueError(f"{name}_optimizer must come with the network that it updates, which is missing")
        self.config, self.dataset = configure(data, dataset, options)
        self.device = pick_device(self.config.device)
        self.run: RunFolder | None = None
        self.state = TrainState.build(
            self.config, self.dataset, self.device, generator, discriminator, g_optimizer, d_optimizer
        )

    @property
    def generator(self) -> nn.Module:
        """The generator, on the device."""
        return self.state.generator

    @property
    def discriminator(self) -> nn.Module:
        """The discriminator, on the device."""
        return self.state.discriminator

    @property
    def ema(self) -> nn.Module | None:
        """The moving average of the generator, or None."""
        return self.state.ema

    @property
    def g_optimizer(self) -> Optimizer:
        """What updates the generator."""
        return self.state.g_optimizer

    @property
    def d_optimizer(self) -> Optimizer:
        """What updates the discriminator."""
        return self.state.d_optimizer

    @property
    def train_step(self) -> TrainStep:
        """The step over them."""
        return self.state.train_step

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    @classmethod
    def resume(
        cls,
        run: str | os.PathLike[str] | int | None = None,
        *,
        steps: int | None = None,
        runs: str | os.PathLike[str] = "runs",
        dataset: Dataset | None = None,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        g_optimizer: Optimizer | None = None,
        d_optimizer: Optimizer | None = None,
    ) -> Trainer:
        """A Trainer that goes on exactly where a run's newest checkpoint was taken.

        Args:
            run: a run folder, the number of one in runs, or None for the newest.
            steps: steps in all, instead of the run's own number.
            runs: the folder of run folders.
            dataset: the Dataset that the run began with, where it was no built-in one and came from no file.
            generator: the one that was given to the Trainer, if any, freshly built.
            discriminator: likewise.
            g_optimizer: likewise.
            d_optimizer: likewise.

        Returns:
            The Trainer, at the step of the checkpoint.

        Raises:
            CheckpointError: the run or its checkpoint cannot be used; the run folder is as it was.
            DataError: the data is not what the run began with.
            TypeError, ValueError: steps is less than the run has done.
        """
        folder = RunFolder.find(run, runs)
        config, facts = folder.read_config(), folder.read_dataset()
        if steps is not None:
            config = config.with_(steps=steps)
        loaded = dataset if dataset is not None else load_again(config, facts)
        if not is_same_data(loaded.describe(), facts):
            raise DataError(f"{config.data} must hold the data that {folder.path} began with, but it has changed")
        trainer = cls(
            config,
            dataset=loaded,
            generator=generator,
            discriminator=discriminator,
            g_optimizer=g_optimizer,
            d_optimizer=d_optimizer,
        )
        trainer.state.load(folder.newest_checkpoint())
        if trainer.step > config.steps:
            raise ValueError(f"steps must be at least {trainer.step}, which the run has done, not {config.steps}")
        trainer.run = folder
        return trainer

    def train(self, *, quiet: bool = False) -> Path:
        """Train to `config.steps`, then return the path of the run folder.

        Ctrl-C (SIGINT) and SIGTERM save a checkpoint, say how to go on, and raise KeyboardInterrupt or
        SystemExit.

        Args:
            quiet: print nothing; log.txt is written all the same.

        Returns:
            The path of the run folder.

        Raises:
            NonFiniteError: a loss or parameter became infinite or NaN. It is looked for once a log interval
                and before every checkpoint, so that no checkpoint holds such a value.
            OSError: the run folder cannot be written.
        """
        created = self.run is None
        first = self.step
        if self.run is None:
            self.run = RunFolder.create(self.config, self.dataset.name, self.dataset.describe())
        else:
            self.run.write_config(self.config)
            self.run.drop_metrics_after(self.step)
        run = self.run
        try:
            with self.state.random_states.in_force(), StopSignals() as stop:
                with Reporter(run, self.step, self.config.steps, quiet) as report:
                    self._begin(run, report, created)
                    self._loop(run, report, stop)
        except BaseException:
            if created and self.step == first:
                run.remove()
                self.run = None
            raise
        if stop.received is not None:
            raise KeyboardInterrupt if stop.received == signal.SIGINT else SystemExit(128 + stop.received)
        return run.path

    def sample(self, count: int, *, label: int | None = None, seed: int = 0) -> Tensor:
        """Draw samples, from the EMA generator where there is one.

        Args:
            count: number of samples.
            label: for conditional GANs, the class of all; None for the classes in turn.
            seed: of the noise.

        Returns:
            (count, data), float32, scaled as the data is, to [-1, 1]; on the CPU.

        Raises:
            TypeError, ValueError: count, seed or label is out of range.
        """
        network = self.generator if self.ema is None else self.ema
        classes, labels = self.dataset.conditions, self.dataset.classes
        table = self.dataset.table
        return sampling.draw(
            network, self.config, count, num_classes=classes, labels=labels, label=label, seed=seed, table=table
        )

    def _begin(self, run: RunFolder, report: Reporter, created: bool) -> None:
        if not created:
            report.line(f"Resuming {run.path} at step {self.step} of {self.config.steps}.")
            return
        report.line(f"{run.path}: {len(self.dataset):,} samples of {self.dataset.name}, on {self.device}")
        table = self.dataset.table
        if table is not None:
            rows = [(column.name, column.kind, column.in_words()) for column in table.columns]
            report.table(("column", "kind", "holds"), rows)
        report.line(f"plan: {self.train_step.plan}")
        real = self.dataset.examples(self._picture_size(), self.config.seed, self.config.conditional)
        self._save_picture(run, real, "real.png")
        self._save_picture(run, self.sample(self._picture_size(), seed=self.config.seed), "fakes_step_0.png")
        # So that there is a good checkpoint from the first step on, whatever happens to the second.
        self._save_checkpoint(run)

    def _loop(self, run: RunFolder, report: Reporter, stop: StopSignals) -> None:
        config, state = self.config, self.state
        periods = (config.log_every, config.sample_every, config.checkpoint_every)
        length = min(*periods, config.steps)
        history = torch.empty(length, len(StepStats._fields), dtype=torch.float64, device=self.device)
        plan = self.train_step.plan
        filled, clock = 0, time.perf_counter()
        while state.step < config.steps:
            state.set_learning_rates(config)
            real, labels = state.batches.next()
            if config.data_scale != 1:
                real = real * config.data_scale
            stats = state.train_step.step(real, labels if config.conditional else None)
            history[filled] = torch.stack(stats)
            state.step += 1
            filled += 1
            last = state.step == config.steps or stop.received is not None
            if not last and all(state.step % period for period in periods):
                continue
            values = history[:filled].cpu()  # The only place where the host waits for the device.
            elapsed = time.perf_counter() - clock
            self._refuse_non_finite(run, values)
            state.seconds += elapsed
            row = dict(zip(StepStats._fields, values.mean(dim=0).tolist(), strict=True))
            row["samples_per_second"] = filled * config.batch_size * config.d_steps / elapsed
            row = {"step": state.step, "seconds": round(state.seconds, 3), **row}
            run.append_metrics(row)
            report.row(row)
            if plan != (plan := self.train_step.plan):  # the first step chooses its way, which the plan then names
                report.line(f"plan: {plan}")
            if last or state.step % config.sample_every == 0:
                fakes = self.sample(self._picture_size(), seed=config.seed)
                self._save_picture(run, fakes, f"fakes_step_{state.step}.png")
                pictures.save_loss_plot(run.read_metrics(), run.loss_plot, config.loss)
            if last or state.step % config.checkpoint_every == 0:
                self._save_checkpoint(run)
            if last:
                break
            filled, clock = 0, time.perf_counter()
        if state.step < config.steps:
            report.line(f"Saved at step {state.step}. Go on with: fastgan resume {run.path}")
        else:
            report.line(f"Done: {state.step} steps. The pictures are in {run.samples}")

    def _save_checkpoint(self, run: RunFolder) -> None:
        self.state.save(run.checkpoints)
        prune_checkpoints(run.checkpoints, self.config.keep_checkpoints)

    def _picture_size(self) -> int:
        return sampling.PICTURE_POINTS if self.dataset.image_shape is None else sampling.PICTURE_IMAGES

    def _save_picture(self, run: RunFolder, samples: Tensor, name: str) -> None:
        table = self.dataset.table
        if table is not None:
            real = table.decode(self.dataset.samples[: sampling.PICTURE_POINTS]) if name != "real.png" else None
            pictures.save_columns(table, table.decode(samples), run.samples / name, real)
            return
        behind = self.dataset.samples[: sampling.PICTURE_POINTS] if name != "real.png" else None
        classes = len(self.dataset.classes) if self.config.conditional else 0
        pictures.save_samples(samples, self.dataset.image_shape, run.samples / name, behind, classes)

    def _refuse_non_finite(self, run: RunFolder, values: Tensor) -> None:
        networks = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "EMA generator": self.ema,
        }
        fault = find_non_finite(self.step, values, networks)
        if fault:
            kept = run.newest_checkpoint()
            message = f"training stopped at {fault}; the last good checkpoint is kept: {kept}"
            run.log(message)
            raise NonFiniteError(message)
