"""The training of ctgan 0.12's CTGAN: what its fit does, with the draws, the activations and the updates fused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.discriminator_step import DiscriminatorStep
from fastgan.functional import segmented_activation
from fastgan.integrations.ctgan_networks import CriticInput, ResidualGenerator

TAU = 0.2  # of ctgan's _apply_activate
GP_WEIGHT = 10.0  # lambda_ of its calc_gradient_penalty
BETAS = (0.5, 0.9)
WORTH_PROCESSES = 5000  # rows from which processes are started to fit the mixtures

Segments = tuple[Sequence[int], Sequence[str]]


def segments_of(transformer: Any) -> Segments | None:
    """Widths and kinds of the columns of the generator's output; None where one is of a kind that ctgan has not."""
    spans = [span for column in transformer.output_info_list for span in column]
    if not spans or any(span.activation_fn not in ("tanh", "softmax") for span in spans):
        return None
    kinds = ["gumbel_softmax" if span.activation_fn == "softmax" else "tanh" for span in spans]
    return [span.dim for span in spans], kinds


class Conditions:
    """Training by sampling (Xu et al. 2019, section 4.3): a discrete column, one of its levels, rows that have it.

    The tables that ctgan's DataSampler makes, laid out flat, so that a batch is drawn in a few operations.
    """

    def __init__(self, sampler: Any, starts: Sequence[int], columns: int, device: torch.device) -> None:
        """Lay out the tables.

        Args:
            sampler: ctgan's DataSampler.
            starts: of each discrete column, its first column in the generator's output.
            columns: of that output.
            device: of the training.
        """
        widths = [int(width) for width in sampler._discrete_column_n_category]
        probabilities = np.concatenate(
            [sampler._discrete_column_category_prob[column, :width] for column, width in enumerate(widths)]
        )
        rows = [np.asarray(rows) for levels in sampler._rid_by_cat_cols for rows in levels]
        counts = np.array([len(rows_of_level) for rows_of_level in rows])
        self.levels = len(probabilities)
        self.probabilities = torch.from_numpy(probabilities).to(device)  # of all columns, each equally likely
        self.rows = torch.from_numpy(np.concatenate(rows)).to(device)
        self.count = torch.from_numpy(counts).to(device)
        self.first = torch.from_numpy(np.cumsum(counts) - counts).to(device)
        # Of each column of the output and of each level: the discrete column that it belongs to, or -1; and of each
        # level its own column of the output.
        column_of = np.repeat(np.arange(len(widths)), widths)
        places = np.concatenate([start + np.arange(width) for start, width in zip(starts, widths, strict=True)])
        owner = np.full(columns, -1)
        owner[places] = column_of
        self.owner, self.owner_of_level, self.place = (
            torch.from_numpy(table).to(device) for table in (owner, column_of[:, None], places[:, None])
        )

    def draw(self, batch: int) -> Tensor:
        """A column, each as likely, and a level of it by ctgan's probabilities, for each of `batch` samples.

        Levels are numbered over all columns.
        """
        return torch.multinomial(self.probabilities, batch, replacement=True)

    def rows_with(self, level: Tensor) -> Tensor:
        """For each level one of the rows that have it, (batch,)."""
        count = self.count[level]
        place = (torch.rand(len(level), device=level.device, dtype=torch.float64) * count).long()
        return self.rows[self.first[level] + torch.minimum(place, count - 1)]

    def cross_entropy(self, output: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """ctgan's _cond_loss: the batch mean of the cross-entropy of each sample's column against its level.

        Args:
            output: of the generator, before its activation; (batch, columns), without a graph.
            level: (batch,).

        Returns:
            The mean, 0-d, and its gradient by the output.
        """
        log_shares = output.masked_fill(self.owner != self.owner_of_level[level], -torch.inf).log_softmax(1)
        place = self.place[level]
        asked = log_shares.gather(1, place)
        gradient = log_shares.exp_().div_(len(level))
        return -asked.mean(), gradient.scatter_add_(1, place, torch.full_like(asked, -1 / len(level)))


def fit(module: ModuleType, model: Any, train_data: Any, discrete_columns: Any = (), epochs: int | None = None) -> None:
    """ctgan 0.12's CTGAN.fit.

    Args:
        module: ctgan.synthesizers.ctgan.
        model: the CTGAN.
        train_data: a DataFrame or an array.
        discrete_columns: names or indices.
        epochs: as ctgan has it, deprecated there.
    """
    model._validate_discrete_columns(train_data, discrete_columns)
    model._validate_null_data(train_data, discrete_columns)
    if epochs is None:
        epochs = model._epochs
    else:
        warnings.warn(
            "`epochs` argument in `fit` method has been deprecated and will be removed "
            "in a future version. Please pass `epochs` to the constructor instead",
            DeprecationWarning,
            stacklevel=3,
        )
    model._transformer = module.DataTransformer()
    model._transformer.fit(train_data, discrete_columns)
    data = model._transformer.transform(train_data)
    model._data_sampler = module.DataSampler(data, model._transformer.output_info_list, model._log_frequency)
    training = Training(module, model, data)
    model.loss_values = module.pd.DataFrame(columns=["Epoch", "Generator Loss", "Distriminator Loss"])
    progress = module.tqdm(range(epochs), disable=not model._verbose)
    describe = "Gen. ({gen}) | Discrim. ({dis})".format
    score = module._format_score
    if model._verbose:
        progress.set_description(describe(gen=score(0), dis=score(0)))
    for epoch in progress:
        for _ in range(max(len(data) // model._batch_size, 1)):
            d_loss, g_loss = training.step()
        losses = {"Epoch": [epoch], "Generator Loss": [g_loss.item()], "Discriminator Loss": [d_loss.item()]}
        if np.isnan(losses["Generator Loss"][0]) or np.isnan(losses["Discriminator Loss"][0]):
            raise ValueError("gumbel_softmax returning NaN.")  # as ctgan says it
        row = module.pd.DataFrame(losses)
        known = model.loss_values
        model.loss_values = row if known.empty else module.pd.concat([known, row]).reset_index(drop=True)
        if model._verbose:
            gen, dis = losses["Generator Loss"][0], losses["Discriminator Loss"][0]
            progress.set_description(describe(gen=score(gen), dis=score(dis)))


class Critic(DiscriminatorStep):
    """The critic's update. ctgan names no generator of its masks, so that any may draw them."""

    _draws_bits = True


class Training:
    """The networks and optimizers of a fit, and its step."""

    def __init__(self, module: ModuleType, model: Any, data: np.ndarray) -> None:
        """Make them, as ctgan does.

        Args:
            module: ctgan.synthesizers.ctgan.
            model: the CTGAN, with its transformer and sampler.
            data: the table, transformed; (rows, columns).
        """
        device = model._device
        sampler, transformer = model._data_sampler, model._transformer
        columns = transformer.output_dimensions
        self.model = model
        self.conditions = _conditions(transformer, sampler, device)
        levels = sampler.dim_cond_vec()
        model._generator = module.Generator(model._embedding_dim + levels, model._generator_dim, columns).to(device)
        self.discriminator = module.Discriminator(columns + levels, model._discriminator_dim, pac=model.pac).to(device)
        assert model._batch_size % model.pac == 0  # as ctgan's Discriminator has it
        self.g_optimizer = module.optim.Adam(
            model._generator.parameters(),
            lr=model._generator_lr,
            betas=BETAS,
            weight_decay=model._generator_decay,
            fused=True,
        )
        d_optimizer = module.optim.Adam(
            self.discriminator.parameters(),
            lr=model._discriminator_lr,
            betas=BETAS,
            weight_decay=model._discriminator_decay,
            fused=True,
        )
        self.critic_steps = model._discriminator_steps
        layers = self.discriminator.seq
        self.critic = Critic(layers, d_optimizer, loss="wasserstein", gp_weight=GP_WEIGHT, pac=model.pac)
        self.generator = ResidualGenerator(model._generator, model._embedding_dim)
        self.judge = CriticInput(layers, model.pac)
        segments = segments_of(transformer)
        assert segments is not None
        self.segments = segments
        self.data = torch.from_numpy(data.astype("float32")).to(device)
        self.batch, self.embedding, self.columns = model._batch_size, model._embedding_dim, columns
        # What the critic looks at, data and condition side by side.
        self.real = torch.empty(self.batch, columns + levels, device=device)
        self.fake = torch.empty_like(self.real)

    def step(self) -> tuple[Tensor, Tensor]:
        """The critic's updates and one of the generator; the last losses of both, 0-d, without the penalty."""
        # The generator is the same until its own update at the end, so that one pass makes the fakes of all updates.
        batches = self.critic_steps + 1
        noise, level = self._draw(batches * self.batch)
        output = self._forward(noise, level, batches)
        *of_critic, last = output.split(self.batch)
        levels = [None] * batches if level is None else level.split(self.batch)
        for own_output, own_level in zip(of_critic, levels, strict=False):
            self._lay_out_real(own_level)
            with torch.no_grad():
                self._lay_out_fake(self._activated(own_output), own_level)
            d_loss = self._update_critic()
        return d_loss, self._update_generator(last, levels[-1])

    def _draw(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Noise, (count, embedding), and the levels that are asked for, (count,), if there are discrete columns."""
        noise = torch.randn(count, self.embedding, device=self.data.device)
        return noise, None if self.conditions is None else self.conditions.draw(count)

    def _forward(self, noise: Tensor, level: Tensor | None, batches: int) -> Tensor:
        """The generator's output before its activation, without a graph."""
        return self.generator.forward(noise, level, batches)

    def _activated(self, output: Tensor) -> Tensor:
        return segmented_activation(output, *self.segments, tau=TAU)

    def _lay_out_real(self, level: Tensor | None) -> None:
        """Rows that have the levels, in another order."""
        device = self.data.device
        asked = None if level is None else level[torch.randperm(self.batch, device=device)]
        self.real[:, : self.columns] = self._rows_with(asked)
        if asked is not None:
            _set_one_hot(self.real[:, self.columns :], asked)

    def _rows_with(self, asked: Tensor | None) -> Tensor:
        """A row for each level that is asked for, or any, (batch, columns)."""
        if self.conditions is None or asked is None:
            rows = torch.randint(len(self.data), (self.batch,), device=self.data.device)
        else:
            rows = self.conditions.rows_with(asked)
        return self.data.index_select(0, rows)

    def _lay_out_fake(self, fake: Tensor, level: Tensor | None) -> None:
        self.fake[:, : self.columns] = fake
        if level is not None:
            _set_one_hot(self.fake[:, self.columns :], level)

    def _update_critic(self) -> Tensor:
        """By what is laid out."""
        return self.critic.step(self.real, self.fake).d_loss

    def _update_generator(self, output: Tensor, level: Tensor | None) -> Tensor:
        output = output.detach().requires_grad_()
        fake = self._activated(output)
        self._lay_out_fake(fake.detach(), level)
        score, to_fake = self._judged()
        (gradient,) = torch.autograd.grad(fake, output, -to_fake[:, : self.columns])
        loss = -score
        if level is not None:
            entropy, to_output = self._cross_entropy(output.detach(), level)
            loss += entropy
            gradient += to_output
        self._backward(gradient)
        self.g_optimizer.step()
        return loss

    def _judged(self) -> tuple[Tensor, Tensor]:
        """The critic's mean score of the fakes that are laid out, and its gradient by them."""
        return self.judge.score_and_gradient(self.fake)

    def _cross_entropy(self, output: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """That of the condition, and its gradient by the output."""
        assert self.conditions is not None
        return self.conditions.cross_entropy(output, level)

    def _backward(self, gradient: Tensor) -> None:
        """Sets the generator's gradients from that by its output, of the last batch of `_forward`."""
        self.generator.backward(gradient)


def _set_one_hot(target: Tensor, level: Tensor) -> None:
    """Make each row of (batch, levels) the one-hot form of its level, in place."""
    target.zero_().scatter_(1, level[:, None], 1.0)


def _conditions(transformer: Any, sampler: Any, device: torch.device) -> Conditions | None:
    """None where the table has no discrete column."""
    starts, at = [], 0
    for column in transformer.output_info_list:
        if len(column) == 1 and column[0].activation_fn == "softmax":
            starts.append(at)
        at += sum(span.dim for span in column)
    return Conditions(sampler, starts, at, device) if starts else None


@contextmanager
def columns_at_once(transformer: Any, raw_data: Any, discrete_columns: Any) -> Iterator[None]:
    """Within it, `transformer.fit` finds the mixtures of all columns already fitted, on all cores.

    Args:
        transformer: ctgan's DataTransformer, without fits.
        raw_data: a DataFrame or an array.
        discrete_columns: names or indices.
    """
    import joblib
    import pandas

    frame, discrete = raw_data, discrete_columns
    if not isinstance(raw_data, pandas.DataFrame):
        frame = pandas.DataFrame(raw_data, columns=[str(i) for i in range(raw_data.shape[1])])
        discrete = [str(column) for column in discrete_columns]
    # A name that two columns have is ctgan's to refuse.
    continuous = [name for name in frame.columns if name not in discrete] if frame.columns.is_unique else []
    fit_one = type(transformer)._fit_continuous
    fitted = dict(
        zip(
            continuous,
            joblib.Parallel(n_jobs=-1)(joblib.delayed(fit_one)(transformer, frame[[name]]) for name in continuous),
            strict=True,
        )
    )

    def look_up(data: Any) -> Any:
        known = fitted.get(data.columns[0])
        return fit_one(transformer, data) if known is None else known

    transformer._fit_continuous = look_up
    try:
        yield
    finally:
        del transformer._fit_continuous
