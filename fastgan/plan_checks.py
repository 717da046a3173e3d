"""What the engine has no steps for: of the process, of the precision, of several processes, of the penalties."""

from __future__ import annotations

import torch

from fastgan import backend, layers, plan_layers
from fastgan.plan_layers import CannotPlan, Layer
from fastgan.processes import Processes
from fastgan.step_options import DiscriminatorOptions

# What the engine knows of the kinds of precision; any other is composed.
IS_BF16 = {"fp32": False, "bf16": True}


def check_process(options: DiscriminatorOptions) -> None:
    """Raise CannotPlan where no step of this process can be one native call, or none of this precision."""
    if backend.current_backend() == "reference":
        raise CannotPlan("the backend is the reference")
    if backend.module is None:
        raise CannotPlan(backend.missing_reason)
    if any(layers.global_hooks()):
        raise CannotPlan("all modules have hooks")
    patched = layers.patched_function()
    if patched is not None:
        raise CannotPlan(f"{patched} is not torch's own")
    if options.precision not in IS_BF16:
        raise CannotPlan(f"precision is {options.precision}")


def check_processes(processes: Processes, networks: list[list[Layer]], device: torch.device) -> None:
    """Raise CannotPlan where the engine has no steps of several processes."""
    if not has_cpu_kernels(device):
        raise CannotPlan("several processes take each step, which the engine has on the CPU alone")
    batch_norm = next((layer for network in networks for layer in network if layer.uses_batch_statistics()), None)
    if processes.synchronises and batch_norm is not None:
        raise CannotPlan(f"the statistics of {batch_norm.path} are of several processes' samples")


def check_precision(precision: str, dtype: torch.dtype, device: torch.device) -> None:
    """Raise CannotPlan where the engine has no products of this precision there."""
    if not IS_BF16[precision]:
        return
    if dtype is not torch.float32:
        raise CannotPlan(f"precision is bf16 and the parameters are {str(dtype).removeprefix('torch.')}")
    if not backend.module.has_bf16_step(device.type == "cpu"):
        raise CannotPlan("precision='bf16' on a CPU needs AVX-512 BF16 or AMX, and neither is available")


def has_cpu_kernels(device: torch.device) -> bool:
    """Whether steps there run on csrc/cpu/; in the test build those of csrc/cuda/ run on the CPU."""
    return device.type == "cpu" and hasattr(backend.module.StepEngine, "set_timed")


def lazy_penalties(options: DiscriminatorOptions) -> str:
    """Those that are lazy, in words."""
    names = [name for name, weight in (("R1", options.r1_gamma), ("R2", options.r2_gamma)) if weight > 0]
    return f"{' and '.join(names)} penalt{'ies' if len(names) > 1 else 'y'}" if names else ""


def unpenalized(options: DiscriminatorOptions, discriminator: list[Layer], device: torch.device) -> str:
    """Why the engine has no penalty on such a discriminator; empty where it has."""
    if any(layer.kind == plan_layers.BATCH_NORM for layer in discriminator):
        return "D has a BatchNorm1d"
    return "precision is bf16 on a CPU" if IS_BF16[options.precision] and has_cpu_kernels(device) else ""


def check_penalties(options: DiscriminatorOptions, discriminator: list[Layer], device: torch.device) -> bool:
    """Whether the engine runs all penalties.

    Raises:
        CannotPlan: it does not, and every step has one.
    """
    reason = unpenalized(options, discriminator, device)
    lazy = lazy_penalties(options)
    if reason and options.gp_weight > 0:
        raise CannotPlan(f"every step has the WGAN-GP penalty (gp_weight is over 0) and {reason}")
    if reason and lazy and options.r1_every == 1:
        raise CannotPlan(f"every step has the {lazy} (r1_every is 1) and {reason}")
    return not reason
