"""What a user may do to networks, optimizers and a step between two steps, and how three ways of training take it.

Each surgery is a function of a trainer: TrainStep with the engine, TrainStep without it, or the plain PyTorch loop.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from plain_step import Plain
from torch import Tensor, nn

from fastgan import TrainStep

LATENT, HIDDEN, DATA, BATCH = 3, 16, 4, 8
STEPS = 3

Surgery = Callable[[Any], None]
SURGERIES: dict[str, Surgery] = {}


def surgery(function: Surgery) -> Surgery:
    """Register one under its own name."""
    SURGERIES[function.__name__] = function
    return function


def networks(dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, nn.Sequential]:
    """With every kind of layer that the engine has."""
    torch.manual_seed(1)
    generator = nn.Sequential(
        nn.Linear(LATENT, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DATA), nn.Tanh()
    )
    discriminator = nn.Sequential(nn.Linear(DATA, HIDDEN), nn.LeakyReLU(0.2), nn.Linear(HIDDEN, 1))
    return generator.to(dtype), discriminator.to(dtype)


# Before BatchNorm a bias has no gradient but rounding, which an eps of 1e-8 would scale up to whole steps.
adam = functools.partial(torch.optim.Adam, eps=1e-4)


def trainer(way: str, make: Callable[..., torch.optim.Optimizer] = adam, **options: Any) -> Any:
    """A trainer of one of the three ways: `engine`, `composed` or `plain`."""
    generator, discriminator = options.pop("networks", networks)()
    average = copy.deepcopy(generator).requires_grad_(False)
    optimizers = make(generator.parameters(), lr=1e-2), make(discriminator.parameters(), lr=1e-2)
    options = {"ema": average, "ema_decay": 0.9, **options}
    if way == "plain":
        return Plain(generator, discriminator, *optimizers, **options)
    return TrainStep(generator, discriminator, *optimizers, engine=way == "engine", **options)


def run(trained: Any, steps: int, seed: int) -> None:
    draw = torch.Generator(torch.get_default_device()).manual_seed(seed)
    dtype = next(trained.generator.parameters()).dtype
    for _ in range(steps):
        real = torch.randn(BATCH, DATA, generator=draw, dtype=dtype)
        noise = torch.randn(2, BATCH, LATENT, generator=draw, dtype=dtype)
        trained.step(real, None, noise)


def outcome(way: str, operate: Surgery, before: bool, **options: Any) -> tuple[list[Tensor], str]:
    """All that training changes after a surgery before the first step, or between two; and the error, if any."""
    trained = trainer(way, **options)
    error = ""
    if not before:
        run(trained, STEPS, 5)
    try:
        operate(trained)
        run(trained, STEPS, 6)
    except Exception as raised:  # whatever it is, each way must raise the same
        error = f"{type(raised).__name__}: {raised}"
    modules = [m for m in (trained.generator, trained.discriminator, trained.ema) if m is not None]
    tensors = [t for m in modules for t in m.state_dict().values()]
    for optimizer in (trained.g_optimizer, trained.d_optimizer):
        tensors += [torch.as_tensor(v) for state in optimizer.state.values() for v in state.values()]
    return [t.detach().clone() for t in tensors], error


# Parameters and buffers


@surgery
def weight_is_replaced(step: Any) -> None:
    step.generator[0].weight = nn.Parameter(step.generator[0].weight.detach() * 2)
    step.g_optimizer.param_groups[0]["params"][0] = step.generator[0].weight


@surgery
def weight_is_replaced_and_in_no_optimizer(step: Any) -> None:
    step.discriminator[0].weight = nn.Parameter(step.discriminator[0].weight.detach() * 2)


@surgery
def units_are_pruned(step: Any) -> None:
    g = step.generator
    g[0].weight.data, g[0].bias.data = g[0].weight.data[:8].clone(), g[0].bias.data[:8].clone()
    g[1] = nn.Identity()
    g[3].weight.data = g[3].weight.data[:, :8].clone()
    step.g_optimizer.state.clear()
    step.g_optimizer.param_groups[0]["params"] = list(g.parameters())
    step.ema = None


@surgery
def units_are_added(step: Any) -> None:
    d = step.discriminator
    torch.manual_seed(2)
    d[0].weight.data, d[0].bias.data = torch.randn(32, DATA).double(), torch.randn(32).double()
    d[2].weight.data = torch.randn(1, 32).double()
    step.d_optimizer.state.clear()


@surgery
def bias_of_one(step: Any) -> None:
    step.discriminator[0].bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    step.d_optimizer.param_groups[0]["params"][1] = step.discriminator[0].bias


@surgery
def bias_is_taken_away(step: Any) -> None:
    step.discriminator[0].bias = None


@surgery
def weight_is_transposed_in_place(step: Any) -> None:
    weight = step.generator[3].weight
    weight.data = weight.data.t().contiguous().t()


@surgery
def weight_is_moved(step: Any) -> None:
    for parameter in step.generator.parameters():
        parameter.data = parameter.data.clone()


@surgery
def weights_share_memory(step: Any) -> None:
    flat = (
        torch.randn(
            HIDDEN * LATENT + 8,
            dtype=torch.float64,
            generator=torch.Generator(torch.get_default_device()).manual_seed(3),
        )
        / 8
    )
    step.generator[0].weight.data = flat[: HIDDEN * LATENT].view(HIDDEN, LATENT)
    step.generator[0].bias.data = flat[4 : 4 + HIDDEN]


@surgery
def weights_are_views_of_one_buffer(step: Any) -> None:
    parameters = list(step.generator.parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters])
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.data = part.view_as(parameter)


@surgery
def bias_is_expanded(step: Any) -> None:
    step.discriminator[0].bias.data = torch.zeros(1, dtype=torch.float64).expand(HIDDEN)


@surgery
def weight_is_frozen(step: Any) -> None:
    step.generator[0].weight.requires_grad_(False)


@surgery
def average_is_the_generators_memory(step: Any) -> None:
    for average, current in zip(step.ema.parameters(), step.generator.parameters(), strict=True):
        average.data = current.data


@surgery
def parameters_are_tied(step: Any) -> None:
    step.discriminator.insert(2, nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64))
    step.discriminator.insert(3, nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64))
    for layer in step.discriminator[2:4]:
        nn.init.eye_(layer.weight), nn.init.zeros_(layer.bias)
    step.discriminator[3].weight = step.discriminator[2].weight
    step.d_optimizer.add_param_group({"params": list(step.discriminator[2].parameters())})


@surgery
def weight_is_halved_and_back(step: Any) -> None:
    step.generator.float()
    step.generator.double()


@surgery
def parameter_has_a_class_of_its_own(step: Any) -> None:
    class Own(nn.Parameter):
        @classmethod
        def __torch_function__(cls, function: Any, kinds: Any, arguments: Any = (), options: Any = None) -> Any:
            with torch._C.DisableTorchFunctionSubclass():
                result = function(*arguments, **(options or {}))
                return 2 * result if function is F.linear else result

    step.discriminator[0].weight.__class__ = Own


@surgery
def extra_parameter(step: Any) -> None:
    step.discriminator[0].temperature = nn.Parameter(torch.ones(1, dtype=torch.float64))


@surgery
def extra_buffer(step: Any) -> None:
    step.discriminator[1].register_buffer("seen", torch.ones(1, dtype=torch.float64))


@surgery
def extra_module(step: Any) -> None:
    step.discriminator[1].inner = nn.Linear(2, 2, dtype=torch.float64)


@surgery
def weight_becomes_an_attribute(step: Any) -> None:
    weight = step.discriminator[0].weight
    del step.discriminator[0].weight
    step.discriminator[0].__dict__["weight"] = weight.detach() * 2


# Forward, class, children


@surgery
def forward_of_a_layer(step: Any) -> None:
    layer = step.generator[0]
    layer.forward = types.MethodType(lambda self, x: 2 * F.linear(x, self.weight, self.bias), layer)


@surgery
def forward_of_a_network(step: Any) -> None:
    own = step.discriminator
    own.forward = types.MethodType(lambda self, x: 2 * nn.Sequential.forward(self, x), own)


@surgery
def call_of_a_layer(step: Any) -> None:
    step.discriminator[1]._call_impl = lambda x: x * 3


@surgery
def class_of_an_activation(step: Any) -> None:
    step.generator[2].__class__ = nn.Tanh


@surgery
def subclass_with_a_forward(step: Any) -> None:
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    step.generator[3].__class__ = Scaled


@surgery
def sequential_in_its_own_order(step: Any) -> None:
    class Backwards(nn.Sequential):
        def __iter__(self) -> Any:
            return reversed(list(self._modules.values()))

    torch.manual_seed(3)
    step.generator[2] = Backwards(nn.Linear(HIDDEN, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN)).double()
    step.ema = None


@surgery
def attribute_of_its_own_class(step: Any) -> None:
    class Doubled(nn.Linear):
        def __getattr__(self, name: str) -> Any:
            value = super().__getattr__(name)
            return value * 2 if name == "weight" else value

    step.generator[3].__class__ = Doubled


@surgery
def child_is_replaced(step: Any) -> None:
    step.generator[2] = nn.Tanh()


@surgery
def child_is_appended(step: Any) -> None:
    step.generator.append(nn.Tanh())


@surgery
def grandchild_is_replaced(step: Any) -> None:
    step.discriminator[1] = nn.Sequential(nn.Tanh(), nn.Sequential(nn.ReLU()))
    run(step, 1, 9)
    step.discriminator[1][1][0] = nn.Identity()


@surgery
def slope_is_another(step: Any) -> None:
    step.discriminator[1].negative_slope = 0.7


@surgery
def evaluation(step: Any) -> None:
    step.generator.eval()


@surgery
def statistics_are_not_tracked(step: Any) -> None:
    step.generator[1].track_running_stats = False


@surgery
def statistics_are_replaced(step: Any) -> None:
    step.generator[1].running_mean = torch.ones(HIDDEN, dtype=torch.float64)


@surgery
def statistics_are_taken_away(step: Any) -> None:
    step.generator[1].running_mean = step.generator[1].running_var = None
    step.ema = None


@surgery
def counter_is_cast(step: Any) -> None:
    for module in (step.generator, step.ema):
        module[1].num_batches_tracked = module[1].num_batches_tracked.double()


@surgery
def momentum_is_cumulative(step: Any) -> None:
    step.generator[1].momentum = None


@surgery
def attribute_of_no_meaning(step: Any) -> None:
    step.generator.note, step.generator[0].in_features = "read me", 77
