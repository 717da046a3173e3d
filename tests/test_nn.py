"""`fastgan.nn`'s own modules: `MLP` is the nn.Sequential that it says it is, and the losses check their arguments."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle

import pytest
import torch
import torch.distributed as dist
from conformance import (
    ACTIVATION_MODULES,
    ACTIVATIONS,
    as_double,
    assert_close_in_float64,
    assert_within_bound,
    in_double,
    leaves,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fastgan import functional, reference
from fastgan.nn import MLP, DiscriminatorLoss, FusedSequential, GeneratorLoss

pytestmark = pytest.mark.usefixtures("backend")

SIZES = [4, 6, 5, 3]


def plain(
    activation: str = "leaky_relu", output_activation: str | None = None, bias: bool = True, **factory: object
) -> nn.Sequential:
    """What `MLP(SIZES, ...)` says it is, written out."""
    modules: list[nn.Module] = []
    for i in range(3):
        modules.append(nn.Linear(SIZES[i], SIZES[i + 1], bias=bias, **factory))
        name = activation if i < 2 else output_activation
        if name is not None:
            modules.append(ACTIVATION_MODULES[name]())
    return nn.Sequential(*modules)


def pair(*arguments: str, **keywords: object) -> tuple[MLP, nn.Sequential]:
    """An MLP and the equal nn.Sequential, each built from the same seed."""
    torch.manual_seed(1)
    ours = MLP(SIZES, *arguments, **keywords)
    torch.manual_seed(1)
    return ours, plain(*arguments, **keywords)


def assert_same_training(ours: nn.Module, torchs: nn.Module, input: torch.Tensor) -> None:
    """Outputs, input gradients and parameter gradients as exact as torch's."""
    results = []
    for module, given in ((ours, input), (torchs, input), (in_double(torchs), input.double())):
        at = given.clone().requires_grad_()
        output = module(at)
        wanted = [at, *(p for p in module.parameters() if p.requires_grad)]
        gradients = torch.autograd.grad(output.square().sum(), wanted)
        results.append([output, *gradients])
    assert_within_bound(*results)


