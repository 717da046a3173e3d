"""The training step in JAX: one jitted function with donated buffers, Adam written out."""

from __future__ import annotations

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

    on_gpu = torch.empty(0).is_cuda  # where the benchmark has made the GPU the default device
    place = jax.devices("gpu" if on_gpu else "cpu")[0]
    activations = {
        "relu": jax.nn.relu,
        "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2),
        "tanh": jnp.tanh,
        None: lambda x: x,
    }

    def forward(layers: list[Any], x: Any, hidden: str, output: str | None) -> Any:
        for i, (weight, bias) in enumerate(layers):
            x = activations[hidden if i < len(layers) - 1 else output](x @ weight + bias)
        return x

    def generate(layers: list[Any], noise: Any) -> Any:
        return forward(layers, noise, configuration.activation, configuration.output_activation)

    def d_loss_of(layers: list[Any], real: Any, fake: Any) -> Any:
        logits = forward(layers, jnp.concatenate([real, fake]), "leaky_relu", None)
        return jax.nn.softplus(-logits[: len(real)]).mean() + jax.nn.softplus(logits[len(real) :]).mean()

    def g_loss_of(layers: list[Any], fake: Any) -> Any:
        return jax.nn.softplus(-forward(layers, fake, "leaky_relu", None)).mean()

    def update(layers: list[Any], gradients: list[Any], moments: tuple[Any, Any], count: Any) -> tuple[Any, Any]:
        first = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, moments[0], gradients)
        second = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, moments[1], gradients)
        step_size, correction = LEARNING_RATE / (1 - BETA1**count), jnp.sqrt(1 - BETA2**count)
        moved = jax.tree.map(
            lambda p, m, v: p - step_size * m / (jnp.sqrt(v) / correction + EPS), layers, first, second
        )
        return moved, (first, second)

    def step(state: Any, real: Any, noise: Any) -> Any:
        g_layers, d_layers, g_moments, d_moments, count = state
        count = count + 1
        fake, vjp_of_g = jax.vjp(lambda layers: generate(layers, noise), g_layers)
        d_loss, d_gradients = jax.value_and_grad(d_loss_of)(d_layers, real, fake)
        d_layers, d_moments = update(d_layers, d_gradients, d_moments, count)
        g_loss, fake_gradient = jax.value_and_grad(g_loss_of, argnums=1)(d_layers, fake)
        g_layers, g_moments = update(g_layers, *vjp_of_g(fake_gradient), g_moments, count)
        return (g_layers, d_layers, g_moments, d_moments, count), (d_loss, g_loss)

    def load(tensor: Tensor) -> Any:
        return jax.device_put(tensor.detach().cpu().numpy().copy(), place)

    def layers_of(module: torch.nn.Module) -> list[Any]:
        linears = [layer for layer in module if isinstance(layer, torch.nn.Linear)]
        return [(load(layer.weight.t().contiguous()), load(layer.bias)) for layer in linears]

    def zeros(layers: list[Any]) -> tuple[Any, Any]:
        return jax.tree.map(jnp.zeros_like, layers), jax.tree.map(jnp.zeros_like, layers)

    compiled = jax.jit(step, donate_argnums=0)
    g_layers, d_layers = map(layers_of, networks(configuration))
    state = (g_layers, d_layers, zeros(g_layers), zeros(d_layers), jax.device_put(np.float32(0), place))

    # On a GPU its own choice for float32 products is tf32.
    precision = "tensorfloat32" if torch.get_float32_matmul_precision() == "high" else "float32"

    def run(real: Any, noise: Any) -> Any:
        nonlocal state
        with jax.default_matmul_precision(precision):
            state, losses = compiled(state, real, noise)
        return losses

    def parameters() -> list[Tensor]:
        arrays = [a for layers in state[:2] for weight, bias in layers for a in (weight.T, bias)]
        return [torch.tensor(np.asarray(a)) for a in arrays]

    return Training(run, parameters, load=load, synchronize=lambda: jax.block_until_ready(state))


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
