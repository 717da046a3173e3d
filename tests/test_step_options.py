"""TrainStep's contract beside the values: what it touches, draws, refuses and says."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import pytest
import torch
from conformance import assert_close_in_float64, here
from plain_step import BATCH, DATA, LATENT, Plain, adam, inputs, networks, state_of, twin
from torch import Tensor, nn
from torch.optim import SGD

from fastgan import StepStats, TrainStep, reference
from fastgan.step import average_of
from fastgan.step_options import StepOptions, names_of


def trainer_of(**options: Any) -> TrainStep:
    return twin(TrainStep, *networks(options.get("num_classes", 0), pac=options.get("pac", 1)), adam, **options)


def snapshot(trainer: TrainStep) -> list[Tensor]:
    return [t.clone() for t in (*state_of(trainer), torch.get_rng_state())]


@pytest.mark.parametrize("options", [{}, {"d_steps": 2, "reuse_fake": True, "r1_gamma": 1.0}], ids=str)
def test_statistics_are_detached_scalars(backend: str, options: dict[str, Any]) -> None:
    stats = trainer_of(**options).step(*inputs(options))
    assert isinstance(stats, StepStats)
    for value in stats:
        assert value.shape == ()
        assert value.dtype == torch.float64
        assert not value.requires_grad
        assert value.grad_fn is None
    assert 0 < stats.real_score < 1
    assert 0 < stats.fake_score < 1


class NoHostReads(torch.utils._python_dispatch.TorchDispatchMode):
    """Refuses what makes the host wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"d_steps": 2, "reuse_fake": True, "r1_gamma": 1.0, "ema_decay": 0.9},
        {"loss": "relativistic", "r1_gamma": 1.0, "r2_gamma": 1.0, "gp_weight": 1.0, "clip_grad_norm": 0.1},
        {"loss": "hinge", "instance_noise": 0.5, "instance_noise_steps": 9, "pac": 2},
    ],
    ids=str,
)
def test_nothing_is_read_by_the_host(backend: str, options: dict[str, Any]) -> None:
    pair = networks(pac=options.get("pac", 1))
    trainer = twin(TrainStep, *pair, functools.partial(SGD, lr=0.1), **options)  # Adam counts on the host
    given = inputs(options)
    with NoHostReads():
        stats = trainer.step(*given)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            stats.d_loss.item()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reuse_fake": True},
        {"r1_gamma": 1.0, "r1_every": 1},
        {"loss": "relativistic", "r1_gamma": 1.0, "r2_gamma": 1.0, "gp_weight": 1.0, "r1_every": 1},
    ],
    ids=str,
)
def test_each_update_leaves_the_other_network_alone(backend: str, options: dict[str, Any]) -> None:
    """Seen from hooks around both optimizers: parameters and .grad of the other network are untouched."""
    trainer = trainer_of(**options)
    g, d = (list(n.parameters()) for n in (trainer.generator, trainer.discriminator))
    for p in g:
        p.grad = torch.full_like(p, 7.0)  # what a user left there
    order: list[str] = []
    first_g = [p.detach().clone() for p in g]
    after_d: list[Tensor] = []

    def before_d(*_: Any) -> None:
        order.append("D")
        assert all((p.grad == 7.0).all() for p in g)
        assert all(p.grad is not None for p in d)

    def behind_d(*_: Any) -> None:
        after_d.extend(t.detach().clone() for p in d for t in (p, p.grad))
        assert all(map(torch.equal, first_g, g))

    def behind_g(*_: Any) -> None:
        order.append("G")
        assert all(map(torch.equal, after_d, [t for p in d for t in (p, p.grad)]))
        assert not torch.equal(first_g[0], g[0])

    trainer.d_optimizer.register_step_pre_hook(before_d)
    trainer.d_optimizer.register_step_post_hook(behind_d)
    trainer.g_optimizer.register_step_post_hook(behind_g)
    trainer.step(*inputs(options))
    assert order == ["D", "G"]


