"""Surgery on the parameters and buffers of the networks."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, parametrize, prune, vector_to_parameters
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from .statements import WORLD, NotHere, pick, statement, values, values_like
from .worlds import World


class OwnParameter(nn.Parameter):
    """Somebody's own kind of parameter."""


def replace_in_optimizers(world: World, old: Tensor, new: Tensor, with_state: bool) -> None:
    """The optimizers hold `new` where they held `old`."""
    for _, optimizer in world.optimizers:
        for group in optimizer.param_groups:
            for i, held in enumerate(group["params"]):
                if held is old:
                    group["params"][i] = new
        if old in optimizer.state:
            state = optimizer.state.pop(old)
            if with_state:
                optimizer.state[new] = state


def slot(world: World, r: random.Random) -> tuple[str, Any, str, Tensor]:
    path, module, name = pick(r, world.slots())
    return path, module, name, module._parameters[name]


def layout(r: random.Random, new: Tensor) -> tuple[str, Tensor]:
    """The same values laid out otherwise."""
    how = r.choice(["as it is", "transposed", "strided", "part of a larger one", "expanded", "negative bit"])
    if how == "transposed" and new.dim() == 2:
        new = new.t().contiguous().t()
    elif how == "strided" and new.dim():
        wide = torch.zeros(*new.shape, 2, dtype=new.dtype)
        wide[..., 0] = new
        new = wide[..., 0]
    elif how == "part of a larger one":
        new = torch.cat([torch.ones(3, dtype=new.dtype), new.flatten(), torch.ones(2, dtype=new.dtype)])[
            3 : 3 + new.numel()
        ].view(new.shape)
    elif how == "expanded" and new.dim():
        new = new[:1].expand(new.shape)
    elif how == "negative bit":
        new = torch._neg_view(-new)
    return how, new


@statement(WORLD)
def replace_parameter(world: World, r: random.Random) -> str:
    path, module, name, old = slot(world, r)
    kind = r.choice([nn.Parameter, nn.Parameter, nn.Parameter, OwnParameter])
    new = kind(values_like(r, old), requires_grad=r.random() < 0.9)
    known = r.random() < 0.6
    module._parameters[name] = new
    if known:
        replace_in_optimizers(world, old, new, r.random() < 0.5)
    return f"{path} = {kind.__name__}(...), {'known' if known else 'unknown'} to its optimizer"


@statement(WORLD)
def set_data(world: World, r: random.Random) -> str:
    path, _, _, parameter = slot(world, r)
    how, new = layout(r, values_like(r, parameter))
    parameter.data = new
    return f"{path}.data = ..., {how}"


@statement(WORLD)
def set_data_of_another_shape(world: World, r: random.Random) -> str:
    path, _, name, parameter = slot(world, r)
    shapes: list[tuple[int, ...]] = [(1,), (*parameter.shape, 1), (1, *parameter.shape)]
    if parameter.dim():
        shapes += [(parameter.shape[0] + 1, *parameter.shape[1:]), (0, *parameter.shape[1:])]
    shape = (1,) if name == "bias" and r.random() < 0.5 else r.choice(shapes)
    if r.random() < 0.5:
        parameter.data = values(r, *shape)
        return f"{path}.data of shape {shape}"
    module = next(m for p, m, n in world.slots() if f"{p}" == path)
    module._parameters[name] = nn.Parameter(values(r, *shape))
    replace_in_optimizers(world, parameter, module._parameters[name], False)
    return f"{path} replaced by one of shape {shape}"


@statement(WORLD)
def no_bias(world: World, r: random.Random) -> str:
    path, module = pick(r, [(p, m) for p, m in world.modules() if "bias" in m._parameters])
    if module._parameters["bias"] is None:
        width = module.weight.shape[0] if module._parameters.get("weight") is not None else module.num_features
        module.bias = nn.Parameter(values(r, width))
        r.choice(world.optimizers)[1].add_param_group({"params": [module.bias]})
        return f"{path}.bias made"
    module.bias = None
    return f"{path}.bias = None"


