"""The trainer: data, networks, `fastgan.TrainStep`, and a run folder that keeps what came of them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from fastgan.data.dataset import DataError, Dataset
from fastgan.step import StepStats, TrainStep
from fastgan.training import failure, judge, page, pictures, sampling
from fastgan.training.checkpoint import CheckpointError, prune_checkpoints
from fastgan.training.config import TrainConfig, TrainOptions, configure
from fastgan.training.device import pick_device
from fastgan.training.diagnosis import Diagnosis, gradient_of
from fastgan.training.diversity import Diversity
from fastgan.training.finite import NonFiniteError, find_non_finite
from fastgan.training.readings import Readings
from fastgan.training.report import Reporter, StopSignals
from fastgan.training.run_folder import RunFolder, is_same_data
from fastgan.training.state import TrainState
from fastgan.training.table_report import load_again

Result = TypeVar("Result")

# What a full or failing disk answers, and one that may only be read.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


class Trainer:
    """Trains a GAN on a data set: `fastgan.Trainer("digits", steps=1000).train()`.

    Nothing is written before `train`. The caller's random state is left alone.

    Attributes:
        config: the TrainConfig in force.
        dataset: the Dataset.
        device: where the networks are.
        state: the TrainState: all that training changes.
        run: the RunFolder, None before `train`.
        diagnosis: the Diagnosis, whose `warnings` say what went wrong so far.
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
        process_group: Any = None,
        sync_batch_norm: bool = True,
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
            process_group: of torch.distributed, whose processes train one run together: each makes the same Trainer and
                calls `train` at the same place of its program. They share each batch, and rank 0 writes the run folder.
            sync_batch_norm: of several processes, whether BatchNorm's statistics are of all their samples.
            options: the fields of TrainConfig, but for data; None stands for the default.

        Raises:
            DataError: the data cannot be used.
            TypeError, ValueError: an option is unknown, of the wrong kind or out of range.
        """
        for name, optimizer, network in (("g", g_optimizer, generator), ("d", d_optimizer, discriminator)):
            if optimizer is not None and network is None:
                raise ValueError(f"{name}_optimizer must come with the network that it updates, which is missing")
        self.config, self.dataset = configure(data, dataset, options)
        self.device = pick_device(self.config.device, process_group)
        self.run: RunFolder | None = None
        self.state = TrainState.build(
            self.config,
            self.dataset,
            self.device,
            generator,
            discriminator,
            g_optimizer,
            d_optimizer,
            process_group,
            sync_batch_norm,
        )
        self._processes = self.state.processes
        self._writes = self._processes is None or self._processes.rank == 0
        # Of steps since the last regular row of metrics.jsonl, their statistics and seconds; see Readings.
        self._pending: list[list[float]] = []
        self._pending_seconds = 0.0
        self._digest: str | None = None  # of the checkpoint that this Trainer wrote or read last
        self._reference: Tensor | None = None
        self._has_stepped = False  # whether its run folder holds more than a beginning
        self._diversity = Diversity(self.dataset, self.config)
        self.diagnosis = Diagnosis(self.config)

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
        extend: Mapping[str, Any] | None = None,
        runs: str | os.PathLike[str] = "runs",
        dataset: Dataset | None = None,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        g_optimizer: Optimizer | None = None,
        d_optimizer: Optimizer | None = None,
        process_group: Any = None,
        sync_batch_norm: bool = True,
    ) -> Trainer:
        """A Trainer that goes on exactly where a run's newest checkpoint was taken.

        A run that was stopped before its first checkpoint begins anew, in its folder.

        Args:
            run: a run folder, the number of one in runs, or None for the newest that has a checkpoint.
            steps: steps in all, instead of the run's own number; the same as an entry of extend.
            extend: options to go on with changed: those of `fastgan.training.config.EXTENDABLE`, which leave what is
                learned in a step as it is.
            runs: the folder of run folders.
            dataset: the Dataset that the run began with, where it was no built-in one and came from no file.
            generator: the one that was given to the Trainer, if any, freshly built.
            discriminator: likewise.
            g_optimizer: likewise.
            d_optimizer: likewise.
            process_group: as of a new Trainer. It may have another number of processes than the run had: all but the
                noise then goes on exactly.
            sync_batch_norm: likewise.

        Returns:
            The Trainer, at the step of the checkpoint.

        Raises:
            CheckpointError: the run or its checkpoint cannot be used, or its options were changed; the run folder is as
                it was.
            DataError: the data is not what the run began with.
            TypeError, ValueError: steps is less than the run has done, or extend names what cannot be changed.
        """
        folder = RunFolder.find(run, runs)
        config, facts = folder.read_config(), folder.read_dataset()
        begins = folder.is_at_its_beginning()
        kept = {} if begins else folder.newest_facts()
        if "config" in kept and (changes := config.changes_of_course(kept["config"])):
            raise CheckpointError(
                f"{folder.path / 'config.toml'} was changed since the run was trained: {'; '.join(changes)}. Put it "
                "back to go on, or begin another run"
            )
        config = config.extended(**{**(extend or {}), **({} if steps is None else {"steps": steps})})
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
            process_group=process_group,
            sync_batch_norm=sync_batch_norm,
        )
        if not begins:
            loaded_facts, _ = trainer.state.load(folder.newest_checkpoint())
            trainer._take(loaded_facts)
            trainer._digest = kept.get("digest")
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
            CheckpointError: another process is training in the run folder, or has done so meanwhile.
            NonFiniteError: a loss or parameter became infinite or NaN. It is looked for once a log interval
                and before every checkpoint, so that no checkpoint holds such a value.
            OSError: the run folder cannot be written.
            ProcessesError: another process of the group has ended, or could not go on.
        """
        created = self.run is None
        if self.run is None:
            self.run = self._on_first(lambda: RunFolder.create(self.config, self.dataset.name, self.dataset.describe()))
        run = self.run
        try:
            with contextlib.ExitStack() as held:
                self._on_first(lambda: self._take_over(run, created, held))
                with self.state.random_states.in_force(), StopSignals() as stop:
                    with Reporter(run, self.step, self.config.steps, quiet or not self._writes, self._writes) as report:
                        self._begin(run, report, created)
                        self._loop(run, report, stop)
        except BaseException as error:
            if created and not self._has_stepped:
                if self._writes:
                    run.remove()
                self.run = None
            if isinstance(error, OSError) and error.errno in _DISK:
                raise self._about_disk(error, run) from error
            raise
        if stop.received is not None:
            raise KeyboardInterrupt if stop.received == signal.SIGINT else SystemExit(128 + stop.received)
        if self.step < self.config.steps:  # another process was asked to
            raise SystemExit(128 + signal.SIGTERM)
        return run.path

    def _on_first(self, work: Callable[[], Result]) -> Result:
        """What is written is written once: by this process, or by the first of several."""
        return work() if self._processes is None else self._processes.on_first(work)

    def _take_over(self, run: RunFolder, created: bool, held: contextlib.ExitStack) -> None:
        """Hold the run folder, and bring it to the state that is gone on from."""
        held.enter_context(run.held())
        if created:
            return
        self._refuse_another_state(run)
        run.write_config(self.config)
        run.drop_metrics_after(self.step - len(self._pending))
        prune_checkpoints(run.checkpoints, self.config.keep_checkpoints, self.config.keep_best)

    def how_to_go_on(self) -> str:
        """What is kept of the run, and what goes on with it, as the end of a sentence."""
        if self.run is None or not self.run.has_begun():
            return "nothing was kept"
        path = self.run.path
        return f"{path} is whole up to step {self._saved_step(self.run)}: go on with fastgan resume {path}"

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

    def _refuse_another_state(self, run: RunFolder) -> None:
        """CheckpointError where another process has trained in the folder since this one read or wrote it."""
        digest = run.newest_facts().get("digest")
        if digest != self._digest:
            raise CheckpointError(
                f"{run.path} was trained on by another process meanwhile; go on with: fastgan resume {run.path}"
            )

    def _about_disk(self, error: OSError, run: RunFolder) -> OSError:
        """One sentence of an error of the disk, with what is kept."""
        place = os.fsdecode(error.filename) if error.filename else str(run.path)
        kept = "nothing was kept" if self.run is None else self.how_to_go_on()
        sentence = f"{place} cannot be written: {error.strerror}; {kept}"
        told = OSError(sentence)
        told.errno = error.errno
        return told

    @staticmethod
    def _saved_step(run: RunFolder) -> int:
        return int(run.newest_facts().get("step", 0))

    def _take(self, facts: Mapping[str, Any]) -> None:
        """What a checkpoint holds beside the TrainState; those of earlier versions lack it."""
        self._pending, self._pending_seconds = facts.get("pending", []), facts.get("pending_seconds", 0.0)
        self.diagnosis.load(facts.get("diagnosis", {}))

    def _begin(self, run: RunFolder, report: Reporter, created: bool) -> None:
        if not created and self._digest is not None:
            report.line(f"Resuming {run.path} at step {self.step} of {self.config.steps}.")
            return
        if not created:
            report.line(f"{run.path} was stopped before its first checkpoint: it begins anew.")
        report.line(f"{run.path}: {len(self.dataset):,} samples of {self.dataset.name}, on {self.device}")
        table = self.dataset.table
        if table is not None:
            rows = [(column.name, column.kind, column.in_words()) for column in table.columns]
            report.table(("column", "kind", "holds"), rows)
        report.line(f"plan: {self.train_step.plan}")
        if self._writes:
            real = self.dataset.examples(self._picture_size(), self.config.seed, self.config.conditional)
            self._save_picture(run, real, "real.png")
            self._save_picture(run, self.sample(self._picture_size(), seed=self.config.seed), "fakes_step_0.png")
        # So that there is a good checkpoint from the first step on, whatever happens to the second.
        self._save_checkpoint(run, self._distance())

    def _loop(self, run: RunFolder, report: Reporter, stop: StopSignals) -> None:
        config, state = self.config, self.state
        periods = (config.log_every, config.sample_every, config.checkpoint_every)
        length = min(*periods, config.steps)
        readings = Readings(length, self.device, self._pending, self._pending_seconds)
        plan = self.train_step.plan
        while state.step < config.steps:
            if self._processes is not None:
                self._processes.asks_to_stop = stop.received is not None
            readings.add(state.take_step(config, *state.batches.next()))
            self._has_stepped = True
            is_regular = not all(state.step % period for period in periods)
            last = state.step == config.steps or self._is_asked_to_stop(stop)
            if not last and not is_regular:
                continue
            values, seconds, passed = readings.read()  # The only place where the host waits for the device.
            self._refuse_non_finite(run, report, stop, values)
            if passed < 0:
                report.line(
                    f"the clock went back by {-passed:.0f} s: the time of the steps up to {state.step} is not known"
                )
            state.seconds += max(passed, 0.0)
            saves = last or state.step % config.checkpoint_every == 0
            row = dict(zip(StepStats._fields, values.mean(dim=0).tolist(), strict=True))
            row["samples_per_second"] = len(values) * config.batch_size * config.d_steps / seconds if seconds else 0.0
            row = {"step": state.step, "seconds": round(state.seconds, 3), **row}
            if self._writes:
                if saves and (distance := self._distance()) is not None:
                    row["distance"] = distance
                run.append_metrics(row)
            report.row(row)
            if is_regular and self._writes:  # a run that goes on sees the others again
                self._diagnose(report, values)
            if plan != (plan := self.train_step.plan):  # the first step chooses its way, which the plan then names
                report.line(f"plan: {plan}")
            if self._writes and (last or state.step % config.sample_every == 0):
                fakes = self.sample(self._picture_size(), seed=config.seed)
                self._save_picture(run, fakes, f"fakes_step_{state.step}.png")
                pictures.save_loss_plot(run.read_metrics(), run.loss_plot, config.loss)
            self._pending, self._pending_seconds = ([], 0.0) if is_regular else (values.tolist(), seconds)
            if saves:
                self._save_checkpoint(run, row.get("distance"))
            if last:
                break
            readings.begin()
        if config.report and self._writes:
            page.write(run, config, self.dataset, self.diagnosis.warnings, self.train_step.plan)
            report.line(f"The run on one page: {run.report}")
        if state.step < config.steps:
            report.line(f"Saved at step {state.step}. Go on with: fastgan resume {run.path}")
        else:
            report.line(f"Done: {state.step} steps. The pictures are in {run.samples}")

    def _is_asked_to_stop(self, stop: StopSignals) -> bool:
        """Whether the run is to end after this step: of several processes, all say the same."""
        return stop.received is not None if self._processes is None else self._processes.was_asked_to_stop

    def _diagnose(self, report: Reporter, values: Tensor) -> None:
        """Tell what goes wrong, once."""
        gradient = gradient_of(self.g_optimizer, self.generator)
        for line in self.diagnosis.look(self.step, values, None if gradient is None else float(gradient)):
            report.line(line)
        if self.step % self.config.sample_every == 0:
            for line in self.diagnosis.look_at_samples(self.step, *self._diversity.of_samples(self.generator)):
                report.line(line)

    def _distance(self) -> float | None:
        """How far samples are from the data, where the best checkpoint is kept."""
        if not self.config.keep_best or not self._writes:
            return None
        if self._reference is None:
            by_class = self.config.conditional and self.dataset.table is None  # as the samples' classes take turns
            self._reference = self.dataset.examples(judge.SAMPLES, self.config.seed, by_class)
        return judge.sliced_distance(self._reference, self.sample(len(self._reference), seed=self.config.seed))

    def _save_checkpoint(self, run: RunFolder, distance: float | None) -> None:
        if self._writes:
            run.sync_metrics()
        self.state.save(run.checkpoints, {**self._facts(), "distance": distance})
        if not self._writes:
            return
        if run.failure.exists():  # of a step that this run has passed by now
            shutil.rmtree(run.failure, ignore_errors=True)
        self._digest = run.newest_facts()["digest"]
        prune_checkpoints(run.checkpoints, self.config.keep_checkpoints, self.config.keep_best)

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint holds beside the TrainState."""
        return {
            "config": self.config.as_dict(),
            "pending": self._pending,
            "pending_seconds": self._pending_seconds,
            "diagnosis": self.diagnosis.state(),
        }

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

    def _refuse_non_finite(self, run: RunFolder, report: Reporter, stop: StopSignals, values: Tensor) -> None:
        networks = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "EMA generator": self.ema,
        }
        fault = find_non_finite(self.step, values, networks)
        if fault:
            kept = run.newest_checkpoint()
            found = None
            if self._processes is None:  # the noise of several is not drawn again by one
                with contextlib.suppress(OSError, CheckpointError):  # a disk that is full keeps no more
                    report.line(f"{fault}: looking for the step where it began, from {kept} on")
                    found = failure.keep(self.state, self.config, self.dataset.conditions, run, values, stop)
            message = f"training stopped at {fault}; the last good checkpoint is kept: {kept}"
            if found is not None:
                message += f"; it began at {found[1]}; take that step again with: fastgan replay {run.path}"
            message += "; try smaller --g-lr and --d-lr, or --clip-grad-norm 1"
            if self._writes:
                run.log(message)
            if self.config.report and self._writes:
                warnings = [*self.diagnosis.warnings, {"step": self.step, "text": message}]
                with contextlib.suppress(OSError):
                    page.write(run, self.config, self.dataset, warnings, self.train_step.plan)
            raise NonFiniteError(message)