def test_frozen_and_unlisted_parameters_stay(backend: str) -> None:
    generator, discriminator = networks()
    generator[0].weight.requires_grad_(False)
    before = generator[0].weight.clone(), discriminator[0].bias.clone()
    listed = [p for p in discriminator.parameters() if p is not discriminator[0].bias]
    trainer = TrainStep(generator, discriminator, adam(generator.parameters()), adam(listed))
    for _ in range(3):
        trainer.step(*inputs({}))
    assert torch.equal(before[0], generator[0].weight)
    assert torch.equal(before[1], discriminator[0].bias)
    assert generator[0].weight.grad is None
    assert discriminator[0].bias.grad is None


@pytest.mark.parametrize(
    "options", [{}, {"d_steps": 3}, {"d_steps": 2, "reuse_fake": True}, {"num_classes": 3}], ids=str
)
def test_drawn_noise(backend: str, options: dict[str, Any]) -> None:
    """It repeats by seed, is fresh at each step, and is one normal draw of the documented shape."""
    real, labels, noise = inputs(options)
    results = []
    for given in (None, None, noise.shape):
        trainer = trainer_of(**options)
        with torch.no_grad():
            for p in (*trainer.generator.parameters(), *trainer.discriminator.parameters()):
                p.fill_(0.1)
        torch.manual_seed(11)
        for _ in range(2):
            trainer.step(real, labels, noise=None if given is None else torch.randn(given, dtype=real.dtype))
        results.append(state_of(trainer))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_the_random_state_moves_only_when_noise_is_drawn(backend: str) -> None:
    trainer, (real, _, noise) = trainer_of(), inputs({})
    get_state = torch.cuda.get_rng_state if real.is_cuda else torch.get_rng_state
    state = get_state()
    trainer.step(real, noise=noise)
    assert torch.equal(state, get_state())
    trainer.step(real)
    assert not torch.equal(state, get_state())


def test_drawing_noise_leaves_a_spectral_norm_as_it_is(backend: str) -> None:
    """Reading a parametrized weight computes it, and in training its iteration goes on."""
    pair = networks()
    nn.utils.parametrizations.spectral_norm(pair[0][0])
    steps = [twin(TrainStep, *pair, adam) for _ in range(2)]
    real, _, noise = inputs({})
    torch.manual_seed(5)
    steps[0].step(real)
    torch.manual_seed(5)
    steps[1].step(real, noise=torch.randn_like(noise))
    vectors = [step.generator[0].parametrizations.weight[0]._u for step in steps]
    assert torch.equal(*vectors)


