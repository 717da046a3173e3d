"""skrl's AMP agent with its discriminator on fastgan's step: the same training, undone on exit, or left to skrl."""

from __future__ import annotations

import gc
import re
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import assert_close_in_float64
from torch import Tensor, nn

from fastgan.integrations.skrl import accelerate
from fastgan.integrations.skrl_discriminator import Amp

skrl = pytest.importorskip("skrl")
amp = pytest.importorskip("skrl.agents.torch.amp")
gymnasium = pytest.importorskip("gymnasium")
memories = pytest.importorskip("skrl.memories.torch")
models = pytest.importorskip("skrl.models.torch")
preprocessors = pytest.importorskip("skrl.resources.preprocessors.torch")
schedulers = pytest.importorskip("skrl.resources.schedulers.torch")
instantiators = pytest.importorskip("skrl.utils.model_instantiators.torch")

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("one_thread")]  # make check installs the package

OBSERVED, ACTIONS, MOTION = 5, 2, 6
ENVIRONMENTS, ROLLOUTS = 8, 4
UPDATES = 2 * 2  # learning epochs, each of so many batches


def box(size: int) -> Any:
    return gymnasium.spaces.Box(-10.0, 10.0, shape=(size,))


class Memory(memories.RandomMemory):  # type: ignore[misc, name-defined]
    """Keeps reals in float64, so that rounding hides nothing."""

    def create_tensor(self, *, dtype: torch.dtype, **options: Any) -> bool:
        dtype = torch.float64 if dtype == torch.float32 else dtype
        made: bool = super().create_tensor(dtype=dtype, **options)
        return made


class Policy(models.GaussianMixin, models.Model):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        models.Model.__init__(self, observation_space=box(OBSERVED), action_space=box(ACTIONS), device="cpu")
        models.GaussianMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(OBSERVED, 8), nn.Tanh(), nn.Linear(8, ACTIONS))
        self.log_std = nn.Parameter(torch.zeros(ACTIONS))

    def compute(self, inputs: dict[str, Tensor], role: str = "") -> tuple[Tensor, dict[str, Tensor]]:
        return self.net(inputs["observations"]), {"log_std": self.log_std}


class Deterministic(models.DeterministicMixin, models.Model):  # type: ignore[misc, name-defined]
    def __init__(self, size: int, hidden: nn.Module | None = None) -> None:
        models.Model.__init__(self, observation_space=box(size), action_space=box(1), device="cpu")
        models.DeterministicMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(size, 16), hidden or nn.ELU(), nn.Linear(16, 1))

    def compute(self, inputs: dict[str, Tensor], role: str = "") -> tuple[Tensor, dict[str, Tensor]]:
        return self.net(inputs["observations"]), {}


