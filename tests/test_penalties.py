"""The gradient penalties, WGAN-GP (Gulrajani et al. 2017) and R1 (Mescheder et al. 2018), and steps that use them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from conformance import ACTIVATIONS, assert_close_in_float64, assert_within_bound
from torch import Tensor, nn

import fastgan
from fastgan.functional import gradient_penalty, r1_penalty

Critic = Callable[[Tensor], Tensor]


def torch_gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, u: Tensor, center: float = 1.0) -> Tensor:
    """Algorithm 1 of Gulrajani et al. with the given interpolation weights, one a sample."""
    x = (u * real + (1 - u) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - center).pow(2).mean()


def torch_r1_penalty(critic: Critic, real: Tensor) -> Tensor:
    """Equation 9 of Mescheder et al. without gamma/2."""
    x = real.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient.flatten(1).pow(2).sum(1).mean()


def interpolation_weights(real: Tensor, seed: int) -> Tensor:
    """What gradient_penalty draws after manual_seed(seed)."""
    torch.manual_seed(seed)
    return torch.rand(real.shape[:1], dtype=real.dtype).view(-1, *[1] * (real.dim() - 1))


def plain(module: nn.Sequential) -> nn.Sequential:
    """A torch.nn.Sequential of copies of the same layers: none of it is fused."""
    return nn.Sequential(*copy.deepcopy(module))


def wgan_gp_step(critic: nn.Module, real: Tensor, fake: Tensor, u: Tensor | None) -> Tensor:
    """The critic's loss of WGAN-GP; u None stands for fastgan's own penalty."""
    if u is None:
        torch.manual_seed(3)
        penalty = gradient_penalty(critic, real, fake)
    else:
        penalty = torch_gradient_penalty(critic, real, fake, u)
    return critic(fake).mean() - critic(real).mean() + 10 * penalty


def r1_step(critic: nn.Module, real: Tensor, fake: Tensor, u: Tensor | None) -> Tensor:
    """The discriminator's loss with R1 at gamma 10; u None stands for fastgan's own functions."""
    if u is None:
        return fastgan.functional.discriminator_loss(critic(real), critic(fake)) + 5 * r1_penalty(critic, real)
    softplus = nn.functional.softplus
    return softplus(-critic(real)).mean() + softplus(critic(fake)).mean() + 5 * torch_r1_penalty(critic, real)


def loss_and_gradients(step: Callable[..., Tensor], critic: nn.Module, *data: Tensor | None) -> list[Tensor | None]:
    critic.zero_grad(set_to_none=True)
    loss = step(critic, *data)
    loss.backward()
    return [loss.detach(), *(p.grad for p in critic.parameters())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("step", [wgan_gp_step, r1_step])
def test_step_equals_torchs(backend: str, step, activation: str, dtype: torch.dtype) -> None:
    critic = fastgan.nn.MLP([5, 33, 17, 1], activation, dtype=dtype)
    real, fake = torch.randn(33, 5, dtype=dtype), torch.randn(33, 5, dtype=dtype)
    u = interpolation_weights(real, 3)
    ours = loss_and_gradients(step, critic, real, fake, None)
    torchs = loss_and_gradients(step, plain(critic), real, fake, u)
    exact = loss_and_gradients(step, plain(critic).double(), real.double(), fake.double(), u.double())
    assert all(g is not None for g in ours)
    if dtype == torch.float64:
        assert_close_in_float64(ours, torchs)
    else:
        assert_within_bound(ours, torchs, exact)


@pytest.mark.parametrize("output", ["tanh", "sigmoid", "softplus"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("penalty", ["gradient_penalty", "r1_penalty"])
def test_penalty_alone_equals_torchs(backend: str, penalty: str, bias: bool, output: str) -> None:
    """Alone, it does not reach the last bias of a critic without output activation; here every parameter counts."""
    critic = fastgan.nn.MLP([5, 9, 1], "silu", output, bias=bias, dtype=torch.double)
    real, fake = torch.randn(7, 5, dtype=torch.double), torch.randn(7, 5, dtype=torch.double)
    u = interpolation_weights(real, 3)

    def ours(critic: nn.Module) -> Tensor:
        torch.manual_seed(3)
        return gradient_penalty(critic, real, fake) if penalty == "gradient_penalty" else r1_penalty(critic, real)

    def torchs(critic: nn.Module) -> Tensor:
        if penalty == "gradient_penalty":
            return torch_gradient_penalty(critic, real, fake, u)
        return torch_r1_penalty(critic, real)

    results = [loss_and_gradients(ours, critic), loss_and_gradients(torchs, plain(critic))]
    assert_close_in_float64(*results)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_none_where_torchs_are(backend: str, activation: str) -> None:
    critic = fastgan.nn.MLP([5, 9, 1], activation, dtype=torch.double)
    real = torch.randn(7, 5, dtype=torch.double)
    ours = loss_and_gradients(lambda c: r1_penalty(c, real), critic)
    torchs = loss_and_gradients(lambda c: torch_r1_penalty(c, real), plain(critic))
    assert [g is None for g in ours] == [g is None for g in torchs]
    assert ours[-1] is None  # the output's bias moves every score alike
    assert_close_in_float64([g for g in ours if g is not None], [g for g in torchs if g is not None])


@pytest.mark.parametrize("center", [0.0, 0.5, 1.0, 3.0])
def test_linear_critic(backend: str, center: float) -> None:
    """The gradient of w.x is w everywhere."""
    weight = torch.randn(4, dtype=torch.double)
    real, fake = torch.randn(2, 6, 4, dtype=torch.double)
    norm = weight.norm()
    expected = (norm - center) ** 2
    assert_close_in_float64(gradient_penalty(lambda x: x @ weight, real, fake, center=center), expected)
    assert_close_in_float64(r1_penalty(lambda x: x @ weight, real), norm**2)


@pytest.mark.parametrize("center", [0.0, 1.0])
def test_one_interpolate_a_sample_on_the_segment(backend: str, center: float) -> None:
    """The gradient of |x|^2 / 2 is x itself, so that the penalty tells which x were taken."""
    real, fake = torch.randn(2, 64, 3, dtype=torch.double)
    torch.manual_seed(5)
    value = gradient_penalty(lambda x: x.square().sum(1) / 2, real, fake, center=center)
    x = fake + interpolation_weights(real, 5) * (real - fake)
    assert_close_in_float64(value, (x.norm(dim=1) - center).square().mean())

    seen: list[Tensor] = []
    gradient_penalty(lambda x: seen.append(x.detach()) or x.sum(1), real, fake)
    fractions = (seen[0] - fake) / (real - fake)
    # The same in every feature of a sample; the quotient magnifies rounding where real and fake are close.
    assert_close_in_float64(fractions, fractions[:, :1].expand_as(fractions), bound=1e-6)
    assert ((fractions > -1e-6) & (fractions < 1 + 1e-6)).all()
    assert fractions[:, 0].min() < 0.2
    assert fractions[:, 0].max() > 0.8


def test_r1_takes_real_data_itself(backend: str) -> None:
    real = torch.randn(8, 3, dtype=torch.double)
    value = r1_penalty(lambda x: x.square().sum(1) / 2, real)
    assert_close_in_float64(value, real.square().sum(1).mean())


@pytest.mark.parametrize("scores", [lambda x: x.sum(1), lambda x: x.sum(1, keepdim=True), lambda x: x])
def test_scores_of_any_shape(backend: str, scores: Critic) -> None:
    """All these sum to the same, and so have the gradient one in every feature."""
    real = torch.randn(5, 4)
    assert r1_penalty(scores, real).item() == 4.0
    assert gradient_penalty(scores, real, real + 1).item() == 1.0


def test_norms_are_per_sample(backend: str) -> None:
    """A permutation of the batch changes nothing, and a sample's gradient counts for that sample alone."""
    scale = torch.tensor([1.0, 2.0, 5.0], dtype=torch.double)

    def critic(x: Tensor) -> Tensor:
        return scale * x[:, 0]

    real = torch.randn(3, 4, dtype=torch.double)
    assert_close_in_float64(r1_penalty(critic, real), (scale**2).mean())
    assert_close_in_float64(gradient_penalty(critic, real, -real), ((scale - 1) ** 2).mean())