@statement(WORLD)
def resize(world: World, r: random.Random) -> str:
    """Units pruned or added between two Linears, as a user does it: new Parameters, attributes perhaps not."""
    net_name, net = r.choice(world.networks)
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.BatchNorm1d))]
    linears = [i for i, m in enumerate(layers) if isinstance(m, nn.Linear)]
    at = pick(r, linears[:-1])
    until = linears[linears.index(at) + 1]
    width = layers[at].weight.shape[0]
    new = pick(r, [w for w in (1, width - 1, width + 3) if w > 0 and w != width])
    honest, in_place = r.random() < 0.4, r.random() < 0.3

    def change(module: nn.Module, name: str, *shape: int) -> None:
        old = module._parameters.get(name)
        if old is None:
            return
        data = values(r, *shape)
        if in_place:
            old.data = data
            return
        module._parameters[name] = nn.Parameter(data, requires_grad=old.requires_grad)
        replace_in_optimizers(world, old, module._parameters[name], False)

    change(layers[at], "weight", new, layers[at].weight.shape[1])
    change(layers[at], "bias", new)
    change(layers[until], "weight", layers[until].weight.shape[0], new)
    for module in layers[at + 1 : until]:
        change(module, "weight", new), change(module, "bias", new)
        for name in ("running_mean", "running_var"):
            if module._buffers.get(name) is not None:
                module._buffers[name] = values(r, new).abs() + 0.1
        if honest:
            module.num_features = new
    if honest:
        layers[at].out_features = layers[until].in_features = new
    for _, optimizer in world.optimizers:
        if in_place:
            optimizer.state.clear()
    return (
        f"units after {net_name}'s Linear {linears.index(at)}: {width} -> {new}, "
        f"{'.data' if in_place else 'new Parameters'}, attributes {'set' if honest else 'stale'}"
    )


@statement(WORLD)
def tie(world: World, r: random.Random) -> str:
    path, module, name, old = slot(world, r)
    other_path, other, other_name = pick(
        r, [s for s in world.slots() if s[1]._parameters[s[2]].shape == old.shape and s[0] != path]
    )
    theirs = other._parameters[other_name]
    if r.random() < 0.5:
        module._parameters[name] = theirs
        return f"{path} is {other_path}"
    old.data = theirs.data
    return f"{path} shares the memory of {other_path}"


@statement(WORLD)
def freeze(world: World, r: random.Random) -> str:
    """One Parameter, or all of a module, or the other way round."""
    if r.random() < 0.6:
        path, _, _, parameter = slot(world, r)
        parameter.requires_grad_(not parameter.requires_grad)
        return f"{path}.requires_grad = {parameter.requires_grad}"
    path, module = pick(r, world.modules())
    to = r.random() < 0.6
    module.requires_grad_(to)
    return f"{path}.requires_grad_({to})"


@statement(WORLD)
def cast(world: World, r: random.Random) -> str:
    """To another dtype, and perhaps back."""
    dtype = r.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    back = r.random() < 0.5
    what = r.choice(["networks", "networks by type()", "one", "one's data"])
    if what == "one's data":
        path, _, _, parameter = slot(world, r)
        parameter.data = parameter.data.to(dtype)
        if back:
            parameter.data = parameter.data.double()
        return f"{path}.data to {dtype}{' and back' if back else ''}"
    chosen = world.networks if what != "one" else [r.choice(world.networks)]
    if world.trainer.ema is not None and r.random() < 0.7:
        chosen = [*chosen, ("EMA", world.trainer.ema)]
    if any(p.dtype != torch.float64 for _, net in chosen for p in net.parameters()):
        dtype, back = torch.float64, False
    for _, net in chosen:
        for to in (dtype, *([torch.float64] if back else [])):
            net.type(to) if "type" in what else net.to(to)
    return f"{what} ({', '.join(name for name, _ in chosen)}) to {dtype}{' and back' if back else ''}"


@statement(WORLD)
def load_networks(world: World, r: random.Random) -> str:
    net_name, net = r.choice(world.networks)
    assign = r.random() < 0.5
    state = {key: values_like(r, value) for key, value in net.state_dict().items()}
    net.load_state_dict(state, assign=assign)
    return f"{net_name}.load_state_dict(..., assign={assign})"