def agent_of(folder: Path, kind: Any = None, discriminator: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    networks = {"policy": Policy(), "value": Deterministic(OBSERVED)}
    networks["discriminator"] = Deterministic(MOTION) if discriminator is None else discriminator
    cfg = {
        "rollouts": ROLLOUTS,
        "learning_epochs": 2,
        "mini_batches": 2,
        "learning_rate": 1e-3,
        "grad_norm_clip": 0.0,
        "amp_batch_size": 32,
        "experiment": {"directory": str(folder), "write_interval": 0, "checkpoint_interval": 0},
        **options,
    }
    agent = (kind or amp.AMP)(
        models={name: network.double() for name, network in networks.items()},
        memory=Memory(memory_size=ROLLOUTS, num_envs=ENVIRONMENTS, device="cpu"),
        observation_space=box(OBSERVED),
        action_space=box(ACTIONS),
        device="cpu",
        cfg=cfg,
        amp_observation_space=box(MOTION),
        motion_dataset=Memory(memory_size=64, num_envs=1, device="cpu"),
        reply_buffer=Memory(memory_size=48, num_envs=1, device="cpu"),
        collect_reference_motions=lambda size: torch.randn(size, MOTION, dtype=torch.float64) + 1,
    )
    agent.init()
    agent.enable_training_mode(True)
    return agent


def train(agent: Any, rollouts: int = 3) -> None:
    """In an environment whose next state is the last one, turned and pushed by the action."""
    push = torch.linspace(-1, 1, ACTIONS * OBSERVED, dtype=torch.float64).view(ACTIONS, OBSERVED)
    observed = torch.randn(ENVIRONMENTS, OBSERVED, dtype=torch.float64)
    no = torch.zeros(ENVIRONMENTS, 1, dtype=torch.bool)
    for t in range(rollouts * ROLLOUTS):
        with torch.no_grad():
            actions, _ = agent.act(observed, None, timestep=t, timesteps=100)
        after = observed.roll(1, dims=1) * 0.9 + actions @ push
        seen = {"amp_obs": torch.cat([observed[:, :3], after[:, :3]], dim=1)}
        agent.record_transition(
            observations=observed,
            states=None,
            actions=actions,
            rewards=-after.square().mean(dim=1, keepdim=True),
            next_observations=after,
            next_states=None,
            terminated=no,
            truncated=no,
            infos=seen,
            timestep=t,
            timesteps=100,
        )
        agent.post_interaction(timestep=t, timesteps=100)
        observed = after


def results(agent: Any) -> list[Tensor]:
    """All weights, all that the optimizer keeps, and what was tracked of the losses."""
    weights = [p.detach() for name in ("policy", "value", "discriminator") for p in agent.models[name].parameters()]
    state = agent.optimizer.state_dict()["state"]
    kept = [state[i][name].detach() for i in sorted(state) for name in sorted(state[i])]
    losses = [v for tag, values in sorted(agent.tracking_data.items()) if "Loss" in tag for v in values]
    return [*weights, *kept, torch.tensor(losses, dtype=torch.float64)]


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The plan of each update that fastgan has run."""
    plans: list[str] = []
    update = Amp.update

    def counted(self: Amp, *given: Tensor) -> Tensor:
        loss = update(self, *given)
        plans.append(self.step.plan)
        return loss

    monkeypatch.setattr(Amp, "update", counted)
    return plans


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"discriminator_loss_scale": 0.7, "discriminator_logit_regularization_scale": 0.0},
        {"discriminator_gradient_penalty_scale": 0.0, "discriminator_weight_decay_scale": 0.0},
        {"discriminator_batch_size": 10, "entropy_loss_scale": 0.01, "task_reward_scale": 0.5},
        {"learning_rate_scheduler": schedulers.KLAdaptiveLR, "learning_rate_scheduler_kwargs": {"kl_threshold": 0.008}},
        {
            "amp_observation_preprocessor": preprocessors.RunningStandardScaler,
            "amp_observation_preprocessor_kwargs": {"size": MOTION, "device": "cpu"},
        },
    ],
)
def test_an_agent_is_trained_as_ever(updates: list[str], tmp_path: Path, options: dict[str, Any]) -> None:
    plain = agent_of(tmp_path, **options)
    train(plain)
    assert not updates
    with warnings.catch_warnings(), accelerate() as acceleration:
        warnings.simplefilter("error")
        assert acceleration.is_on
        agent = agent_of(tmp_path, **options)
        train(agent)
    assert len(updates) == 3 * UPDATES
    assert all(plan.startswith("the whole update of D as one native call") for plan in updates), updates[0]
    assert_close_in_float64(results(agent), results(plain))


def test_an_agent_goes_on_with_and_without(updates: list[str], tmp_path: Path) -> None:
    plain, agent = agent_of(tmp_path), agent_of(tmp_path)
    for turn in range(4):
        for each in (plain, agent):
            torch.manual_seed(turn)
            if each is agent and turn % 2 == 1:
                with accelerate():
                    train(each, 1)
            else:
                train(each, 1)
    assert len(updates) == 2 * UPDATES
    assert_close_in_float64(results(agent), results(plain))


def test_a_checkpoint_is_read_with_and_without(updates: list[str], tmp_path: Path) -> None:
    agents = agent_of(tmp_path), agent_of(tmp_path)
    with accelerate():
        saved = agent_of(tmp_path)
        train(saved, 2)
        saved.save(str(tmp_path / "agent.pt"))
        for agent in agents:
            torch.manual_seed(6)
            train(agent, 1)  # the step has moments of its own when others are loaded
            agent.load(str(tmp_path / "agent.pt"))
        torch.manual_seed(7)
        train(agents[0], 1)
    count = len(updates)
    torch.manual_seed(7)
    train(agents[1], 1)
    assert len(updates) == count
    assert_close_in_float64(results(agents[0]), results(agents[1]))


def test_everything_is_undone(tmp_path: Path) -> None:
    before = vars(amp.AMP)["update"]
    with accelerate(), accelerate() as second:
        assert not second.is_on  # the first one has done it
        assert vars(amp.AMP)["update"] is not before
        agent = agent_of(tmp_path)
        cfg, model = vars(agent.cfg).copy(), agent.discriminator
        train(agent, 1)
        assert vars(agent.cfg) == cfg
        assert agent.discriminator is model
        assert "track_data" not in vars(agent)
    assert vars(amp.AMP)["update"] is before
    plain = accelerate()
    plain.undo()
    plain.undo()
    assert vars(amp.AMP)["update"] is before


def test_an_agent_is_as_it_was_where_an_update_fails(tmp_path: Path) -> None:
    agent = agent_of(tmp_path)
    cfg, model = vars(agent.cfg).copy(), agent.discriminator

    def broken(*given: Any, **options: Any) -> Any:
        raise RuntimeError("no batch")

    agent.reply_buffer.add_samples = broken  # after the last update
    with accelerate(), pytest.raises(RuntimeError, match="no batch"):
        train(agent, 1)
    assert vars(agent.cfg) == cfg
    assert agent.discriminator is model
    assert "track_data" not in vars(agent)
    steps = {float(agent.optimizer.state[p]["step"]) for p in model.parameters()}
    assert steps == {UPDATES}


def test_an_agent_is_not_kept_alive(tmp_path: Path) -> None:
    with accelerate():
        agent = agent_of(tmp_path)
        train(agent, 1)
        alive = weakref.ref(agent)
        del agent
        gc.collect()
        assert alive() is None


def test_a_derived_agent_is_accelerated(updates: list[str], tmp_path: Path) -> None:
    class Named(amp.AMP):  # type: ignore[misc, name-defined]
        """Overrides nothing."""

    with accelerate():
        train(agent_of(tmp_path, Named), 1)
    assert len(updates) == UPDATES


def test_a_model_that_skrl_makes_is_accelerated(updates: list[str], tmp_path: Path) -> None:
    """By what its Runner does with a file of options."""
    network = [{"name": "net", "input": "OBSERVATIONS", "layers": [16, 8], "activations": "relu"}]
    model = instantiators.deterministic_model(
        observation_space=box(MOTION), action_space=box(1), device="cpu", network=network, output="ONE"
    )
    model.act({"observations": torch.zeros(1, MOTION)}, role="discriminator")  # makes its lazy layers
    with accelerate():
        train(agent_of(tmp_path, discriminator=model), 1)
    assert len(updates) == UPDATES
    assert updates[-1].startswith("the whole update of D as one native call"), updates[-1]


@pytest.mark.parametrize(
    ("options", "discriminator", "why"),
    [
        ({"grad_norm_clip": 0.5}, None, r"grad_norm_clip is 0\.5"),
        ({"mixed_precision": True}, None, "mixed_precision is on"),
        ({"discriminator_loss_scale": 0.0}, None, r"discriminator_loss_scale is 0\.0"),
        ({}, Deterministic(MOTION, nn.LayerNorm(16)), "a layer LayerNorm"),
    ],
)
def test_what_would_not_be_the_same_is_left_to_skrl_with_one_warning(
    updates: list[str],
    tmp_path: Path,
    options: dict[str, Any],
    discriminator: Any,
    why: str,
) -> None:
    with accelerate(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(agent_of(tmp_path, discriminator=discriminator, **options), 2)
    told = [str(warning.message) for warning in caught if "as ever" in str(warning.message)]
    assert len(told) == 1
    assert re.search(why, told[0])
    assert not updates


def test_another_version_runs_as_ever_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, updates: list[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(skrl, "__version__", "9.9.0")
    with pytest.warns(UserWarning, match=r"skrl 9\.9\.0 is not accelerated") as caught:
        acceleration = accelerate()
    assert len(caught) == 1
    assert not acceleration.is_on
    train(agent_of(tmp_path), 1)
    assert not updates