@pytest.mark.parametrize("shape", [(6, 1, 4, 4), (6, 3, 5), (6,)], ids=str)
def test_data_of_any_shape(backend: str, shape: tuple[int, ...]) -> None:
    real, fake = torch.randn(2, *shape, dtype=torch.double)
    features = max(1, real[0].numel())
    mlp = fastgan.nn.MLP([features, 7, 1], "tanh", dtype=torch.double)

    def critic(x: Tensor) -> Tensor:
        return mlp(x.reshape(len(x), -1))

    u = interpolation_weights(real, 2)
    torch.manual_seed(2)
    ours = [gradient_penalty(critic, real, fake), r1_penalty(critic, real)]
    flat_real, flat_fake, u = real.reshape(6, -1), fake.reshape(6, -1), u.reshape(6, 1)
    torchs = [torch_gradient_penalty(plain(mlp), flat_real, flat_fake, u), torch_r1_penalty(plain(mlp), flat_real)]
    assert_close_in_float64(ours, torchs)


def test_critic_of_other_layers(backend: str) -> None:
    """Convolutions and custom activations between fused layers."""
    critic = fastgan.nn.fuse(
        nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(12, 8),
            nn.Mish(),
            nn.LayerNorm(8),
            nn.Linear(8, 1),
        ).double()
    )
    real, fake = torch.randn(2, 5, 1, 4, 4, dtype=torch.double)
    u = interpolation_weights(real, 3)
    results = [
        loss_and_gradients(wgan_gp_step, critic, real, fake, None),
        loss_and_gradients(wgan_gp_step, plain(critic), real, fake, u),
    ]
    assert_close_in_float64(*results)


