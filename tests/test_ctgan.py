"""The package ctgan on fastgan's step: the same interface and columns, undone on exit, and fast where it is its own."""

from __future__ import annotations

import argparse
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastgan.integrations import ctgan_networks, ctgan_training
from fastgan.integrations.ctgan import accelerate

ctgan = pytest.importorskip("ctgan")
pandas = pytest.importorskip("pandas")

pytestmark = pytest.mark.deep  # make check installs the package

ROWS = 120
DISCRETE = ["colour", "flag"]


def table(rows: int = ROWS) -> Any:
    rng = np.random.default_rng(0)
    return pandas.DataFrame(
        {
            "colour": rng.choice(["red", "green", "blue"], rows),
            "size": rng.normal(size=rows),
            "flag": rng.choice([0, 1], rows),
            "count": rng.integers(0, 50, rows),
        }
    )


def model(**options: Any) -> Any:
    return ctgan.CTGAN(
        **{"epochs": 2, "batch_size": 40, "generator_dim": (16, 8), "discriminator_dim": (16,), **options}
    )


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One element for each step that fastgan trains."""
    taken: list[int] = []
    step = ctgan_training.Training.step

    def counted(self: ctgan_training.Training) -> Any:
        taken.append(1)
        return step(self)

    monkeypatch.setattr(ctgan_training.Training, "step", counted)
    return taken


def test_fit_and_sample_have_the_same_columns_and_kinds(steps: list[int]) -> None:
    data = table()
    with accelerate() as acceleration:
        assert acceleration.is_on
        synthesizer = model()
        synthesizer.fit(data, DISCRETE)
        sample = synthesizer.sample(50)
        conditioned = synthesizer.sample(30, "colour", "red")
    assert len(steps) == 2 * (ROWS // 40)
    assert list(sample.columns) == list(data.columns)
    assert sample.dtypes.equals(data.dtypes)
    assert len(sample) == 50
    assert len(conditioned) == 30
    assert set(sample["colour"]) <= {"red", "green", "blue"}
    assert list(synthesizer.loss_values.columns) == ["Epoch", "Generator Loss", "Discriminator Loss"]
    assert len(synthesizer.loss_values) == 2


def test_the_critic_is_one_native_call(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[str] = []
    step = ctgan_training.Training.step

    def seen(self: ctgan_training.Training) -> Any:
        result = step(self)
        plans.append(self.critic.plan)
        return result

    monkeypatch.setattr(ctgan_training.Training, "step", seen)
    with accelerate():
        model(epochs=1).fit(table(), DISCRETE)
    assert all(plan.startswith("the whole update of D as one native call") for plan in plans)


@pytest.mark.parametrize(
    "options",
    [{"discriminator_steps": 3}, {"pac": 1}, {"pac": 4, "log_frequency": False}, {"generator_dim": (), "pac": 2}],
)
def test_options(steps: list[int], options: dict[str, Any]) -> None:
    with accelerate():
        synthesizer = model(**options)
        synthesizer.fit(table(), DISCRETE)
        assert len(synthesizer.sample(10)) == 10
    assert len(steps) == 6


def test_arrays_and_tables_without_discrete_columns(steps: list[int]) -> None:
    values = np.random.default_rng(0).normal(size=(ROWS, 3))
    with accelerate():
        synthesizer = model()
        synthesizer.fit(values)
        assert synthesizer.sample(7).shape == (7, 3)
        mixed = np.column_stack([values[:, 0], np.random.default_rng(1).integers(0, 3, ROWS)])
        synthesizer = model()
        synthesizer.fit(mixed, [1])
        assert set(synthesizer.sample(20)[:, 1]) <= {0.0, 1.0, 2.0}
    assert len(steps) == 12


def test_everything_is_undone() -> None:
    before = {name: vars(ctgan.CTGAN)[name] for name in ("fit", "sample", "_apply_activate")}
    with accelerate(), accelerate() as second:
        assert not second.is_on  # the first one has done it
        assert vars(ctgan.CTGAN)["fit"] is not before["fit"]
    assert {name: vars(ctgan.CTGAN)[name] for name in before} == before
    plain = accelerate()
    plain.undo()
    plain.undo()
    assert {name: vars(ctgan.CTGAN)[name] for name in before} == before
    with pytest.raises(RuntimeError, match="stop"), accelerate():
        raise RuntimeError("stop")
    assert {name: vars(ctgan.CTGAN)[name] for name in before} == before


def test_a_model_is_saved_and_loaded_with_and_without(tmp_path: Path) -> None:
    with accelerate():
        synthesizer = model()
        synthesizer.fit(table(), DISCRETE)
        synthesizer.save(tmp_path / "model.pt")
        assert len(pickle.loads(pickle.dumps(synthesizer)).sample(5)) == 5
    assert len(ctgan.CTGAN.load(tmp_path / "model.pt").sample(5)) == 5
    synthesizer.fit(table(), DISCRETE)  # by ctgan again


def test_a_seed_repeats_a_run() -> None:
    def run() -> Any:
        synthesizer = model()
        synthesizer.set_random_state(3)
        synthesizer.fit(table(), DISCRETE)
        return synthesizer.sample(20)

    with accelerate():
        first = run()
        torch.manual_seed(99)
        pandas.testing.assert_frame_equal(first, run())


def test_another_version_runs_as_ever_with_one_warning(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> None:
    monkeypatch.setattr(ctgan, "__version__", "0.99.0")
    with pytest.warns(UserWarning, match=r"ctgan 0\.99\.0 is not accelerated") as caught:
        acceleration = accelerate()
    assert len(caught) == 1
    assert not acceleration.is_on
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(epochs=1).fit(table(), DISCRETE)
    assert not steps


def test_a_model_that_is_not_ctgans_own_is_trained_by_ctgan(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> None:
    class Own(ctgan.CTGAN):
        def _cond_loss(self, data: Any, c: Any, m: Any) -> Any:
            return 2 * super()._cond_loss(data, c, m)

    class Named(ctgan.CTGAN):
        """Overrides nothing."""

    module = ctgan.synthesizers.ctgan
    options: dict[str, Any] = {"epochs": 1, "batch_size": 40, "generator_dim": (8,), "discriminator_dim": (8,)}
    with accelerate():
        Own(**options).fit(table(), DISCRETE)
        assert not steps
        on_instance = model(epochs=1)
        on_instance._cond_loss = lambda data, c, m: 0.0 * data.sum()
        on_instance.fit(table(), DISCRETE)
        assert not steps
        with monkeypatch.context() as patch:
            patch.setattr(module, "DataSampler", type("DataSampler", (module.DataSampler,), {}))
            model(epochs=1).fit(table(), DISCRETE)
        with monkeypatch.context() as patch:
            forward = module.Discriminator.forward
            patch.setattr(module.Discriminator, "forward", lambda self, x: forward(self, x))
            model(epochs=1).fit(table(), DISCRETE)
        assert not steps
        Named(**options).fit(table(), DISCRETE)
        assert len(steps) == 3


def test_on_another_device_ctgan_trains(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> None:
    """Such as `mps`, which ctgan takes where there is one and which has no float64."""
    devices: list[str] = []
    monkeypatch.setattr(ctgan.CTGAN, "fit", lambda self, *arguments: devices.append(self._device.type))
    synthesizer = model()
    with accelerate():
        synthesizer._device = torch.device("mps")
        synthesizer.fit(table(), DISCRETE)
    assert devices == ["mps"]
    assert not steps


def test_bad_tables_are_refused_as_by_ctgan() -> None:
    data = table()
    data.loc[0, "size"] = np.nan
    with accelerate():
        with pytest.raises(ValueError, match="Invalid columns found"):
            model().fit(table(), ["none"])
        with pytest.raises(ctgan.errors.InvalidDataError, match="null values"):
            model().fit(data, DISCRETE)
        with pytest.raises(AssertionError):
            model(pac=7).fit(table(), DISCRETE)


def test_mixtures_fitted_in_processes_are_those_fitted_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(300)

    def fitted() -> Any:
        transformer = ctgan.data_transformer.DataTransformer()
        transformer.fit(data, DISCRETE)
        return transformer

    alone = fitted()
    monkeypatch.setattr(ctgan_training, "WORTH_PROCESSES", 1)
    with accelerate():
        together = fitted()
    assert together.output_info_list == alone.output_info_list
    assert "_fit_continuous" not in vars(together)
    for one, other in zip(alone._column_transform_info_list, together._column_transform_info_list, strict=True):
        assert one[:2] == other[:2]
        if one.column_type == "continuous":
            for name in ("means_", "weights_", "covariances_"):
                mixture = one.transform._bgm_transformer, other.transform._bgm_transformer
                np.testing.assert_array_equal(getattr(mixture[0], name), getattr(mixture[1], name))


# Of each change, what a step calls only without it: methods of ctgan's (by their class in its module) or of fastgan's.
CALLED_WITHOUT = {
    "the critic's update as one native call": "Discriminator.calc_gradient_penalty",
    "conditions and rows drawn for a whole batch": "DataSampler.sample_data",
    "activations in one op": "CTGAN._apply_activate",
    "the generator's passes by hand": "Generator.forward",
    "the critic's judgement by hand": "Discriminator.forward",
    "the cross-entropy of all columns at once": "CTGAN._cond_loss",
}


def test_each_change_is_switched_back_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import ctgan_changes, ctgan_fit

    module = ctgan.synthesizers.ctgan
    frame, discrete = ctgan_fit.data_frame(1200)
    fitted = ctgan_fit.Fitted(module, frame, discrete)
    called: set[str] = set()
    passes: list[tuple[bool, int]] = []  # of the generator by hand: whether of levels, how many batches at once

    def record(owner: Any, name: str, key: str) -> None:
        before = getattr(owner, name)

        def recording(*arguments: Any, **options: Any) -> Any:
            called.add(key)
            return before(*arguments, **options)

        monkeypatch.setattr(owner, name, recording)

    for key in CALLED_WITHOUT.values():
        owner, name = key.split(".")
        record(getattr(module, owner), name, key)
    record(ctgan_training.Critic, "step", "the native call")
    forward = ctgan_networks.ResidualGenerator.forward

    def seen(self: Any, noise: Any, level: Any = None, batches: int = 1) -> Any:
        passes.append((level is not None, batches))
        return forward(self, noise, level, batches)

    monkeypatch.setattr(ctgan_networks.ResidualGenerator, "forward", seen)
    kinds: dict[str, type[ctgan_training.Training]] = {ctgan_changes.ALL: ctgan_training.Training}
    for name, kind in {**kinds, **ctgan_changes.WITHOUT}.items():
        training = ctgan_changes.training(kind, module, fitted.transformer, fitted.data)
        weights = [parameter.detach().clone() for parameter in training.model._generator.parameters()]
        called.clear()
        passes.clear()
        assert all(np.isfinite(float(loss)) for loss in training.step()), name
        assert not torch.equal(weights[0], next(training.model._generator.parameters())), name
        expected = {CALLED_WITHOUT[name]} if name in CALLED_WITHOUT else set()
        own_critic = kind is ctgan_changes.PlainCritic
        if own_critic:  # which is made of these
            expected |= {"Discriminator.forward", "Generator.forward"}
        assert called == expected | (set() if own_critic else {"the native call"}), name
        of_kind: dict[type[ctgan_training.Training], list[tuple[bool, int]]] = {
            ctgan_changes.PlainCritic: [(True, 1)],
            ctgan_changes.PlainGenerator: [],
            ctgan_changes.PassesApart: [(True, 1), (True, 1)],
            ctgan_changes.OneHotLevels: [(False, 2)],
        }
        assert passes == of_kind.get(kind, [(True, 2)]), name
        assert bool(training.g_optimizer.defaults["fused"]) == (kind is not ctgan_changes.PlainAdam), name


def test_the_changes_are_timed_and_written(tmp_path: Path) -> None:
    from bench import ctgan_changes, ctgan_fit

    frame, discrete = ctgan_fit.data_frame(1500)
    record = ctgan_changes.changes(ctgan_fit.Fitted(ctgan.synthesizers.ctgan, frame, discrete), 1, 1)
    assert set(record["gains"]) == set(ctgan_changes.WITHOUT)
    assert all(taken > 0 for each in record["milliseconds"].values() for taken in each)
    first = record["milliseconds"]
    assert record["times_as_fast"][ctgan_changes.ALL][1] == first["ctgan"][0] / first[ctgan_changes.ALL][0]
    facts = {"date": "2026-11-27", "threads": 2, "cpu": "Made Up CPU"}
    page = ctgan_changes.written("a\n<!-- ctgan changes -->\nold\n<!-- end -->\nb\n", record, facts)
    assert page.startswith("a\n<!-- ctgan changes -->\n\n| without | a step takes |")
    assert page.endswith("<!-- end -->\nb\n")
    assert "old" not in page
    assert "threads: 2; processor: Made Up CPU. Medians of turns, 1 in all" in page
    with pytest.raises(ValueError, match="must have one place"):
        ctgan_changes.written("nothing", record, facts)


def test_the_benchmarks_run(tmp_path: Path) -> None:
    """Each part of the step as the benchmark times it, and a table from .csv to .csv by both."""
    from bench import ctgan_fit, tables

    module = ctgan.synthesizers.ctgan
    frame, discrete = ctgan_fit.data_frame(600)
    parts = ctgan_fit.parts(ctgan_fit.Fitted(module, frame, discrete), 1)
    assert len(parts) == 5
    assert all(taken > 0 for each in parts.values() for taken in each.values())
    options = argparse.Namespace(
        rows=300, seeds=1, steps=3, epochs=1, contenders=("fastgan", "ctgan", "ctgan accelerated")
    )
    lines: list[str] = []
    for name in ("wine", "mixed"):
        rows = tables.compare(name, tmp_path, options, lines.append)
        assert [row["contender"] for row in rows] == list(options.contenders)
        assert all(row["same_kinds"] and 0 <= row["shape"] <= 1 for row in rows)
    assert len(lines) == 6