@statement(WORLD)
def in_place(world: World, r: random.Random) -> str:
    path, _, _, parameter = slot(world, r)
    how = r.choice(["copy_", "data.copy_", "clamp_", "neg_", "fill nan", "fill inf", "normal_"])
    with torch.no_grad():
        if how == "copy_":
            parameter.copy_(values_like(r, parameter))
        elif how == "data.copy_":
            parameter.data.copy_(values_like(r, parameter))
        elif how == "clamp_":
            parameter.data.clamp_(-0.1, 0.1)
        elif how == "neg_":
            parameter.neg_()
        elif how == "normal_":
            nn.init.normal_(parameter, std=0.3)
        elif parameter.numel():
            parameter.view(-1)[0] = float(how.split()[1])
    return f"{path} {how}"


@statement(WORLD)
def swap_tensors(world: World, r: random.Random) -> str:
    path, _, _, parameter = slot(world, r)
    torch.utils.swap_tensors(parameter, nn.Parameter(values_like(r, parameter)))
    return f"swap_tensors({path}, ...)"


@statement(WORLD)
def from_vector(world: World, r: random.Random) -> str:
    net_name, net = r.choice(world.networks)
    vector = parameters_to_vector(net.parameters()).detach()
    vector_to_parameters(vector * 0.9, net.parameters())
    return f"vector_to_parameters(..., {net_name})"


@statement(WORLD)
def set_grad(world: World, r: random.Random) -> str:
    path, _, _, parameter = slot(world, r)
    parameter.grad = torch.ones_like(parameter)
    return f"{path}.grad = ones"


@statement(WORLD)
def inference_parameter(world: World, r: random.Random) -> str:
    path, module, name, old = slot(world, r)
    with torch.inference_mode():
        module._parameters[name] = nn.Parameter(values_like(r, old), requires_grad=r.random() < 0.5)
    replace_in_optimizers(world, old, module._parameters[name], False)
    return f"{path} made under inference_mode"


@statement(WORLD)
def plain_tensor(world: World, r: random.Random) -> str:
    path, module, name, old = slot(world, r)
    delattr(module, name)
    setattr(module, name, values_like(r, old).requires_grad_(r.random() < 0.5))
    return f"{path} = a plain tensor"


@statement(WORLD)
def parametrized(world: World, r: random.Random) -> str:
    path, module = pick(r, [(p, m) for p, m in world.modules() if isinstance(m, nn.Linear)])
    if parametrize.is_parametrized(module):
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=r.random() < 0.5)
        return f"remove_parametrizations({path})"
    how = r.choice([spectral_norm, weight_norm])
    how(module)
    return f"{how.__name__}({path})"


@statement(WORLD)
def pruned(world: World, r: random.Random) -> str:
    path, module = pick(r, [(p, m) for p, m in world.modules() if isinstance(m, nn.Linear)])
    if prune.is_pruned(module):
        prune.remove(module, "weight")
        return f"prune.remove({path})"
    prune.l1_unstructured(module, "weight", 0.3)
    return f"prune.l1_unstructured({path})"


@statement(WORLD)
def set_buffer(world: World, r: random.Random) -> str:
    held = [(p, m, n) for p, m in world.modules() for n in m._buffers]
    path, module, name = pick(r, held)
    old = module._buffers[name]
    if old is None:
        module._buffers[name] = torch.ones(module.num_features, dtype=torch.float64) if "running" in name else None
        return f"{path}.{name} made"
    how = r.choice(["new", "in place", "None", "float32", "data", "strided", "int32", "shape (1,)", "shared"])
    if how == "new":
        module._buffers[name] = values_like(r, old)
    elif how == "in place":
        old.copy_(values_like(r, old))
    elif how == "None":
        module._buffers[name] = None
    elif how in ("float32", "int32"):
        module._buffers[name] = old.to(getattr(torch, how))
    elif how == "data":
        old.data = values_like(r, old)
    elif how == "strided" and old.dim():
        module._buffers[name] = torch.stack([values_like(r, old)] * 2, 1)[:, 0]
    elif how == "shape (1,)":
        module._buffers[name] = values(r, 1).abs().to(old.dtype)
    elif how == "shared":
        other = pick(r, [m._buffers[n] for _, m, n in held if m._buffers[n] is not None])
        module._buffers[name] = other
    else:
        raise NotHere
    return f"{path}.{name}: {how}"
