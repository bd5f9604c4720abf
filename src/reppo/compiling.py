"""How XLA compiles a run's programs where they run on a CPU, and the precision of what no run's configuration governs.

There a short run waits for the compiler longer than for its own work. Most of that is spent on programs that contain a
simulator, which are hundreds of small loops; XLA's newer emitter of fused loops compiles them more slowly than its older
one (docs/decisions/0016-compiling.md).
On other devices XLA's defaults stay.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax

Options = Mapping[str, bool | int | str]

#: The networks' programs: no fusions by YNNPACK, whose calls cost small matrix products more than they save, and LLVM's
#: first level of optimisation, which is enough for the loops between them.
NETWORKS: Options = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_backend_optimization_level": 1}

#: A program that steps a simulator.
SIMULATOR: Options = {"xla_cpu_use_fusion_emitters": False}

#: A simulator's reset: it is seldom run, but some simulate hundreds of steps in it.
RESET: Options = {**SIMULATOR, "xla_backend_optimization_level": 1}

#: A program that is run once, or does next to nothing.
SELDOM: Options = {**SIMULATOR, "xla_backend_optimization_level": 0}


def full_precision() -> AbstractContextManager[None]:
    """Matrix products in float32 wherever nobody chose otherwise; JAX's own default is TF32 on recent GPUs."""
    return jax.default_matmul_precision("highest")


def compiled(function: Callable[..., Any], options: Options, donate: tuple[int, ...] = ()) -> Callable[..., Any]:
    """``jax.jit`` with these options, as far as this device's compiler has them."""
    return jax.jit(function, donate_argnums=donate, compiler_options=known(options))


def known(options: Options) -> dict[str, bool | int | str]:
    """Those of the options that this version of XLA has, and that ``XLA_FLAGS`` does not set; none on another device than
    a CPU."""
    if jax.default_backend() != "cpu":
        return {}
    flags = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in options.items() if f"--{name}" not in flags and _accepts(name, value)}


@functools.cache
def _accepts(name: str, value: bool | int | str) -> bool:
    """XLA's options come and go, and an unknown one is an error: try it on nothing."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except (jax.errors.JaxRuntimeError, ValueError):
        return False
    return True