def assert_same_output(ours: nn.Module, torchs: nn.Module, input: torch.Tensor) -> None:
    assert_within_bound(ours(input), torchs(input), in_double(torchs)(input.double()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("output_activation", [None, "tanh", "identity"])
@pytest.mark.parametrize("bias", [True, False])
def test_mlp_is_the_equal_sequential(activation, output_activation, bias) -> None:
    ours, torchs = pair(activation, output_activation, bias=bias)
    assert isinstance(ours, nn.Sequential)
    assert repr(ours) == repr(torchs).replace("Sequential(", "MLP(", 1)
    assert [type(m) for m in ours] == [type(m) for m in torchs]
    assert list(ours.state_dict()) == list(torchs.state_dict())
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert torch.equal(a, b)
    assert_same_training(ours, torchs, torch.randn(7, 4))


@pytest.mark.parametrize("output_activation", [None, "sigmoid"])
def test_state_dicts_load_both_ways(output_activation) -> None:
    ours, torchs = MLP(SIZES, "relu", output_activation), plain("relu", output_activation)
    input = torch.randn(5, 4)
    assert not torch.allclose(ours(input), torchs(input))
    for source, receiver in ((ours, plain("relu", output_activation)), (torchs, ours)):
        receiver.load_state_dict(source.state_dict(), strict=True)
        torchs = next(module for module in (source, receiver) if type(module) is nn.Sequential)
        assert_same_output(next(module for module in (source, receiver) if module is not torchs), torchs, input)
    with pytest.raises(RuntimeError, match=r"size mismatch for 2\.weight"):
        ours.load_state_dict(MLP([4, 6, 6, 3], "relu").state_dict())


def test_defaults_are_those_of_the_contract() -> None:
    ours, torchs = pair()
    assert repr(list(ours)) == repr(list(torchs))  # leaky_relu of slope 0.2, no output activation, biases
    slopes = [m.negative_slope for m in MLP(SIZES, negative_slope=0.05) if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.05, 0.05]


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (([4],), {}, ValueError, r"sizes must give at least .* not \[4\]"),
        (([],), {}, ValueError, r"sizes must give at least .* not \[\]"),
        (([4, 0, 1],), {}, ValueError, r"sizes\[1\] must be at least 1, not 0"),
        (([4, 3, -2],), {}, ValueError, r"sizes\[2\] must be at least 1, not -2"),
        (([4.0, 3],), {}, TypeError, r"sizes\[0\] must be an integer, not float 4.0"),
        (([4, True],), {}, TypeError, r"sizes\[1\] must be an integer, not bool True"),
        (([4, "3"],), {}, TypeError, r"sizes\[1\] must be an integer, not str '3'"),
        ((4,), {}, TypeError, "not iterable"),
        ((SIZES, "swish"), {}, ValueError, "activation must be one of identity, relu, .* not 'swish'"),
        ((SIZES, None), {}, ValueError, "activation must be one of identity, relu, .* not None"),
        ((SIZES, nn.ReLU), {}, ValueError, "activation must be one of identity, relu, .* not <class"),
        ((SIZES, "relu", "softmax"), {}, ValueError, "output_activation must be one of .* not 'softmax'"),
        ((SIZES,), {"negative_slope": "0.2"}, TypeError, "negative_slope must be a number, not str"),
        ((SIZES,), {"negative_slope": float("nan")}, ValueError, "negative_slope must be finite, not nan"),
        ((SIZES,), {"dtype": torch.int64}, RuntimeError, "floating point"),
        ((SIZES,), {"device": "nowhere"}, RuntimeError, "nowhere"),
    ],
)
def test_mlp_refuses(arguments, keywords, error, message) -> None:
    with pytest.raises(error, match=message):
        MLP(*arguments, **keywords)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: DiscriminatorLoss(real_target=1.5), ValueError, r"real_target must be in \[0, 1\], not 1.5"),
        (lambda: DiscriminatorLoss(fake_target=-0.1), ValueError, r"fake_target must be in \[0, 1\], not -0.1"),
        (lambda: DiscriminatorLoss(real_target=None), TypeError, "real_target must be a number, not NoneType"),
        (lambda: DiscriminatorLoss(reduction="all"), ValueError, "reduction must be one of none, mean, sum"),
        (lambda: GeneratorLoss("wgan"), ValueError, "kind must be one of non_saturating, .*, not 'wgan'"),
        (lambda: GeneratorLoss("hinge", 0.9), ValueError, "target must be 1.0, its default, for kind 'hinge'"),
        (lambda: DiscriminatorLoss(kind="minimax"), ValueError, "kind must be one of bce, relativistic, .*'minimax'"),
        (lambda: DiscriminatorLoss(0.9, kind="wasserstein"), ValueError, "real_target must be 1.0, its default"),
        (lambda: DiscriminatorLoss(math.inf, kind="least_squares"), ValueError, "real_target must be finite, not inf"),
        (lambda: GeneratorLoss(target=2), ValueError, r"target must be in \[0, 1\], not 2"),
        (lambda: GeneratorLoss(target=True), TypeError, "target must be a number, not bool True"),
        (lambda: GeneratorLoss(reduction="all"), ValueError, "reduction must be one of none, mean, sum"),
    ],
)
def test_losses_refuse(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_losses_are_the_functions(reduction) -> None:
    real, fake = torch.randn(5, 1), torch.randn(3, 1)
    module = DiscriminatorLoss(0.9, 0.1, reduction)
    softplus = nn.functional.softplus
    reduce = {"none": lambda x: x, "mean": torch.mean, "sum": torch.sum}[reduction]

    def discriminators(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        halves = 0.9 * softplus(-real) + 0.1 * softplus(real), 0.1 * softplus(-fake) + 0.9 * softplus(fake)
        return halves if reduction == "none" else reduce(halves[0]) + reduce(halves[1])

    def generators(fake: torch.Tensor) -> torch.Tensor:
        return -reduce(0.2 * softplus(-fake) + 0.8 * softplus(fake))

    wide = real.double(), fake.double()
    assert_within_bound(module(real, fake), discriminators(real, fake), discriminators(*wide))
    saturating = GeneratorLoss("minimax", 0.8, reduction)
    assert_within_bound(saturating(fake), generators(fake), generators(wide[1]))
    for twin in (copy.deepcopy(saturating), pickle.loads(pickle.dumps(saturating))):
        assert repr(twin) == f"GeneratorLoss(kind='minimax', target=0.8, reduction='{reduction}')"
        assert torch.equal(twin(fake), saturating(fake))
    assert repr(module) == f"DiscriminatorLoss(real_target=0.9, fake_target=0.1, reduction='{reduction}', kind='bce')"
    assert len(module.state_dict()) == 0
    before = pickle.loads(pickle.dumps(module))
    del before.kind  # what was pickled before losses had kinds
    assert_within_bound(before(real, fake), module(real, fake), module(*wide))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("kind", reference.GAN_LOSSES)
def test_losses_of_every_kind_are_the_functions(kind, reduction) -> None:
    real, fake = torch.randn(5, 1), torch.randn(5, 1)
    d_kind, is_paired = reference.GAN_LOSSES[kind].discriminator, reference.GAN_LOSSES[kind].is_paired
    d_loss, g_loss = DiscriminatorLoss(reduction=reduction, kind=d_kind), GeneratorLoss(kind, reduction=reduction)
    expected = functional.discriminator_loss(real, fake, kind=d_kind, reduction=reduction)
    for a, b in zip(leaves([d_loss(real, fake)]), leaves([expected]), strict=True):
        assert torch.equal(a, b)
    given = (fake, real) if is_paired else (fake,)
    assert torch.equal(g_loss(*given), functional.generator_loss(*given, kind=kind, reduction=reduction))


@pytest.mark.parametrize(
    ("cut", "width"),
    [(slice(None, 2), 4), (slice(2, None), 6), (slice(1, 4), 6), (slice(None, None, 2), None), (slice(0, 0), 4)],
)
def test_a_slice_shares_the_modules(cut, width) -> None:
    ours, torchs = pair("tanh")
    part = ours[cut]
    assert type(part) is FusedSequential
    assert all(a is b for a, b in zip(part, list(ours)[cut], strict=True))
    assert [type(m) for m in part] == [type(m) for m in torchs[cut]]
    if width is not None:
        input = torch.randn(3, width)
        assert_same_output(part, torchs[cut], input)


def test_modules_are_edited_as_in_a_sequential() -> None:
    ours, torchs = pair("relu", "tanh")
    input = torch.randn(3, 4)
    assert ours[-1] is list(ours)[-1]
    with pytest.raises(IndexError):
        ours[6]
    torch.manual_seed(2)
    last, swapped = nn.Linear(3, 2), nn.Linear(6, 5, bias=False)
    for module in (ours, torchs):
        module.append(last)
        module.insert(1, nn.BatchNorm1d(6))
        module[3] = swapped
        del module[2]
    assert [type(m) for m in ours] == [type(m) for m in torchs]
    assert_same_output(ours, torchs, input)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert ours.pop(-1) is last
    torchs.pop(-1)
    ours.extend([nn.Sigmoid()])
    torchs.extend([nn.Sigmoid()])
    assert_same_output(ours, torchs, input)


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "save": saved_and_loaded}


@pytest.mark.parametrize("copier", COPIES)
@pytest.mark.parametrize("build", [MLP, lambda sizes: MLP(sizes)[:4]], ids=["MLP", "slice"])
def test_copies_are_whole(copier, build) -> None:
    module = build(SIZES).train(False)
    module[0].weight.requires_grad_(False)
    twin = COPIES[copier](module)
    assert type(twin) is type(module)
    assert not twin.training
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in module.parameters()]
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in module.parameters()}
    assert_same_training(twin, module, torch.randn(3, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("way", ["constructor", "to"])
def test_dtypes(dtype, way) -> None:
    ours, torchs = pair("gelu", "tanh", dtype=dtype) if way == "constructor" else pair("gelu", "tanh")
    ours, torchs = ours.to(dtype), torchs.to(dtype)
    assert {p.dtype for p in ours.parameters()} == {dtype}
    input = torch.randn(9, 4, dtype=dtype)
    exact = copy.deepcopy(torchs).double()(input.double())
    assert_within_bound([ours(input)], [torchs(input)], [exact])
    for module in (ours, torchs):
        with pytest.raises(RuntimeError, match="dtype"):
            module(input.float())


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4), (2, 0, 4), (1, 1, 1, 4)])
def test_any_leading_dimensions(shape) -> None:
    ours, torchs = pair("silu", "softplus")
    assert_same_training(ours, torchs, torch.randn(shape))