class NoLinear(nn.Module):
    """A generator whose latent width cannot be read off."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(LATENT, DATA, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return z @ self.table


def test_generator_without_linear_needs_noise(backend: str) -> None:
    pair = NoLinear(), networks()[1]
    ours, plain = (twin(kind, *pair, adam) for kind in (TrainStep, Plain))
    real, _, noise = inputs({})
    before = snapshot(ours)
    with pytest.raises(ValueError, match=r"no nn.Linear\): pass noise"):
        ours.step(real)
    assert all(map(torch.equal, before, snapshot(ours)))
    assert_close_in_float64(tuple(ours.step(real, noise=noise)), plain.step(real, None, noise))


def test_average_starts_as_a_frozen_copy_and_follows(backend: str) -> None:
    generator, _ = networks()
    average = average_of(generator)
    assert type(average) is type(generator)
    assert not any(p.requires_grad for p in average.parameters())
    assert all(map(torch.equal, average.parameters(), generator.parameters()))
    trainer = trainer_of(ema_decay=0.0)  # without memory it is the generator itself
    for _ in range(2):
        trainer.step(*inputs({}))
    assert_close_in_float64(trainer.ema.state_dict(), trainer.generator.state_dict(), bound=1e-14)


@pytest.mark.parametrize(("gammas", "times"), [((1.0, 0.0), 1), ((0.0, 1.0), 1), ((1.0, 1.0), 2)])
def test_lazy_penalties_count_steps(backend: str, gammas: tuple[float, float], times: int) -> None:
    """R1 and R2 are paid in steps 0, 3, 6, ...: only there is D given data that it is differentiated by."""
    trainer = trainer_of(r1_gamma=gammas[0], r2_gamma=gammas[1], r1_every=3)
    calls: list[int] = []

    def look(module: nn.Module, given: tuple[Tensor]) -> None:
        if given[0].is_leaf and given[0].requires_grad:
            calls.append(trainer.steps_done)

    trainer.discriminator.register_forward_pre_hook(look)
    for _ in range(7):
        trainer.step(*inputs({}))
    assert calls == sorted([0, 3, 6] * times)
    assert trainer.steps_done == 7


def test_plan_says_what_runs(compiled: None) -> None:
    fused = trainer_of().plan
    assert "\n" not in fused
    assert "one batch" in fused
    assert "fp32" in fused
    generator, discriminator = networks()
    mixed = nn.Sequential(*discriminator, nn.Flatten())
    plan = TrainStep(generator, mixed, adam(generator.parameters()), adam(mixed.parameters()), precision="bf16").plan
    assert "two batches" in plan
    assert "D is not one fused MLP" in plan
    assert "bf16" in plan


G, D = networks()
GO, DO = adam(G.parameters()), adam(D.parameters())
NOT_A_COPY = "ema must be a copy of the generator"
BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"generator": 1}, TypeError, "generator must be a torch.nn.Module, not int"),
    ({"discriminator": torch.sum}, TypeError, "discriminator must be a torch.nn.Module, not"),
    ({"g_optimizer": None}, TypeError, "g_optimizer must be a torch.optim.Optimizer, not NoneType"),
    ({"d_optimizer": "adam"}, TypeError, "d_optimizer must be a torch.optim.Optimizer, not str"),
    ({"g_optimizer": DO}, ValueError, r"g_optimizer must not hold the discriminator's parameters.*0\.weight"),
    ({"d_optimizer": GO}, ValueError, r"d_optimizer must not hold the generator's parameters.*0\.weight"),
    ({"loss": "wgan"}, ValueError, "loss must be one of non_saturating, minimax, relativistic, .* not 'wgan'"),
    ({"loss": ["hinge"]}, ValueError, "loss must be one of non_saturating, .* not .'hinge'."),
    ({"real_target": 1.1}, ValueError, r"real_target must be in \[0, 1\], not 1.1"),
    ({"fake_target": -0.1}, ValueError, r"fake_target must be in \[0, 1\], not -0.1"),
    ({"fake_target": float("nan")}, ValueError, r"fake_target must be in \[0, 1\], not nan"),
    ({"real_target": "1"}, TypeError, "real_target must be a number, not str '1'"),
    ({"d_steps": 0}, ValueError, "d_steps must be at least 1, not 0"),
    ({"d_steps": 1.0}, TypeError, "d_steps must be an integer, not float 1.0"),
    ({"r1_gamma": -1.0}, ValueError, "r1_gamma must be .*at least 0, not -1.0"),
    ({"r1_gamma": float("inf")}, ValueError, "r1_gamma must be .*at least 0, not inf"),
    ({"r2_gamma": -1.0}, ValueError, "r2_gamma must be .*at least 0, not -1.0"),
    ({"r2_gamma": "1"}, TypeError, "r2_gamma must be a number, not str '1'"),
    ({"gp_weight": -10}, ValueError, "gp_weight must be .*at least 0, not -10"),
    ({"gp_weight": float("nan")}, ValueError, "gp_weight must be .*at least 0, not nan"),
    ({"gp_center": -1.0}, ValueError, "gp_center must be .*at least 0, not -1.0"),
    ({"pac": 0}, ValueError, "pac must be at least 1, not 0"),
    ({"pac": 2.0}, TypeError, "pac must be an integer, not float 2.0"),
    ({"clip_grad_norm": 0.0}, ValueError, "clip_grad_norm must be finite and greater than 0, not 0.0"),
    ({"clip_grad_norm": float("inf")}, ValueError, "clip_grad_norm must be finite and greater than 0, not inf"),
    ({"clip_grad_norm": True}, TypeError, "clip_grad_norm must be a number, not bool True"),
    ({"instance_noise": -0.1}, ValueError, "instance_noise must be .*at least 0, not -0.1"),
    ({"instance_noise_steps": -1}, ValueError, "instance_noise_steps must be at least 0, not -1"),
    ({"instance_noise_steps": 1e3}, TypeError, "instance_noise_steps must be an integer, not float 1000.0"),
    ({"r1_every": 0}, ValueError, "r1_every must be at least 1, not 0"),
    ({"num_classes": -1}, ValueError, "num_classes must be at least 0, not -1"),
    ({"num_classes": True}, TypeError, "num_classes must be an integer, not bool True"),
    ({"ema_decay": 1.0}, ValueError, r"ema_decay must be in \[0, 1\), not 1"),
    ({"ema_decay": -0.5}, ValueError, "ema_decay must be in .*not -0.5"),
    ({"precision": "fp16"}, ValueError, "precision must be one of fp32, bf16, not 'fp16'"),
    ({"ema": 3}, TypeError, "ema must be a torch.nn.Module, not int"),
    ({"ema": G}, ValueError, f"{NOT_A_COPY}, not the generator itself"),
    ({"ema": D}, ValueError, NOT_A_COPY),
    ({"ema": G[:1]}, ValueError, f"{NOT_A_COPY}, but it lacks 2.weight"),
    ({"ema": copy.deepcopy(G).float()}, ValueError, f"{NOT_A_COPY}, but its 0.weight has dtype torch.float32"),
    ({"ema": copy.deepcopy(G).to("meta")}, ValueError, f"{NOT_A_COPY}, but its 0.weight has device meta"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"generator": G, "discriminator": D, "g_optimizer": GO, "d_optimizer": DO, **options}
    with pytest.raises(error, match=message):
        TrainStep(**arguments)


@pytest.mark.parametrize("engine", [True, False], ids=["engine", "composed"])
@pytest.mark.parametrize(
    ("options", "error", "message"), [case for case in BAD_OPTIONS if case[0].keys() <= set(names_of(StepOptions))]
)
def test_bad_options_set_between_steps(
    backend: str, options: dict[str, Any], error: type[Exception], message: str, engine: bool
) -> None:
    """An attribute takes any value; the next step refuses it, and changes nothing."""
    trainer, given = trainer_of(engine=engine), inputs({})
    trainer.step(*given)
    ((name, value),) = options.items()
    right = getattr(trainer, name)
    setattr(trainer, name, value)
    before = snapshot(trainer)
    assert trainer.plan.startswith("composed")
    with pytest.raises(error, match=message):
        trainer.step(*given)
    assert all(map(torch.equal, before, snapshot(trainer)))
    setattr(trainer, name, right)
    trainer.step(*given)
    assert trainer.plan.startswith("composed") != (engine and backend != "reference")


@pytest.mark.parametrize("loss", reference.GAN_LOSSES)
def test_the_targets_of_each_loss(loss: str) -> None:
    """Cross-entropy has probabilities, least squares any finite number, and the others have none."""
    wrong: dict[str, tuple[float, ...]] = {"bce": (1.1, -0.1, math.nan), "least_squares": (math.inf, math.nan)}
    right: dict[str, tuple[float, ...]] = {"bce": (0.0, 0.9, 1), "least_squares": (-1.0, 0.9, 50)}
    kind = reference.GAN_LOSSES[loss].discriminator
    for name, default in (("real_target", 1.0), ("fake_target", 0.0)):
        for value in (default, *right.get(kind, ())):
            assert getattr(trainer_of(loss=loss, **{name: value}), name) == value
        for value in wrong.get(kind, (0.9, -1.0, math.nan)):
            with pytest.raises(ValueError, match=f"{name} must be .*, not {value}"):
                trainer_of(loss=loss, **{name: value})
        with pytest.raises(TypeError, match=f"{name} must be a number, not str '1'"):
            trainer_of(loss=loss, **{name: "1"})


X, Z, L = torch.zeros(BATCH, DATA).double(), torch.zeros(2, BATCH, LATENT).double(), torch.zeros(BATCH).long()
Options, Bad = dict[str, Any], tuple[Any, ...]
BAD_INPUTS: list[tuple[Options, Bad, type[Exception], str]] = [
    ({}, (None,), TypeError, "real must be a Tensor, not NoneType"),
    ({}, (X.long(),), RuntimeError, "real must have a floating-point dtype, not torch.int64"),
    ({}, (X[0],), ValueError, r"real must have shape \(batch, data\) or \(1, batch, data\).*not \(4,\)"),
    ({}, (X.expand(2, -1, -1),), ValueError, r"real must have shape .*\(1, batch, data\).*not \(2, 6, 4\)"),
    ({"d_steps": 3}, (X.expand(2, -1, -1),), ValueError, r"\(3, batch, data\), one batch a D step, not \(2, 6, 4\)"),
    ({}, (X[:0],), ValueError, "real must hold at least one sample"),
    ({"pac": 3}, (X[:5],), ValueError, "real must have a batch that is a multiple of pac=3, not 5"),
    ({"pac": 3}, (X[:, :3],), RuntimeError, "must have 9 columns.*3 samples packed together|cannot be multiplied"),
    ({}, (X, None, Z.long()), RuntimeError, "noise must have a floating-point dtype"),
    ({}, (X, None, Z[0]), ValueError, r"noise must have shape \(2, 6, latent\), not \(6, 3\)"),
    ({}, (X, None, Z[:1]), ValueError, r"noise must have shape \(2, 6, latent\), not \(1, 6, 3\)"),
    ({}, (X, None, Z[:, :5]), ValueError, r"noise must have shape \(2, 6, latent\), not \(2, 5, 3\)"),
    ({"reuse_fake": True}, (X, None, Z), ValueError, r"noise must have shape \(1, 6, latent\), not \(2, 6, 3\)"),
    ({}, (X, None, Z.to("meta")), RuntimeError, "noise must be on the same device as real.*meta"),
    ({}, (X, None, Z[..., :2]), RuntimeError, "must have 2 columns|cannot be multiplied"),
    ({}, (X[:, :3], None, Z), RuntimeError, "must have 3 columns|cannot be multiplied|Sizes of tensors must match"),
    ({}, (X, L), ValueError, "labels were given, but num_classes is 0"),
    ({"num_classes": 3}, (X,), ValueError, "labels are needed.*num_classes=3"),
    ({"num_classes": 3}, (X, [0] * 6), TypeError, "labels must be a Tensor, not list"),
    ({"num_classes": 3}, (X, L.double()), TypeError, "labels must be integers, not torch.float64"),
    ({"num_classes": 3}, (X, L.bool()), TypeError, "labels must be integers, not torch.bool"),
    ({"num_classes": 3}, (X, L[:5]), ValueError, r"labels must have shape \(6,\) or \(1, 6\), not \(5,\)"),
    ({"num_classes": 3}, (X, L.to("meta")), RuntimeError, "labels must be on the same device as real"),
    ({"num_classes": 3}, (X, L + 3), ValueError, r"labels must be in \[0, 3\), but they span \[3, 3\]"),
    ({"num_classes": 3}, (X, L - 1), ValueError, r"labels must be in \[0, 3\), but they span \[-1, -1\]"),
]


@pytest.mark.parametrize(("options", "given", "error", "message"), BAD_INPUTS)
def test_bad_input_changes_nothing(
    backend: str, options: Options, given: Bad, error: type[Exception], message: str
) -> None:
    if backend == "cuda" and "they span" in message:
        pytest.skip("labels on a GPU are looked at there: test_gpu_step.py")
    trainer = trainer_of(**options)
    trainer.step(*inputs(options))  # so that there is optimizer state
    before = snapshot(trainer)
    with pytest.raises(error, match=message):
        trainer.step(*here(given))
    assert all(map(torch.equal, before, snapshot(trainer)))
    assert trainer.steps_done == 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_labels_of_any_integer_dtype(backend: str, dtype: torch.dtype) -> None:
    pair = networks(3)
    real, labels, noise = inputs({"num_classes": 3})
    ours, plain = (twin(kind, *pair, adam, num_classes=3) for kind in (TrainStep, Plain))
    assert_close_in_float64(tuple(ours.step(real, labels.to(dtype), noise)), plain.step(real, labels, noise))
