"""CTGAN with and without fastgan, on a table of 30,000 rows: `python -m bench.ctgan_fit`, with the package ctgan.

The step of its training, in turns; the parts of the step, each as ctgan has it and as fastgan has it; the step without
each of the changes that make it fast; whole fits, from the table to the last epoch, by seed, with the likeness of what
the model then draws.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fastgan.functional import segmented_activation
from fastgan.integrations import ctgan_training
from fastgan.integrations.ctgan import accelerate
from fastgan.training.table_metrics import (
    contingency_similarity,
    correlation_similarity,
    ks_complement,
    tv_complement,
)

from .ctgan_changes import changes, lines, written
from .mixed_table import mixed_table
from .record import environment

NUMBERS = ("age", "pay", "gain", "score")


def data_frame(rows: int) -> tuple[Any, list[str]]:
    """The mixed table, and its discrete columns. ctgan takes no missing number: those are the column's median."""
    import pandas

    columns = {name: np.array(cells) for name, cells in mixed_table(rows).items()}
    frame = pandas.DataFrame(columns)
    for name in NUMBERS:
        numbers = pandas.to_numeric(frame[name])
        frame[name] = numbers.fillna(numbers.median())
    return frame, [name for name in columns if name not in NUMBERS]


def likeness(real: Any, synthetic: Any) -> dict[str, float]:
    """Mean column shape and mean pair trend, as SDMetrics has them; 1 is the best."""
    names = list(real.columns)
    columns = {name: [table[name].to_numpy() for table in (real, synthetic)] for name in names}
    for name in names:
        if name not in NUMBERS:  # levels as numbers
            both = np.concatenate([cells.astype(str) for cells in columns[name]])
            codes = np.unique(both, return_inverse=True)[1]
            columns[name] = [codes[: len(real)], codes[len(real) :]]
    shapes = [(ks_complement if name in NUMBERS else tv_complement)(*columns[name]) for name in names]
    trends = []
    for first, second in combinations(names, 2):
        score = correlation_similarity if first in NUMBERS and second in NUMBERS else contingency_similarity
        trends.append(score(*((columns[first][of], columns[second][of]) for of in (0, 1))))
    return {"shape": float(np.nanmean(shapes)), "trend": float(np.nanmean(trends))}


