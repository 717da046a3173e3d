"""The training step in JAX: one jitted function with donated buffers, Adam written out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .configurations import Configuration
from .training import BETA1, BETA2, EPS, LEARNING_RATE, Training, networks


def unavailable_reason(device: str) -> str | None:
    """Why JAX cannot be measured here on `cpu` or `cuda`, in a sentence; None where it can."""
    try:
        import jax
    except ImportError:
        return "jax is not installed (pip install jax)"
    if device == "cuda":
        return None if jax.default_backend() == "gpu" else f"JAX {jax.__version__} finds no GPU"
    threads, cores = torch.get_num_threads(), _cores()
    if threads != cores:
        return f"JAX runs on all {cores} cores and cannot be held to PyTorch's number of threads, {threads}"
    return None


def train(configuration: Configuration) -> Training:
    """Weights (in, out), as JAX users keep them, and real and fake as one batch: the fastest of the forms tried."""
    import jax
    import jax.numpy as jnp

    def generate(layers: list[Any], noise: Any) -> Any:
        return forward(layers, noise, configuration.activation, configuration.output_activation)

    def d_loss_of(layers: list[Any], real: Any, fake: Any) -> Any:
        logits = forward(layers, jnp.concatenate([real, fake]), "leaky_relu", None)
        return jax.nn.softplus(-logits[: len(real)]).mean() + jax.nn.softplus(logits[len(real) :]).mean()

    def g_loss_of(layers: list[Any], fake: Any) -> Any:
        return jax.nn.softplus(-forward(layers, fake, "leaky_relu", None)).mean()

    def step(state: Any, real: Any, noise: Any) -> Any:
        g_layers, d_layers, g_moments, d_moments, count = state
        count = count + 1
        fake, vjp_of_g = jax.vjp(lambda layers: generate(layers, noise), g_layers)
        d_loss, d_gradients = jax.value_and_grad(d_loss_of)(d_layers, real, fake)
        d_layers, d_moments = update(d_layers, d_gradients, d_moments, count)
        g_loss, fake_gradient = jax.value_and_grad(g_loss_of, argnums=1)(d_layers, fake)
        g_layers, g_moments = update(g_layers, *vjp_of_g(fake_gradient), g_moments, count)
        return (g_layers, d_layers, g_moments, d_moments, count), (d_loss, g_loss)

    compiled = jax.jit(step, donate_argnums=0)
    g_layers, d_layers = map(layers_of, networks(configuration))
    state = (g_layers, d_layers, zeros(g_layers), zeros(d_layers), load(torch.zeros(())))

    def run(real: Any, noise: Any) -> Any:
        nonlocal state
        with precision():
            state, losses = compiled(state, real, noise)
        return losses

    return Training(run, lambda: parameters(state[:2]), load=load, synchronize=lambda: jax.block_until_ready(state))


def forward(layers: list[Any], x: Any, hidden: str, output: str | None) -> Any:
    """A network's output; `layers` are pairs of weight (in, out) and bias."""
    import jax

    activations = {
        "relu": jax.nn.relu,
        "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2),
        "tanh": jax.numpy.tanh,
        None: lambda x: x,
    }
    for i, (weight, bias) in enumerate(layers):
        x = activations[hidden if i < len(layers) - 1 else output](x @ weight + bias)
    return x


def update(layers: list[Any], gradients: list[Any], moments: tuple[Any, Any], count: Any) -> tuple[Any, Any]:
    """Layers and moments after a step of Adam, the `count`th."""
    import jax
    import jax.numpy as jnp

    first = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, moments[0], gradients)
    second = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, moments[1], gradients)
    step_size, correction = LEARNING_RATE / (1 - BETA1**count), jnp.sqrt(1 - BETA2**count)
    moved = jax.tree.map(lambda p, m, v: p - step_size * m / (jnp.sqrt(v) / correction + EPS), layers, first, second)
    return moved, (first, second)


def load(tensor: Tensor) -> Any:
    """The tensor as an array of JAX, on the GPU where the benchmark has made that the default device."""
    import jax

    place = jax.devices("gpu" if torch.empty(0).is_cuda else "cpu")[0]
    return jax.device_put(tensor.detach().cpu().numpy().copy(), place)


def layers_of(module: torch.nn.Module) -> list[Any]:
    """Weights, as (in, out), and biases of a Sequential."""
    linears = [layer for layer in module if isinstance(layer, torch.nn.Linear)]
    return [(load(layer.weight.t().contiguous()), load(layer.bias)) for layer in linears]


def zeros(layers: list[Any]) -> tuple[Any, Any]:
    """Adam's moments at the start."""
    import jax

    return jax.tree.map(jax.numpy.zeros_like, layers), jax.tree.map(jax.numpy.zeros_like, layers)


def parameters(networks: Iterable[list[Any]]) -> list[Tensor]:
    """Of all layers, weights (out, in)."""
    arrays = [a for layers in networks for weight, bias in layers for a in (weight.T, bias)]
    return [torch.tensor(np.asarray(a)) for a in arrays]


def precision() -> Any:
    """In which JAX multiplies as PyTorch is told to: on a GPU its own choice for float32 products is tf32."""
    import jax

    is_tf32 = torch.get_float32_matmul_precision() == "high"
    return jax.default_matmul_precision("tensorfloat32" if is_tf32 else "float32")


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
