"""The classic GAN and conditional GAN of the tutorials: old weights, fuse, TrainStep, amp, compile, Lightning."""

from __future__ import annotations

import copy
import dataclasses
import io
from pathlib import Path

import pytest
import torch
import tutorial_gan as tutorial
from conformance import assert_close_in_float64, assert_within_bound, in_double, overall_error
from torch import Tensor, nn

import fastgan
from bench import tutorial as benchmark
from bench.configurations import Configuration
from fastgan.nn import FusedSequential, fuse, unfuse

PLAIN = {"generator": tutorial.Generator, "discriminator": tutorial.Discriminator}
CONDITIONAL = {
    "conditional generator": tutorial.ConditionalGenerator,
    "conditional discriminator": tutorial.ConditionalDiscriminator,
}
# float64 sums of 64 x 1024 products of numbers of about 1, in another order.
BOUND = 1e-10


def pair(conditional: bool = False, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """Networks after a step of training, so that BatchNorm has seen a batch; without Dropout, which draws masks."""
    torch.manual_seed(0)
    networks = (
        (tutorial.ConditionalGenerator(), tutorial.ConditionalDiscriminator(dropout=0.0))
        if conditional
        else (tutorial.Generator(), tutorial.Discriminator())
    )
    for network in networks:
        network.to(dtype)
    tutorial.loop(*networks, tutorial.batches(1, dtype), criterion(conditional), conditional)
    return networks


def criterion(conditional: bool) -> nn.Module:
    return nn.MSELoss() if conditional else nn.BCELoss()


def fused(networks: tuple[nn.Module, nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Fused copies."""
    copies = copy.deepcopy(networks)
    for network in copies:
        fuse(network)
        assert any(isinstance(module, FusedSequential) for module in network.modules())
    return copies


def given(name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    images, noise, labels = tutorial.batches(1, dtype)[0]
    value = noise if "generator" in name else images
    return (value, labels) if "conditional" in name else (value,)


@pytest.mark.parametrize("name", [*PLAIN, *CONDITIONAL])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_old_weights_load_and_outputs_and_gradients_agree(backend: str, name: str, mode: str) -> None:
    kind = {**PLAIN, **CONDITIONAL}[name]
    old = pair("conditional" in name)["discriminator" in name]
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    file.seek(0)
    new = fuse(kind() if "generator" in name or "conditional" not in name else kind(dropout=0.0)).double()
    new.load_state_dict(torch.load(file))  # strict: no key is missing, none is left over
    assert any(isinstance(module, FusedSequential) for module in new.modules())
    results = []
    for network in (new, old):
        network.train(mode == "train")
        output = network(*given(name, torch.float64))
        gradients = torch.autograd.grad(output.square().mean(), list(network.parameters()))
        results.append([output, *gradients, *network.state_dict().values()])
    assert_close_in_float64(*results, BOUND)
    assert list(new.state_dict()) == list(old.state_dict())
    assert list(unfuse(new).state_dict()) == list(old.state_dict())


@pytest.mark.parametrize("name", [*PLAIN, *CONDITIONAL])
def test_float32_is_as_exact_as_pytorch(backend: str, name: str) -> None:
    networks = pair("conditional" in name, torch.float32)
    old = networks["discriminator" in name]
    new = fused(networks)["discriminator" in name]
    results = []
    for network, dtype in ((new, torch.float32), (old, torch.float32), (in_double(old), torch.float64)):
        output = network(*given(name, dtype))
        results.append([output, *torch.autograd.grad(output.square().mean(), list(network.parameters()))])
    assert_within_bound(*results)


@pytest.mark.parametrize("conditional", [False, True])
def test_the_loop_over_fused_networks(backend: str, conditional: bool) -> None:
    """Losses, parameters, buffers after three steps."""
    old = pair(conditional)
    new = fused(old)
    results = [
        [*tutorial.loop(*networks, tutorial.batches(3, torch.float64), criterion(conditional), conditional)]
        + [t for network in networks for t in network.state_dict().values()]
        for networks in (new, old)
    ]
    assert_close_in_float64(*results, 1e-8)


@pytest.mark.parametrize("whole", [False, True], ids=["layers", "modules"])
def test_train_step_is_the_tutorials_loop(engine_backend: str, whole: bool) -> None:
    """Of the Sequentials inside as one call, of the modules around them composed; D's loss is half the step's.

    Adam heeds no factor of the loss but by its eps of 1e-8, which is nothing beside the gradients' root mean squares:
    so eps is halved with the loss here.
    """
    old = pair()
    new = copy.deepcopy(old)
    g, d = new if whole else (new[0].model, new[1].model)
    g_optimizer, d_optimizer = tutorial.adam(g), tutorial.adam(d)
    d_optimizer.param_groups[0]["eps"] *= 2
    step = fastgan.TrainStep(g, d, g_optimizer, d_optimizer, reuse_fake=True)
    ours = []
    for images, noise, _ in tutorial.batches(3, torch.float64):
        stats = step.step(images.flatten(start_dim=1), noise=noise[None])
        ours += [stats.d_loss.clone() / 2, stats.g_loss.clone()]
    theirs = tutorial.loop(*old, tutorial.batches(3, torch.float64), nn.BCELoss())
    ours += [t for network in new for t in network.state_dict().values()]
    theirs += [t for network in old for t in network.state_dict().values()]
    assert step.plan.startswith("composed") == whole, step.plan
    assert whole or "Sigmoid is folded" in step.plan
    assert_close_in_float64(ours, theirs, 1e-8)


def test_train_step_of_the_conditional_networks(engine_backend: str) -> None:
    """Their labels come as one-hot columns; MSELoss is the loss least_squares, twice."""
    old = pair(conditional=True)
    new = copy.deepcopy(old)
    g, d = map(tutorial.Joined, new)
    g_optimizer, d_optimizer = tutorial.adam(g), tutorial.adam(d)
    g_optimizer.param_groups[0]["eps"] /= 2
    step = fastgan.TrainStep(
        g, d, g_optimizer, d_optimizer, loss="least_squares", num_classes=tutorial.CLASSES, reuse_fake=True
    )
    ours = []
    for images, noise, labels in tutorial.batches(3, torch.float64):
        stats = step.step(images.flatten(start_dim=1), labels, noise[None])
        ours += [stats.d_loss.clone(), 2 * stats.g_loss.clone()]
    theirs = tutorial.loop(*old, tutorial.batches(3, torch.float64), nn.MSELoss(), conditional=True)
    ours += [t for network in new for t in network.state_dict().values()]
    theirs += [t for network in old for t in network.state_dict().values()]
    assert_close_in_float64(ours, theirs, 1e-8)


@pytest.mark.parametrize("conditional", [False, True])
def test_the_loop_under_autocast(backend: str, conditional: bool) -> None:
    """In bfloat16: no further from float64 than PyTorch's own networks under autocast."""
    exact = pair(conditional)
    old = tuple(copy.deepcopy(network).float() for network in exact)
    new = fused(old)
    logits = nn.MSELoss() if conditional else nn.BCEWithLogitsLoss()  # BCELoss is not to be used under autocast
    if not conditional:
        for _, discriminator in (exact, old, new):
            discriminator.model[-1] = nn.Identity()
    before = [parameter.detach().clone() for network in exact for parameter in network.parameters()]
    losses = [tutorial.loop(*exact, tutorial.batches(3, torch.float64), logits, conditional)]
    for networks in (old, new):
        losses.append(tutorial.loop(*map(Autocast, networks), tutorial.batches(3), logits, conditional))
    moved = []
    for networks in (exact, old, new):
        after = [parameter.double() for network in networks for parameter in network.parameters()]
        moved.append([value - start for value, start in zip(after, before, strict=True)])
    for truth, theirs, ours in (losses, moved):
        assert 0 < overall_error(ours, truth) <= 2 * overall_error(theirs, truth) + 1e-6


class Autocast(nn.Module):
    """A network whose forward pass runs under autocast, as PyTorch's guide has it; its output in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *given: Tensor) -> Tensor:
        with torch.autocast(torch.get_default_device().type, torch.bfloat16):
            output = self.network(*given)
        return output.float()


INDUCTOR = (pytest.mark.deep, pytest.mark.full_on("reference", "cpu", "simt"))  # which compiles C++


@pytest.mark.deep_on("reference", "simt")  # whose graphs are recorded in the same way
@pytest.mark.parametrize(
    ("compiler", "conditional"),
    [("aot_eager", False), ("aot_eager", True), pytest.param("inductor", True, marks=INDUCTOR)],
)
def test_the_loop_under_compile(backend: str, conditional: bool, compiler: str) -> None:
    """Fused networks compiled whole, without a graph break."""
    torch.compiler.reset()
    old = pair(conditional)
    new = fused(old)
    compiled = [torch.compile(network, backend=compiler, fullgraph=True) for network in new]
    results = [
        tutorial.loop(*networks, tutorial.batches(3, torch.float64), criterion(conditional), conditional)
        for networks in (compiled, old)
    ]
    for found, networks in zip(results, (new, old), strict=True):
        found += [t for network in networks for t in network.state_dict().values()]
    assert_close_in_float64(*results, 1e-8)


@pytest.mark.parametrize("one_call", [False, True])
def test_lightning_with_manual_optimization(one_call: bool, tmp_path: Path) -> None:
    """What the loop of examples/lightning_gan.py trains is what the tutorials' loop trains."""
    lightning = pytest.importorskip("lightning")
    from examples.lightning_gan import GAN

    given = tutorial.batches(3, torch.float64)
    old = pair()
    generator, discriminator = (copy.deepcopy(network).model for network in old)
    discriminator[-1] = nn.Identity()  # the example's losses take logits
    module = GAN(fuse(generator), fuse(discriminator), one_call=one_call, noise=lambda real: noise.pop(0))
    noise = [noise for _, noise, _ in given]
    images = [images.flatten(start_dim=1) for images, _, _ in given]
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(images, batch_size=None))
    assert not noise
    tutorial.loop(*old, given, nn.BCELoss(), half=1.0)
    theirs = [t for network in old for t in network.state_dict().values()]
    ours = [*module.generator.state_dict().values(), *module.discriminator.state_dict().values()]
    assert_close_in_float64(ours, theirs, 1e-8)


def test_the_benchmarks_contenders_train_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Configuration("tiny", (3, 8, 12, 16), "leaky_relu", "tanh", (16, 8, 6, 1), batch=6)
    case = benchmark.case(tiny, (1, 4, 4))
    assert list(case.contenders) == ["fastgan", "fastgan modules", "torch fused Adam", "torch"]
    case.check()
    for turn in case.contenders.values():
        turn()
    wrong = benchmark.as_written(tiny, (1, 4, 4), change=lambda network: network.requires_grad_(False) or network)
    monkeypatch.setattr(benchmark, "train_step", lambda *given: dataclasses.replace(wrong, step=lambda *_: [0.7, 0.7]))
    with pytest.raises(AssertionError):
        benchmark.case(tiny, (1, 4, 4)).check()


def test_what_is_measured_is_the_tutorials() -> None:
    (case,) = benchmark.cases()
    assert case.name == "tutorial GAN float32 step"
    generator, discriminator = benchmark.networks(benchmark.TUTORIAL, tutorial.IMAGE)
    assert [p.shape for p in generator.parameters()] == [p.shape for p in tutorial.Generator().parameters()]
    assert generator.model[3].eps == 0.8
    assert isinstance(discriminator.model[-1], nn.Sigmoid)
