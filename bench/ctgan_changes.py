"""What each change of `fastgan.integrations.ctgan` gains: a step of ctgan's training with one of them switched back.

Each class below is the accelerated training but for one part, which is as ctgan has it, or as it was before that
change. A step of each, of all changes together and of ctgan itself are timed in turns, in one process.
"""

from __future__ import annotations

import re
import statistics
import time
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastgan.integrations.ctgan_networks import ResidualGenerator
from fastgan.integrations.ctgan_training import BETAS, GP_WEIGHT, Training


def _one_hot(training: Training, level: Tensor | None) -> Tensor:
    """(batch, levels); without columns where there are no levels."""
    levels = training.fake.shape[1] - training.columns
    if level is None:
        return training.fake.new_empty(training.batch, 0)
    return torch.nn.functional.one_hot(level, levels).to(training.fake.dtype)


def _plain_adam(parameters: Any, rate: float, decay: float) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=rate, betas=BETAS, weight_decay=decay)


class PlainDraws(Training):
    """Conditions and rows by ctgan's sampler, in numpy, row by row."""

    def __init__(self, module: ModuleType, model: Any, data: Any) -> None:
        super().__init__(module, model, data)
        self._table, self._first = data, model._data_sampler._discrete_column_cond_st

    def _draw(self, count: int) -> tuple[Tensor, Tensor | None]:
        noise = torch.randn(count, self.embedding)
        drawn = self.model._data_sampler.sample_condvec(count)
        if drawn is None:
            return noise, None
        _, _, column, level = drawn
        return noise, torch.from_numpy(self._first[column] + level).long()

    def _rows_with(self, asked: Tensor | None) -> Tensor:
        column = level = None
        if self.conditions is not None and asked is not None:
            column = self.conditions.owner_of_level[asked][:, 0].numpy()
            level = asked.numpy() - self._first[column]
        rows = self.model._data_sampler.sample_data(self._table, self.batch, column, level)
        return torch.from_numpy(rows.astype("float32"))


class PlainActivations(Training):
    """A slice and an op for each column."""

    def _activated(self, output: Tensor) -> Tensor:
        activated: Tensor = self.model._apply_activate(output)
        return activated


class PlainCritic(Training):
    """The critic's update under autograd, back through the generator too, and Adam without its fused kernel."""

    def __init__(self, module: ModuleType, model: Any, data: Any) -> None:
        super().__init__(module, model, data)
        rate, decay = model._discriminator_lr, model._discriminator_decay
        self._optimizer = _plain_adam(self.discriminator.parameters(), rate, decay)

    def step(self) -> tuple[Tensor, Tensor]:
        for _ in range(self.critic_steps):
            noise, level = self._draw(self.batch)
            condition = _one_hot(self, level)
            self._lay_out_real(level)
            fake = torch.cat([self._activated(self.model._generator(torch.cat([noise, condition], 1))), condition], 1)
            loss = self.discriminator(fake).mean() - self.discriminator(self.real).mean()
            pac = self.model.pac
            penalty = self.discriminator.calc_gradient_penalty(self.real, fake, fake.device, pac, GP_WEIGHT)
            self._optimizer.zero_grad(set_to_none=False)
            penalty.backward(retain_graph=True)
            loss.backward()
            self._optimizer.step()
        noise, level = self._draw(self.batch)
        return loss.detach(), self._update_generator(self._forward(noise, level, 1), level)


class PlainGenerator(Training):
    """The generator under autograd, each batch on its own."""

    def _forward(self, noise: Tensor, level: Tensor | None, batches: int) -> Tensor:
        outputs = []
        for i, own in enumerate(noise.split(self.batch)):
            condition = _one_hot(self, None if level is None else level.split(self.batch)[i])
            with torch.set_grad_enabled(i == batches - 1):
                outputs.append(self.model._generator(torch.cat([own, condition], 1)))
        self._last = outputs[-1]
        return torch.cat([output.detach() for output in outputs])

    def _backward(self, gradient: Tensor) -> None:
        self.g_optimizer.zero_grad(set_to_none=False)
        self._last.backward(gradient)


class PassesApart(Training):
    """A pass of the generator for each batch of a step."""

    def _forward(self, noise: Tensor, level: Tensor | None, batches: int) -> Tensor:
        levels = [None] * batches if level is None else level.split(self.batch)
        pairs = zip(noise.split(self.batch), levels, strict=True)
        return torch.cat([self.generator.forward(own, own_level) for own, own_level in pairs])


class OneHotLevels(Training):
    """Levels as columns of the noise that are multiplied like the others."""

    def __init__(self, module: ModuleType, model: Any, data: Any) -> None:
        super().__init__(module, model, data)
        levels = self.fake.shape[1] - self.columns
        self.generator = ResidualGenerator(model._generator, self.embedding + levels)

    def _forward(self, noise: Tensor, level: Tensor | None, batches: int) -> Tensor:
        return self.generator.forward(torch.cat([noise, _one_hot(self, level)], 1), None, batches)


class PlainJudgement(Training):
    """The critic's score of the generator's fakes, and its gradient, under autograd."""

    def _judged(self) -> tuple[Tensor, Tensor]:
        fake = self.fake.clone().requires_grad_()
        score = self.discriminator(fake).mean()
        # As ctgan has it, of the critic's own weights too.
        gradient, *_ = torch.autograd.grad(score, [fake, *self.discriminator.parameters()])
        return score.detach(), gradient