@pytest.mark.parametrize("center", [0.0, 1.0])
def test_gradient_norm_of_zero_is_no_nan(backend: str, center: float) -> None:
    """As torch's norm, whose subgradient at zero is zero."""
    critic = fastgan.nn.MLP([3, 4, 1], "relu")
    with torch.no_grad():
        critic[0].bias.fill_(-100.0)  # every unit is off, so the score does not depend on x
    real, fake = torch.randn(2, 6, 3)
    value = gradient_penalty(critic, real, fake, center=center)
    assert value.item() == center**2
    value.backward()
    gradients = [p.grad for p in critic.parameters() if p.grad is not None]
    assert gradients
    assert all((g == 0).all() for g in gradients)
    assert r1_penalty(critic, real).item() == 0.0


@pytest.mark.parametrize("shape", [(0, 4), (0, 1, 2, 2)], ids=str)
def test_empty_batch_has_no_mean(backend: str, shape: tuple[int, ...]) -> None:
    real = torch.empty(shape)
    for value in (gradient_penalty(lambda x: x.flatten(1).sum(1), real, real), r1_penalty(lambda x: x, real)):
        assert value.shape == ()
        assert value.isnan()


def test_no_grad_outside_and_inputs_untouched(backend: str) -> None:
    """The penalty's value is right inside no_grad, and neither real nor fake come back requiring a gradient."""
    critic = fastgan.nn.MLP([3, 4, 1], "tanh", dtype=torch.double)
    real, fake = torch.randn(2, 6, 3, dtype=torch.double)
    copies = real.clone(), fake.clone()
    expected = r1_penalty(critic, real)
    with torch.no_grad():
        assert_close_in_float64(r1_penalty(critic, real), expected.detach())
        gradient_penalty(critic, real, fake)
    assert not real.requires_grad
    assert not fake.requires_grad
    assert torch.equal(real, copies[0])
    assert torch.equal(fake, copies[1])


def test_nothing_flows_back_to_the_generator(backend: str) -> None:
    critic = fastgan.nn.MLP([3, 4, 1], "tanh")
    latent = torch.randn(6, 3, requires_grad=True)
    (gradient_penalty(critic, torch.randn(6, 3), 2 * latent) + r1_penalty(critic, 2 * latent)).backward()
    assert latent.grad is None
    assert critic[0].weight.grad is not None


R = torch.ones(2, 3)
BAD = [
    (lambda: gradient_penalty(torch.sum, R, torch.ones(3, 3)), ValueError, r"fake of shape \(3, 3\) must .* \(2, 3\)"),
    (lambda: gradient_penalty(torch.sum, R, R.double()), RuntimeError, "fake must have the same dtype as real.*64"),
    (lambda: gradient_penalty(torch.sum, R, R.to("meta")), RuntimeError, "fake must be on the same device as real"),
    (lambda: gradient_penalty(torch.sum, R.long(), R), RuntimeError, "real must have a floating-point dtype.*int64"),
    (lambda: gradient_penalty(torch.sum, R, R.int()), RuntimeError, "fake must have a floating-point dtype.*int32"),
    (lambda: gradient_penalty(torch.sum, R, [1.0]), TypeError, "fake must be a Tensor, not list"),
    (lambda: gradient_penalty(torch.sum, R, R, center=-0.5), ValueError, "center must be .*at least 0, not -0.5"),
    (lambda: gradient_penalty(torch.sum, R, R, center="1"), TypeError, "center must be a number, not str '1'"),
    (lambda: gradient_penalty(torch.sum, R[0, 0], R[0, 0]), ValueError, r"real must have shape \(batch, ...\)"),
    (lambda: r1_penalty(torch.sum, R[0, 0]), ValueError, r"real must have shape \(batch, ...\), not \(\)"),
    (lambda: r1_penalty(torch.sum, R.bool()), RuntimeError, "real must have a floating-point dtype.*bool"),
    (lambda: r1_penalty(torch.sum, None), TypeError, "real must be a Tensor, not NoneType"),
    (lambda: r1_penalty(lambda x: torch.ones(2), R), RuntimeError, "critic must give scores that depend on its input"),
    (
        lambda: gradient_penalty(lambda x: torch.ones(2, requires_grad=True), R, R),
        RuntimeError,
        "critic must give scores that depend on its input",
    ),
    (lambda: r1_penalty(lambda x: x.detach(), R), RuntimeError, "critic must give scores that depend on its input"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_arguments(backend: str, call: Callable[[], Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
