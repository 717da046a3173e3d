"""Every op under torch.compile without a graph break, under opcheck, and on tensors that have shapes alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from conformance import ACTIVATIONS, assert_close_in_float64, assert_within_bound, here, in_double
from ops import OPS, Op
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastgan
from fastgan.functional import ACTIVATION

DTYPES = (torch.float32, torch.bfloat16)
# Of the reference torch.compile sees nothing but torch's ops.
pytestmark = [pytest.mark.above_kernels, pytest.mark.full_on("reference")]


@pytest.fixture(autouse=True)
def forget_compiled_code() -> None:
    torch.compiler.reset()


def results(function, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The value and the gradients by every input."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


# "aot_eager" traces what inductor would be given, forward and backward, without compiling it.
@pytest.mark.deep_on("simt")
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_fullgraph(backend: str, op: Op) -> None:
    compiled = torch.compile(op.ours, fullgraph=True, backend="aot_eager")
    inputs = op.inputs()
    assert_close_in_float64(results(compiled, inputs), results(op.torchs, inputs))


@pytest.mark.deep_on("simt")
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_dynamic_shapes_compile_once(backend: str, op: Op) -> None:
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(op.ours, fullgraph=True, dynamic=True, backend=counting)
    for times in (1, 2, 5):
        inputs = op.inputs(times=times)
        assert_close_in_float64(compiled(*inputs), op.torchs(*inputs))
    assert len(graphs) == 1


@pytest.mark.deep_on("cpu", "simt")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_training_a_module_at_any_batch_size(backend: str, activation: str) -> None:
    """Forward and backward of an MLP in one graph each, which serves every batch size."""
    module = fastgan.nn.MLP([4, 8, 3], activation, "tanh", dtype=torch.float64)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    counters = torch._dynamo.utils.counters
    counters.clear()
    parameters = list(module.parameters())
    for batch in (2, 7, 32):
        x = torch.randn(batch, 4, dtype=torch.float64, requires_grad=True)
        twins = [f(x) for f in (compiled, nn.Sequential(*module))]
        assert_close_in_float64(*twins)
        gradients = [torch.autograd.grad(y.square().sum(), [x, *parameters]) for y in twins]
        assert_close_in_float64(*gradients)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.deep
def test_losses_and_layers_through_inductor(compiled_backend: str) -> None:
    """The default compiler, whose C++ is compiled here: several seconds where nothing is cached."""
    discriminator = fastgan.nn.MLP([4, 8, 1])

    def loss(real: Tensor, fake: Tensor) -> Tensor:
        return fastgan.functional.discriminator_loss(discriminator(real), discriminator(fake))

    def torchs(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        x, y = discriminator(real), discriminator(fake)
        cross_entropy = nn.functional.binary_cross_entropy_with_logits
        return cross_entropy(x, torch.ones_like(x)) + cross_entropy(y, torch.zeros_like(y))

    real, fake = torch.randn(6, 4), torch.randn(5, 4)
    plain = nn.Sequential(*discriminator)
    exact = in_double(plain)
    values = (
        (torch.compile(loss, fullgraph=True)(real, fake), discriminator),
        (torchs(plain, real, fake), plain),
        (torchs(exact, real.double(), fake.double()), exact),
    )
    assert_within_bound(*((value, *torch.autograd.grad(value, list(m.parameters()))) for value, m in values))


def test_autocast_inside_a_graph(backend: str) -> None:
    module = fastgan.nn.MLP([4, 8, 1], "tanh")
    x = torch.randn(6, 4)

    device = x.device.type

    def run(x: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return module(x)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    assert compiled.dtype == torch.bfloat16
    # In a graph autocast leaves the layers to PyTorch, which rounds between product and activation.
    rounded = copy.deepcopy(module).to(torch.bfloat16)
    exact = copy.deepcopy(rounded).double()(x.to(torch.bfloat16).double())
    with fastgan.use_backend("reference"):
        torchs = rounded(x.to(torch.bfloat16))
    assert_within_bound([compiled, run(x)], [torchs, torchs], [exact, exact])


def test_errors_survive_compilation(backend: str) -> None:
    compiled = torch.compile(fastgan.functional.generator_loss, backend="aot_eager")
    with pytest.raises(Exception, match=r"kind must be one of non_saturating, minimax, .*, not 'wgan'"):
        compiled(torch.zeros(3), kind="wgan")


@pytest.mark.parametrize("device", ["meta", "fake"])
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_shapes_without_values(backend: str, op: Op, device: str) -> None:
    """Meta and fake tensors get through forward and backward with the shapes, dtypes and strides of real ones."""
    for dtype in DTYPES:
        real = results(op.ours, op.inputs(dtype))
        if device == "meta":
            ghosts = results(op.ours, [t.to("meta") for t in op.inputs(dtype)])
            assert all(t.is_meta for t in ghosts)
        else:
            with FakeTensorMode() as mode:
                ghosts = results(op.ours, [mode.from_tensor(t) for t in op.inputs(dtype)])
        for ghost, value in zip(ghosts, real, strict=True):
            assert (ghost.shape, ghost.dtype, ghost.stride()) == (value.shape, value.dtype, value.stride())


def test_meta_module_has_shapes(backend: str) -> None:
    module = fastgan.nn.MLP([4, 8, 1], device="meta")
    assert module(torch.empty(6, 4, device="meta")).shape == (6, 1)


X, T = torch.randn(6, 3), torch.rand(6, 3)
W0, W1, B0, B1 = torch.randn(4, 3), torch.randn(2, 4), torch.randn(4), torch.randn(2)


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


# The arguments of each op of the compiled module, as its schema has them; 1 is the mean, 0 no reduction.
REGISTERED = {
    "bce_with_logits": [
        (leaf(X), leaf(T), None, None, 1),
        (leaf(X), T, torch.rand(3), torch.rand(6, 1), 0),
        (leaf(X.t()), T.t(), None, torch.rand(6), 2),
        (leaf(X), T, T.clone(), None, 1),
        (torch.empty(0, 3, requires_grad=True), torch.empty(0, 3), None, None, 0),
    ],
    "logits_loss": [
        (leaf(X), 0, 0.9, 1.0, 1),
        (leaf(X[:, 1]), 0, 0.0, -1.0, 0),
        (X, 0, 1.0, 1.0, 2),
        *((leaf(X.t()), term, 1.0, -1.0, reduction) for term in (1, 2, 3) for reduction in (0, 1)),
    ],
    "discriminator_loss": [
        (leaf(X), leaf(T[:4]), 0, 0.9, 0.1, 1),
        (leaf(X), T, 0, 1.0, 0.0, 2),
        *((leaf(X), leaf(T[:4]), term, 1.0, -1.0, 1) for term in (1, 2, 3)),
    ],
    "paired_loss": [(leaf(X), leaf(T), 1.0, 1), (leaf(X.t()), T.t(), 0.5, 0), (X, leaf(T), 1.0, 2)],
    "mlp": [
        (leaf(X), [leaf(W0)], [leaf(B0)], [2], [0.2]),
        (leaf(X), [leaf(W0), W1], [None, leaf(B1)], [4, 0], [0.0, 0.0]),
        (leaf(X.view(2, 3, 3)), [leaf(W0), leaf(W1)], [B0, None], [8, 6], [0.0, 0.0]),
        (X, [W0], [None], [1], [0.0]),
    ],
    # Kinds: tanh, identity, softmax. Draws of Gumbel noise have a dtype of their own: test_segmented_refuses has them.
    "segmented_activation": [
        (leaf(X), None, [1, 2], [0, 2], 0.2),
        (leaf(X.t()), None, [4, 2], [2, 1], 1.0),
        (X, None, [3], [2], 1.0),
    ],
}
CASES = [(name, i) for name, arguments in REGISTERED.items() for i in range(len(arguments))]


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda value: str(value))
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_opcheck(compiled_backend: str, name: str, case: int, dtype: torch.dtype) -> None:
    """Schema, autograd registration, and Meta kernels with static and with dynamic shapes."""

    def cast(value):
        if isinstance(value, list):
            return [cast(v) for v in value]
        return (
            here(value).detach().to(dtype).requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
        )

    torch.library.opcheck(getattr(torch.ops.fastgan, name).default, tuple(map(cast, REGISTERED[name][case])))


# The backward ops of mlp, as its autograd calls them: by what each derivative is taken, one flag a tensor.
NEEDS = {"all": [1] * 5, "input": [1, 0, 0, 0, 0], "parameters": [0, 1, 1, 1, 1], "last layer": [0, 0, 1, 0, 1]}


@pytest.mark.parametrize("need", NEEDS.values(), ids=NEEDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_opcheck_of_backward_ops(compiled_backend: str, activation: str, need: list[int]) -> None:
    """First and second derivative: their schemas, and their Meta kernels with static and with dynamic shapes."""
    x, w0, b0, w1, b1 = map(here, (X, W0, B0, W1, B1))
    ops, weights, call = torch.ops.fastgan, [w0, w1], ([ACTIVATION[activation], ACTIVATION["tanh"]], [0.2, 0.0])
    outputs = ops.mlp_forward(x, weights, [b0, b1], *call)
    backward = (torch.randn(6, 2), x, weights, outputs, *call, need)
    opcheck(ops.mlp_backward, *backward, False)
    packed = ops.mlp_backward(*backward, True)
    gradients, intermediates = packed[: sum(need)], packed[sum(need) :]
    cotangents = [torch.randn_like(g) for g in gradients]
    opcheck(ops.mlp_double_backward, cotangents, need, x, weights, outputs, intermediates, *call, [1] * 6)


LOSS_CALLS = [*((term, False) for term in range(4)), (0, True)]  # a term, and whether it is of a pair


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize(("term", "paired"), LOSS_CALLS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_opcheck_of_the_losses_backward_ops(compiled_backend: str, term, paired, reduction, dtype) -> None:
    """Of both halves at once, or, unreduced, of one; of a pair in both."""
    ops = torch.ops.fastgan
    logits = [here(X).to(dtype), here(T).t().contiguous().t().to(dtype)]
    if reduction == 0 and not paired:
        del logits[0]
    call = (term, [1.0] if paired else [1.0, -1.0][: len(logits)], 1.0, paired, reduction)
    loss, gradients = ops.logits_loss_forward(logits, *call, True)
    opcheck(ops.logits_loss_forward, logits, *call, True)
    opcheck(ops.logits_loss_backward, torch.ones_like(loss), gradients, term, paired, reduction)
    cotangents = [torch.randn_like(x) for x in logits]
    opcheck(ops.logits_loss_double_backward, cotangents, torch.ones_like(loss), logits, *call)


def opcheck(op, *arguments) -> None:
    torch.library.opcheck(op.default, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("need", [[1] * 5, [0, 0, 1, 0, 1]], ids=["all", "last layer"])
def test_opcheck_of_backward_that_keeps_intermediates(compiled_backend: str, need: list[int]) -> None:
    """What second derivatives ask for: no output shares memory with an input, and Meta knows the shapes."""
    x, w0, b0, w1, b1 = map(here, (X, W0, B0, W1, B1))
    ops, call = torch.ops.fastgan, ([2, 4], [0.2, 0.0])
    outputs = ops.mlp_forward(x, [w0, w1], [b0, b1], *call)
    opcheck(ops.mlp_backward, torch.randn(6, 2), x, [w0, w1], outputs, *call, need, True)


def test_every_public_op_is_under_opcheck(compiled: None) -> None:
    """Ops that have an autograd formula of their own; those beneath them are reached through it."""
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastgan::")}
    parts = ("_forward", "_backward")
    assert {name for name in names if not name.endswith(parts)} == set(REGISTERED)


def test_exported_program_runs_elsewhere(backend: str) -> None:
    """torch.export keeps a generator as one graph, for any batch."""
    generator = fastgan.nn.MLP([3, 8, 5], "relu", "tanh")
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(generator, (torch.randn(4, 3),), dynamic_shapes=({0: batch},))
    noise = torch.randn(9, 3)
    plain = nn.Sequential(*generator)
    assert_within_bound(program.module()(noise), plain(noise), in_double(plain)(noise.double()))


def test_a_module_compiled_in_place_keeps_its_state_dict(backend: str) -> None:
    module = fastgan.nn.MLP([4, 8, 1])
    keys = list(module.state_dict())
    x = torch.randn(6, 4)
    plain = nn.Sequential(*module)
    module.compile(fullgraph=True, backend="aot_eager")
    assert_within_bound(module(x), plain(x), in_double(plain)(x.double()))
    assert list(module.state_dict()) == keys
