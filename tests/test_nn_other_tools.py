"""Other tools over a fused model or an `MLP`: each does what it does to the plain `nn.Sequential`."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conformance import assert_close_in_float64
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from fastgan.nn import MLP, FusedSequential, fuse, unfuse

pytestmark = [
    pytest.mark.above_kernels,
    pytest.mark.usefixtures("backend"),
    # Other tools see modules, whatever computes them.
    pytest.mark.deep_on("reference", "cpu", "simt"),
    pytest.mark.full_on("cpu", "simt"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


class Named(nn.Sequential):
    """A Sequential subclass without a forward of its own."""


class Model(nn.Module):
    """A module that holds a Sequential beside a layer of its own."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(2, 2)

    def forward(self, input: Tensor) -> Tensor:
        return self.head(self.body(input))


def layers() -> list[nn.Module]:
    torch.manual_seed(3)
    return [nn.Linear(4, 6), nn.LeakyReLU(0.2), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)]


def mlp() -> MLP:
    module = MLP([4, 6, 5, 2])
    module[3] = nn.Tanh()
    module.load_state_dict(nn.Sequential(*layers()).state_dict())
    return module


# Each the plain module and its twin to which fusing has happened, of the same values.
TWINS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "Sequential": lambda: (nn.Sequential(*layers()), fuse(nn.Sequential(*layers()))),
    "MLP": lambda: (nn.Sequential(*layers()), mlp()),
    "subclass": lambda: (Named(*layers()), fuse(Named(*layers()))),
    "nested": lambda: (nn.Sequential(nn.Sequential(*layers()[:3]), *layers()[3:]),
                       fuse(nn.Sequential(nn.Sequential(*layers()[:3]), *layers()[3:]))),
    "inside": lambda: (Model(nn.Sequential(*layers())), fuse(Model(nn.Sequential(*layers())))),
}  # fmt: skip