@pytest.mark.parametrize("shape", [(3, 5), (), (4, 3)])
def test_input_of_the_wrong_width_raises(shape) -> None:
    for module in pair("relu"):
        with pytest.raises(RuntimeError):
            module(torch.randn(shape))


def test_functional_call_and_meta_device() -> None:
    ours, torchs = pair("elu")
    input = torch.randn(3, 4)
    substitutes = {name: torch.randn_like(p) for name, p in ours.named_parameters()}
    given = substitutes, input
    results = [torch.func.functional_call(module, *given) for module in (ours, torchs)]
    assert_within_bound(*results, torch.func.functional_call(in_double(torchs), *as_double(given)))
    assert MLP(SIZES, device="meta")(input.to("meta")).shape == (3, 3)
    abstract = MLP(SIZES, "elu", device="meta").to_empty(device=input.device)
    abstract.load_state_dict(torchs.state_dict())
    assert_same_output(abstract, torchs, input)


def test_averaged_model_follows_torchs() -> None:
    input = torch.randn(8, 4, dtype=torch.float64)
    averages = []
    for module in pair("relu", dtype=torch.float64):
        average = AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(input).square().mean().backward()
            optimizer.step()
            average.update_parameters(module)
        averages.append(average)
    assert not torch.allclose(averages[0](input), module(input))
    assert_close_in_float64(averages[0](input), averages[1](input))


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this PyTorch has no gloo")
def test_distributed_data_parallel(tmp_path) -> None:
    ours, torchs = pair("tanh")
    input = torch.randn(6, 4)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(ours)
        wrapped(input).square().mean().backward()
        wrapped_names = [name.removeprefix("module.") for name, _ in wrapped.named_parameters()]
    finally:
        # The group must not go with what holds it last: gloo's threads then wait for Python's lock, and it for them.
        wrapped = None
        gc.collect()
        dist.destroy_process_group()
    exact = in_double(torchs)
    for module, given in ((torchs, input), (exact, input.double())):
        module(given).square().mean().backward()
    names = [name for name, _ in torchs.named_parameters()]
    assert names == wrapped_names
    assert_within_bound(*([p.grad for p in module.parameters()] for module in (ours, torchs, exact)))