class PlainCrossEntropy(Training):
    """The condition's cross-entropy column by column, under autograd."""

    def _cross_entropy(self, output: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        assert self.conditions is not None
        output = output.requires_grad_()
        column = self.conditions.owner_of_level[level][:, 0]
        columns = int(self.conditions.owner_of_level.max()) + 1
        mask = torch.nn.functional.one_hot(column, columns).to(output.dtype)
        entropy = self.model._cond_loss(output, _one_hot(self, level), mask)
        (gradient,) = torch.autograd.grad(entropy, output)
        return entropy.detach(), gradient


class PlainAdam(Training):
    """The generator's Adam without its fused kernel."""

    def __init__(self, module: ModuleType, model: Any, data: Any) -> None:
        super().__init__(module, model, data)
        self.g_optimizer = _plain_adam(model._generator.parameters(), model._generator_lr, model._generator_decay)


ALL = "all changes"
# Of a change, the training without it.
WITHOUT: dict[str, type[Training]] = {
    "the critic's update as one native call": PlainCritic,
    "conditions and rows drawn for a whole batch": PlainDraws,
    "activations in one op": PlainActivations,
    "the generator's passes by hand": PlainGenerator,
    "one pass of the generator for all fakes of a step": PassesApart,
    "a level as a column of each weight": OneHotLevels,
    "the critic's judgement by hand": PlainJudgement,
    "the cross-entropy of all columns at once": PlainCrossEntropy,
    "the generator's Adam as one kernel": PlainAdam,
}


def training(kind: type[Training], module: ModuleType, transformer: Any, data: Any) -> Training:
    """With ctgan's defaults, of a table whose mixtures are fitted."""
    model = module.CTGAN()
    model._transformer = transformer
    model._data_sampler = module.DataSampler(data, transformer.output_info_list, model._log_frequency)
    return kind(module, model, data)


def _median_of(marks: list[float]) -> float:
    return statistics.median(after - before for before, after in pairwise(marks)) * 1e3


def _milliseconds(timed: Training, steps: int) -> float:
    marks = [time.perf_counter()]
    for _ in range(steps):
        timed.step()
        marks.append(time.perf_counter())
    return _median_of(marks)


def _plain_milliseconds(fitted: Any) -> float:
    """Of a step of ctgan's own fit of one epoch: the time between its draws of conditions, of which a step has two."""
    module, marks = fitted.module, list[float]()
    own = module.DataSampler

    class Marking(own):  # type: ignore[misc, valid-type]
        def sample_condvec(self, batch: int) -> Any:
            marks.append(time.perf_counter())
            return super().sample_condvec(batch)

    module.DataSampler = Marking
    try:
        with fitted:
            module.CTGAN(epochs=1).fit(fitted.frame, fitted.discrete)
    finally:
        module.DataSampler = own
    return _median_of(marks[::2])


def changes(fitted: Any, rounds: int, steps: int) -> dict[str, Any]:
    """A step by ctgan, with all changes, and with all but each one, in turns.

    Args:
        fitted: a `bench.ctgan_fit.Fitted`, of a table of at least two batches.
        rounds: turns.
        steps: of each but ctgan itself in a turn; of ctgan an epoch.

    Returns:
        `milliseconds`: of each by its name, a median for each turn; and for each change in `gains` the quartiles of
        how many times as long a step takes without it, by turns; likewise `times_as_fast` as ctgan, with all of them
        and without each.
    """
    kinds: dict[str, type[Training]] = {ALL: Training}
    kinds |= WITHOUT
    timed = {name: training(kind, fitted.module, fitted.transformer, fitted.data) for name, kind in kinds.items()}
    for each in timed.values():
        for _ in range(3):
            each.step()
    taken: dict[str, list[float]] = {name: [] for name in ("ctgan", *timed)}
    names = list(taken)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:  # none is always right after another
            own = _plain_milliseconds(fitted) if name == "ctgan" else _milliseconds(timed[name], steps)
            taken[name].append(own)
    return {
        "rounds": rounds,
        "steps": steps,
        "milliseconds": taken,
        "times_as_fast": {name: _quartiles(taken["ctgan"], taken[name]) for name in timed},
        "gains": {name: _quartiles(taken[name], taken[ALL]) for name in WITHOUT},
    }


def _quartiles(long: list[float], short: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile of the ratios of each turn."""
    ratios = [one / other for one, other in zip(long, short, strict=True)]
    if len(ratios) == 1:
        return ratios * 3
    return statistics.quantiles(ratios, n=4, method="inclusive")


def lines(record: dict[str, Any]) -> list[str]:
    """A table in markdown of what `changes` returns."""

    def cell(quartiles: list[float]) -> str:
        low, middle, high = quartiles
        return f"{middle:.2f} ({low:.2f} to {high:.2f})"

    rows = ["| without | a step takes | as fast as ctgan |", "|---|---|---|"]
    for name, own in record["times_as_fast"].items():
        label, gain = ("nothing", "1") if name == ALL else (name, cell(record["gains"][name]))
        rows.append(f"| {label} | {gain} | {cell(own)} |")
    return rows


def written(page: str, record: dict[str, Any], environment: dict[str, Any]) -> str:
    """The page with its table made anew, which stands between `<!-- ctgan changes -->` and `<!-- end -->`.

    Raises:
        ValueError: the page has no such place, or several.
    """
    told = (
        f"Measured on {environment['date']}; threads: {environment['threads']}; processor: {environment['cpu']}. "
        f"Medians of turns, {record['rounds']} in all, and their quartiles."
    )
    block = "\n".join(["<!-- ctgan changes -->", "", *lines(record), "", told, "", "<!-- end -->"])
    text, places = re.subn(r"<!-- ctgan changes -->.*?<!-- end -->", lambda _: block, page, flags=re.DOTALL)
    if places != 1:
        raise ValueError("the page must have one place from <!-- ctgan changes --> to <!-- end -->")
    return text