@pytest.fixture(params=TWINS)
def twins(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    plain, fused = TWINS[request.param]()
    assert any(isinstance(m, FusedSequential) or type(m).forward is FusedSequential.forward for m in fused.modules())
    fused.load_state_dict(plain.state_dict())
    return plain, fused


def run(module: Callable[..., Tensor], input: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    at = input.clone().requires_grad_()
    output = module(at)
    return [output, *torch.autograd.grad(output.square().sum(), [at, *parameters])]


def assert_equal(ours: list[Tensor], torchs: list[Tensor]) -> None:
    assert_close_in_float64(ours, torchs)


def saved(scripted: Any) -> Any:
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    return torch.jit.load(file)


RECORDERS: dict[str, Callable[[nn.Module, Tensor], Callable[..., Tensor]]] = {
    "script": lambda m, x: torch.jit.script(m),
    "script, saved": lambda m, x: saved(torch.jit.script(m)),
    "script, frozen": lambda m, x: torch.jit.freeze(torch.jit.script(m.eval())),
    "trace": lambda m, x: torch.jit.trace(m, x),
    "trace, saved": lambda m, x: saved(torch.jit.trace(m, x)),
    "symbolic_trace": lambda m, x: torch.fx.symbolic_trace(m),
    "export": lambda m, x: torch.export.export(m, (x,)).module(),
    "export, strict": lambda m, x: torch.export.export(m, (x,), strict=True).module(),
    "export, dynamic": lambda m, x: torch.export.export(
        m, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    ).module(),
    "make_fx": lambda m, x: torch.fx.experimental.proxy_tensor.make_fx(m)(x),
}


@pytest.mark.parametrize("name", RECORDERS)
def test_a_recorded_graph_is_that_of_the_plain_module(name, twins) -> None:
    input, other = torch.randn(3, 4), torch.randn(3, 4)
    plain, fused = twins
    recorded = RECORDERS[name](fused, input)
    # On the module's own kernels in float32, so to rounding; with the plain recording, to the bit.
    torch.testing.assert_close(recorded(other), RECORDERS[name](plain, input)(other), rtol=0, atol=0)
    text = str(recorded.inlined_graph) if hasattr(recorded, "inlined_graph") else str(recorded.graph)
    assert "fastgan::" not in text
    assert "fastgan.mlp" not in text
    assert "aten" in text or "call_module" in text or "body" in text


def test_a_graph_module_can_be_edited_and_fused(twins) -> None:
    plain, fused = twins
    for module in twins:
        module.double()
    input, graphs = torch.randn(3, 4, dtype=torch.float64), []
    for module in (plain, fused):
        graph = torch.fx.symbolic_trace(module)
        last = next(node for node in reversed(graph.graph.nodes) if node.op == "call_module")
        with graph.graph.inserting_after(last):
            added = graph.graph.call_function(torch.neg, (last,))
        last.replace_all_uses_with(added, delete_user_cb=lambda user, added=added: user is not added)
        graph.recompile()
        graphs.append(fuse(graph))
    assert [n.target for n in graphs[0].graph.nodes] == [n.target for n in graphs[1].graph.nodes]
    assert_equal([graphs[1](input)], [graphs[0](input)])


def quantizable(fused: bool) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(quantization.QuantStub(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2), nn.Linear(2, 2))
    module.append(quantization.DeQuantStub())
    return fuse(module) if fused else module


def static(module: nn.Module, input: Tensor, fuse_again: bool, layers_fused: bool) -> nn.Module:
    module.eval()
    if layers_fused:
        module = quantization.fuse_modules(module, [["1", "2"]])
    if fuse_again:
        fuse(module)
    module.qconfig = quantization.get_default_qconfig("x86")
    ready = quantization.prepare(module)
    ready(input)
    return quantization.convert(ready)


def aware(module: nn.Module, input: Tensor, fuse_again: bool, layers_fused: bool) -> nn.Module:
    module.train()
    if layers_fused:
        module = quantization.fuse_modules_qat(module, [["1", "2"]])
    if fuse_again:
        fuse(module)
    module.qconfig = quantization.get_default_qat_qconfig("x86")
    ready = quantization.prepare_qat(module)
    ready(input).sum().backward()
    ready(input)
    return quantization.convert(ready.eval())


def dynamic(module: nn.Module, input: Tensor, fuse_again: bool, layers_fused: bool) -> nn.Module:
    return quantization.quantize_dynamic(module.eval(), {nn.Linear})


@pytest.mark.parametrize("layers_fused", [False, True], ids=["layers", "fused layers"])
@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.parametrize("quantize", [static, aware, dynamic])
def test_eager_quantization(quantize, when, layers_fused, backend) -> None:
    if backend == "cuda":
        pytest.skip("PyTorch's quantized layers run on the CPU alone")
    input = torch.randn(8, 4)
    expected = quantize(quantizable(False), input, False, layers_fused)
    module = quantize(quantizable(when == "before"), input, when == "between", layers_fused)
    assert [type(m) for m in module.children()] == [type(m) for m in expected.children()]
    torch.testing.assert_close(module(input), expected(input), rtol=0, atol=0)
    torch.testing.assert_close(fuse(module)(input), expected(input), rtol=0, atol=0)


class Doubling(TorchFunctionMode):
    """A shim that changes what F.linear gives."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        return 2 * output if function in (F.linear, F.tanh, torch.tanh) else output


class Recorded(TorchDispatchMode):
    """Keeps the names of the ops that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_modes_see_the_calls_of_the_plain_module(twins) -> None:
    seen = []
    for module in twins:
        module.double()
        input = torch.randn(
            3, 4, dtype=torch.float64, generator=torch.Generator(torch.get_default_device()).manual_seed(1)
        )
        with Doubling():
            values = run(module, input, list(module.parameters()))
        with Recorded() as recorded:
            run(module, input, list(module.parameters()))
        with FlopCounterMode(display=False) as counter:
            module(input).sum().backward()
        seen.append((values, recorded.names, counter.get_total_flops()))
    assert_equal(seen[1][0], seen[0][0])
    assert seen[1][1] == seen[0][1]
    assert seen[1][2] == seen[0][2] > 0


def test_a_default_device_is_no_mode_that_watches(monkeypatch) -> None:
    import fastgan.functional

    calls, whole = [], fastgan.functional.mlp
    monkeypatch.setattr(fastgan.functional, "mlp", lambda *a: calls.append(1) or whole(*a))
    with torch.device("cpu"):
        mlp()(torch.randn(3, 4))
    assert calls == [1]


class Logged(torch.Tensor):
    """A tensor subclass that keeps the names of the functions called on it."""

    names: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.names.append(getattr(function, "__name__", str(function)))
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_tensor_subclass_sees_the_calls_of_the_plain_module(twins) -> None:
    names = []
    for module in twins:
        Logged.names.clear()
        assert type(module(torch.randn(3, 4).as_subclass(Logged))) is Logged
        names.append(list(Logged.names))
    assert names[0] == names[1]
    assert "linear" in names[0]


PATCHES: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "Linear.forward": (nn.Linear, "forward", lambda old: lambda self, x: F.linear(x, 2 * self.weight, self.bias)),
    "LeakyReLU.forward": (nn.LeakyReLU, "forward", lambda old: lambda self, x: old(self, x) + 1),
    "Tanh.forward": (nn.Tanh, "forward", lambda old: lambda self, x: old(self, x) + 1),
    "Sequential.forward": (nn.Sequential, "forward", lambda old: lambda self, x: old(self, x) + 1),
    "Sequential.__iter__": (
        nn.Sequential,
        "__iter__",
        lambda old: lambda self: (m for m in old(self) if type(m) is not nn.Tanh),
    ),
    "Named.forward": (Named, "forward", lambda old: lambda self, x: old(self, x) + 1),
    "Module.__call__": (nn.Module, "__call__", lambda old: lambda self, *a, **k: old(self, *a, **k) + 1),
    "F.linear": (F, "linear", lambda old: lambda x, w, b=None: old(x, 2 * w, b)),
    "F.leaky_relu": (F, "leaky_relu", lambda old: lambda x, negative_slope, inplace: old(x, 2 * negative_slope)),
    "torch.tanh": (torch, "tanh", lambda old: lambda x: old(x) + 1),
}


@pytest.mark.parametrize("name", PATCHES)
def test_a_function_patched_for_all_is_called(name, twins, monkeypatch) -> None:
    owner, attribute, patched = PATCHES[name]
    input, results = torch.randn(3, 4, dtype=torch.float64), []
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, patched(getattr(owner, attribute)))
        for module in twins:
            module.double()
            results.append(run(module, input, [p for p in module.parameters()][:1]))
    assert_equal(results[1], results[0])
    assert_equal(run(twins[1], input, []), run(twins[0], input, []))