class Fitted:
    """A table whose mixtures are fitted once, so that what is timed is the training alone."""

    def __init__(self, module: ModuleType, frame: Any, discrete: list[str]) -> None:
        transformer = module.DataTransformer()
        transformer.fit(frame, discrete)
        data = transformer.transform(frame)

        class Known(module.DataTransformer):  # type: ignore[misc, name-defined]
            def fit(self, raw_data: Any, discrete_columns: Any = ()) -> None:
                vars(self).update(vars(transformer))

            def transform(self, raw_data: Any) -> Any:
                return data

        self.module, self.frame, self.discrete, self.data, self.transformer = module, frame, discrete, data, transformer
        self._known, self._own = Known, module.DataTransformer

    def __enter__(self) -> Fitted:
        self.module.DataTransformer = self._known  # type: ignore[attr-defined]
        return self

    def __exit__(self, *of_error: object) -> None:
        self.module.DataTransformer = self._own  # type: ignore[attr-defined]

    def milliseconds_a_step(self, epochs: int) -> float:
        """Of so many epochs, less those of the first one, in which everything is made and warmed up."""
        taken = []
        for count in (1, 1 + epochs):
            began = time.perf_counter()
            self.module.CTGAN(epochs=count).fit(self.frame, self.discrete)
            taken.append(time.perf_counter() - began)
        return (taken[1] - taken[0]) / (epochs * (len(self.frame) // 500)) * 1e3


def steps(fitted: Fitted, rounds: int, epochs: int) -> dict[str, Any]:
    """Milliseconds a step by ctgan and by fastgan, in turns."""
    taken: dict[str, list[float]] = {"ctgan": [], "fastgan": []}
    with fitted:
        for _ in range(rounds):
            taken["ctgan"].append(fitted.milliseconds_a_step(epochs))
            with accelerate():
                taken["fastgan"].append(fitted.milliseconds_a_step(epochs))
    ratios = sorted(plain / ours for plain, ours in zip(taken["ctgan"], taken["fastgan"], strict=True))
    return {**taken, "times_as_fast": statistics.median(ratios), "ratios": ratios}


def parts(fitted: Fitted, calls: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of the parts of a step, each as ctgan has it and as fastgan has it."""
    module = fitted.module
    model = module.CTGAN()
    model._transformer = fitted.transformer
    model._data_sampler = sampler = module.DataSampler(fitted.data, fitted.transformer.output_info_list, True)
    training = ctgan_training.Training(module, model, fitted.data)
    training.step()
    generator, batch = model._generator, training.batch
    critic = module.Discriminator(training.real.shape[1], (256, 256), pac=10)
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.5, 0.9), weight_decay=1e-6)
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.9), weight_decay=1e-6)
    apply_activate = vars(module.CTGAN)["_apply_activate"]
    numbers, level = training._draw(batch)
    conditions = training.conditions
    assert level is not None
    assert conditions is not None
    noise = torch.cat([numbers, torch.nn.functional.one_hot(level, conditions.levels)], dim=1)
    real = training.real.clone()
    output = generator(noise).detach().requires_grad_()
    weights = torch.randn_like(output)
    c, m, *_ = (torch.from_numpy(values) for values in sampler.sample_condvec(batch))

    def plain_draws() -> None:
        _, _, column, level = sampler.sample_condvec(batch)
        sampler.sample_data(fitted.data, batch, column, level)

    def draws() -> None:
        training._rows_with(training._draw(batch)[1])

    def plain_critic() -> None:
        fake = torch.cat([apply_activate(model, generator(noise)), noise[:, training.embedding :]], dim=1)
        loss = critic(fake).mean() - critic(real).mean()
        penalty = critic.calc_gradient_penalty(real, fake, "cpu", 10)
        optimizer.zero_grad(set_to_none=False)
        penalty.backward(retain_graph=True)
        loss.backward()
        optimizer.step()

    def own_critic() -> None:
        with torch.no_grad():
            training._lay_out_fake(training._activated(training.generator.forward(numbers, level)), level)
        training._update_critic()

    def own_generator() -> None:
        drawn, asked = training._draw(batch)
        training._update_generator(training._forward(drawn, asked, 1), asked)

    def plain_generator() -> None:
        drawn = generator(noise)
        fake = torch.cat([apply_activate(model, drawn), noise[:, training.embedding :]], dim=1)
        loss = model._cond_loss(drawn, c, m) - critic(fake).mean()
        g_optimizer.zero_grad(set_to_none=False)
        loss.backward()
        g_optimizer.step()

    def gradient_of(activation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(activation(output), output, weights)

    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "condition and rows drawn": (plain_draws, draws),
        "activations and their gradient": (
            gradient_of(lambda x: apply_activate(model, x)),
            gradient_of(lambda x: segmented_activation(x, *training.segments, tau=ctgan_training.TAU)),
        ),
        "cross-entropy of the condition and its gradient": (
            gradient_of(lambda x: model._cond_loss(x, c, m).expand(x.shape)),
            lambda: conditions.cross_entropy(output.detach(), level),
        ),
        "update of the critic, fakes included": (plain_critic, own_critic),
        "update of the generator": (plain_generator, own_generator),
    }
    return {
        name: {"ctgan": _median(plain, calls), "fastgan": _median(ours, calls)} for name, (plain, ours) in pairs.items()
    }


def _median(work: Callable[[], object], calls: int) -> float:
    for _ in range(3):
        work()
    taken = []
    for _ in range(calls):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e3


def fits(module: ModuleType, frame: Any, discrete: list[str], epochs: int, seeds: int) -> list[dict[str, Any]]:
    """Whole fits in turns: seconds, and the likeness of as many rows as the table has."""
    rows = []
    for seed in range(seeds):
        row: dict[str, Any] = {"seed": seed}
        for name in ("ctgan", "fastgan"):
            acceleration = accelerate() if name == "fastgan" else None
            try:
                model = module.CTGAN(epochs=epochs)
                model.set_random_state(seed)
                began = time.perf_counter()
                model.fit(frame, discrete)
                fitted = time.perf_counter()
                synthetic = model.sample(len(frame))
                row[name] = {
                    "fit_seconds": fitted - began,
                    "sample_seconds": time.perf_counter() - fitted,
                    **likeness(frame, synthetic),
                }
            finally:
                if acceleration is not None:
                    acceleration.undo()
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def _print_steps(record: dict[str, Any]) -> None:
    middle = {name: statistics.median(record[name]) for name in ("ctgan", "fastgan")}
    ratios = record["ratios"]
    print(f"{'a step of the training':<50} {middle['ctgan']:7.2f}  {middle['fastgan']:7.2f}")
    print(f"{record['times_as_fast']:.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def main() -> None:
    """Prints all of it."""
    parser = argparse.ArgumentParser(prog="python -m bench.ctgan_fit", description=__doc__)
    parser.add_argument("--rows", type=int, default=30_000, help="of the table (default: 30000)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of the step; 0 for none (default: 5)")
    parser.add_argument(
        "--changes",
        type=int,
        default=0,
        metavar="TURNS",
        help="turns of the step with all changes, and without each one; 0 for none (default: 0)",
    )
    parser.add_argument("--epochs", type=int, default=30, help="of the whole fits (default: 30)")
    parser.add_argument("--seeds", type=int, default=5, help="of the whole fits; 0 for none (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there too")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table of changes into that page")
    options = parser.parse_args()
    if options.write is not None and options.changes < 1:
        parser.error("--write needs --changes")
    from ctgan.synthesizers import ctgan as module

    frame, discrete = data_frame(options.rows)
    record: dict[str, Any] = {"environment": environment(), "rows": options.rows, "epochs": options.epochs}
    fitted = Fitted(module, frame, discrete)
    record["columns"] = int(fitted.transformer.output_dimensions)
    record["parts"] = parts(fitted, 20)
    print("milliseconds                                         ctgan  fastgan")
    for name, taken in record["parts"].items():
        print(f"{name:<50} {taken['ctgan']:7.2f}  {taken['fastgan']:7.2f}")
    if options.changes > 0:
        record["changes"] = changes(fitted, options.changes, 20)
        print("\n".join(lines(record["changes"])))
        if options.write is not None:
            options.write.write_text(written(options.write.read_text(), record["changes"], record["environment"]))
    if options.rounds > 0:
        record["steps"] = steps(fitted, options.rounds, 5)
        _print_steps(record["steps"])
    record["fits"] = fits(module, frame, discrete, options.epochs, options.seeds)
    for measure in ("fit_seconds", "sample_seconds", "shape", "trend") if record["fits"] else ():
        means = {}
        for name in ("ctgan", "fastgan"):
            values = [row[name][measure] for row in record["fits"]]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            means[name] = f"{statistics.mean(values):.4f} +- {error:.4f}"
        print(f"{measure:<16} ctgan {means['ctgan']}, fastgan {means['fastgan']}")
    if options.json is not None:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