class Backwards(nn.Sequential):
    """A Sequential that runs its modules from the last to the first."""

    def __iter__(self) -> Iterator[nn.Module]:
        return reversed(list(self._modules.values()))


class Skipping(nn.Sequential):
    """A Sequential that leaves out its second module."""

    def __iter__(self) -> Iterator[nn.Module]:
        return (m for i, m in enumerate(self._modules.values()) if i != 1)


@pytest.mark.parametrize("kind", [Backwards, Skipping])
def test_an_order_of_its_own_is_kept(kind) -> None:
    torch.manual_seed(0)
    module = kind(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    input = torch.randn(3, 4, dtype=torch.float64)
    expected = module(input)
    assert_equal([fuse(module)(input)], [expected])
    assert_equal([fuse(nn.Sequential(module))(input)], [expected])


REWRITERS: dict[str, Callable[[nn.Linear], Any]] = {
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "old spectral_norm": nn.utils.spectral_norm,
    "old weight_norm": nn.utils.weight_norm,
    "prune": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    "parametrize": lambda layer: parametrize.register_parametrization(layer, "bias", nn.Softplus(), unsafe=True),
}


@pytest.mark.parametrize("name", REWRITERS)
def test_rewritten_layers(name, twins) -> None:
    results = []
    for module in twins:
        module.double()
        linear = [m for m in module.modules() if isinstance(m, nn.Linear)]
        torch.manual_seed(7)
        REWRITERS[name](linear[1])
        torch.manual_seed(8)
        input = torch.randn(3, 4, dtype=torch.float64)
        for _ in range(2):
            values = run(module, input, list(module.parameters()))
        results.append([*values, *module.buffers()])
    assert_equal(results[1], results[0])


def test_functional_transforms(twins) -> None:
    input, results = torch.randn(3, 4, dtype=torch.float64), []
    for module in twins:
        module.double()
        parameters = {name: p.detach() for name, p in module.named_parameters()}

        def loss(values, x, module=module):
            return torch.func.functional_call(module, values, (x,)).square().sum()

        gradients = torch.func.grad(loss)(parameters, input)
        each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, input)
        stacked, buffers = torch.func.stack_module_state([module, copy.deepcopy(module)])
        base = copy.deepcopy(module).to("meta")
        ensemble = torch.func.vmap(lambda p, b, base=base: torch.func.functional_call(base, (p, b), (input,)))(
            stacked, buffers
        )
        jacobian = torch.func.jacrev(module)(input)
        forward = torch.func.jvp(module, (input,), (torch.ones_like(input),))
        replaced = torch.func.functional_call(module, {k: 2 * v for k, v in parameters.items()}, (input,))
        results.append([*gradients.values(), *each.values(), ensemble, jacobian, *forward, replaced])
    assert_equal(results[1], results[0])


def with_saved_tensors_on_cpu(module: nn.Module, input: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return module(input)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "state_dict": lambda m: m.load_state_dict(copy.deepcopy(m.state_dict())) and m,
    "apply": lambda m: m.apply(lambda part: part.train(False)),
    "slices": lambda m: m if isinstance(m, Model) else m[:1] + m[1:],
    "checkpoint": lambda m: lambda x: checkpoint(m, x, use_reentrant=False),
    "saved tensors on the CPU": lambda m: lambda x: with_saved_tensors_on_cpu(m, x),
    "compile": lambda m: torch.compile(m, fullgraph=True, backend="aot_eager"),
    "compiled in place": lambda m: m.compile(backend="aot_eager") or m,
    "to_empty": lambda m: copy.deepcopy(m).to_empty(device=torch.get_default_device()).requires_grad_().apply(
        lambda part: [p.data.fill_(0.5) for p in part.parameters()] and part
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COPIES)
def test_copies_and_wrappers(name, twins) -> None:
    torch._dynamo.reset()  # which compiles one code object, the fused forward's, a few times at most
    results = []
    for module in twins:
        module.double()
        input = torch.randn(
            3, 4, dtype=torch.float64, generator=torch.Generator(torch.get_default_device()).manual_seed(1)
        )
        copied = COPIES[name](module)
        parameters = list(copied.parameters()) if isinstance(copied, nn.Module) else list(module.parameters())
        results.append(run(copied, input, parameters))
    assert_equal(results[1], results[0])


@pytest.fixture
def process_group(tmp_path, backend) -> Iterator[None]:
    own = "cuda:nccl,cpu:gloo" if torch.get_default_device().type == "cuda" else "gloo"
    torch.distributed.init_process_group(own, init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    gc.collect()  # what holds the group must not be the last to: gloo's threads and Python's lock can block each other
    torch.distributed.destroy_process_group()


def sharded(module: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(module, mesh=init_device_mesh(torch.get_default_device().type, (1,)))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch.distributed is not in this build")
@pytest.mark.parametrize("wrap", [nn.parallel.DistributedDataParallel, sharded], ids=["DDP", "fully_shard"])
def test_distributed_wrappers_on_one_process(wrap, twins, process_group) -> None:
    results = []
    for module in twins:
        wrapped = wrap(module.double())
        input = torch.randn(
            3, 4, dtype=torch.float64, generator=torch.Generator(torch.get_default_device()).manual_seed(1)
        )
        output = wrapped(input)
        output.square().sum().backward()
        gradients = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in wrapped.parameters()]
        results.append([output, *gradients])
    assert_equal(results[1], results[0])


def test_a_summary_by_hooks_lists_the_plain_modules(twins) -> None:
    tables = []
    for module in twins:
        names = {part: name for name, part in module.named_modules()}
        table: list[tuple[Any, ...]] = []

        def hook(part, _, output, names=names, table=table):
            table.append((names[part], tuple(output.shape), isinstance(part, nn.Sequential)))

        handles = [part.register_forward_hook(hook) for part in names]
        module(torch.randn(3, 4))
        for handle in handles:
            handle.remove()
        tables.append(table)
    assert tables[0] == tables[1]
    assert len(tables[0]) == len(list(twins[0].modules()))


def test_a_fused_module_prints_as_before(twins) -> None:
    plain, fused = twins
    assert repr(fused).replace("MLP", "Sequential") == repr(plain)
    assert repr(unfuse(fused)) == repr(plain)


def test_classes_of_every_making_are_fused_and_told_of_no_twin() -> None:
    told: list[str] = []

    class Registered:
        def __init_subclass__(cls, **keywords: Any) -> None:
            told.append(cls.__name__)
            super().__init_subclass__(**keywords)

    class First(nn.Sequential, Registered):
        pass

    class Second(MLP, Registered):
        pass

    class Slotted(nn.Sequential):
        __slots__ = ("note",)

    assert told == ["First", "Second"]
    for kind in (First, Slotted):
        module = fuse(kind(nn.Linear(4, 2), nn.ReLU()))
        assert isinstance(module, kind)
        assert module(torch.randn(3, 4)).shape == (3, 2)
        assert type(unfuse(module)) is kind
    assert told == ["First", "Second"]


def test_skip_init_and_conv_bn_fusion() -> None:
    layer = nn.utils.skip_init(nn.Linear, 4, 2, device=torch.get_default_device())
    nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)
    assert torch.equal(fuse(nn.Sequential(layer, nn.ReLU()))(torch.ones(1, 4)), torch.full((1, 2), 4.0))
    torch.manual_seed(0)
    pair = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)).double().eval()
    merged = fuse(nn.Sequential(nn.utils.fusion.fuse_linear_bn_eval(*pair), nn.ReLU()))
    input = torch.randn(3, 4, dtype=torch.float64)
    assert_equal([merged(input)], [torch.relu(pair(input))])
