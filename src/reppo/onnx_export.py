"""A saved policy as an ONNX graph, for runtimes that know neither Python nor NumPy: ``pip install 'reppo[onnx]'``.

The graph is the whole of `SavedPolicy.__call__`: raw observations in, greedy actions in the environment's own units out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reppo.errors import ConfigError
from reppo.export import SavedPolicy
from reppo.files import replacing
from reppo.nets import NORM_EPSILON
from reppo.normalizer import EPSILON
from reppo.run_directory import check_new

OPSET, IR_VERSION = 17, 8  #: of 2022: what runtimes on robots read, too
BATCH = "batch"  #: name of the free axis


class Tensor(NamedTuple):
    """An input or the output of a graph; its first axis is free."""

    name: str
    dtype: str
    shape: tuple[int, ...]  #: without the free axis

    def __str__(self) -> str:
        return f"{self.name}  {self.dtype} [{', '.join([BATCH, *map(str, self.shape)])}]"


def inputs(policy: SavedPolicy) -> list[Tensor]:
    """What the graph reads: ``obs``, or the entries of a dict observation by their names."""
    if policy.image is not None:
        return [Tensor("obs", policy.image.dtype, policy.image.shape)]
    names = policy.obs_keys or ("obs",)
    return [Tensor(name, "float32", (size,)) for name, size in zip(names, policy.obs_sizes, strict=True)]


def output(policy: SavedPolicy) -> Tensor:
    """What the graph gives: numbers within the environment's bounds, or the integer of a discrete action."""
    name = "next_action" if "action" in policy.obs_keys else "action"  # that of a robot that observes its last one
    return Tensor(name, "int64", ()) if policy.discrete else Tensor(name, "float32", (policy.action_size,))


class Graph:
    """Nodes and constants of a graph, in the order in which they are asked for."""

    def __init__(self, onnx: Any):
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def __call__(self, operator: str, *values: str | np.ndarray, name: str = "", **attributes: Any) -> str:
        """Apply an operator; arrays become constants. Returns the name of its result."""
        name = name or f"reppo/{operator.lower()}{len(self.nodes)}"
        names = [self.constant(value) if isinstance(value, np.ndarray) else value for value in values]
        self.nodes.append(self.onnx.helper.make_node(operator, names, [name], **attributes))
        return name

    def constant(self, value: np.ndarray) -> str:
        name = f"reppo/constant{len(self.constants)}"
        self.constants[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name


def build(policy: SavedPolicy) -> Any:
    """The policy as an ``onnx.ModelProto``.

    Raises:
        ConfigError: where the package onnx is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(f"ONNX files need onnx: pip install 'reppo[onnx]' ({error})") from None

    graph = Graph(onnx)
    x = _features(graph, policy) if policy.image is not None else _normalized(graph, policy)
    _action(graph, policy, _network(graph, policy, x))

    def described(tensor: Tensor) -> Any:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        return onnx.helper.make_tensor_value_info(tensor.name, kind, [BATCH, *tensor.shape])

    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "policy",
            [described(tensor) for tensor in inputs(policy)],
            [described(output(policy))],
            list(graph.constants.values()),
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="reppo",
    )
    low, high = (bound.tolist() for bound in policy.bounds)
    about = {"env": policy.env, "action_low": json.dumps(low), "action_high": json.dumps(high)}
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    return model


def _normalized(graph: Graph, policy: SavedPolicy) -> str:
    names = [tensor.name for tensor in inputs(policy)]
    joined = graph("Concat", *names, axis=-1) if len(names) > 1 else names[0]
    mean, var = policy.arrays["mean"], policy.arrays["var"]
    return graph("Div", graph("Sub", joined, mean), np.sqrt(var + np.float32(EPSILON)))


def _features(graph: Graph, policy: SavedPolicy) -> str:
    """What `reppo.images.ImageEncoder` makes of images. ONNX has channels first; a flat vector of ours has them last."""
    assert policy.image is not None
    x = "obs"
    if policy.image.dtype == "uint8":
        x = graph("Div", graph("Cast", x, to=graph.onnx.TensorProto.FLOAT), np.array(255, np.float32))
    elif policy.image.dtype != "float32":
        x = graph("Cast", x, to=graph.onnx.TensorProto.FLOAT)
    if not policy.image.channels_first:
        x = graph("Transpose", x, perm=[0, 3, 1, 2])
    for i, stride in enumerate(policy.image.strides):
        kernel, bias = policy.arrays[f"image_kernel{i}"], policy.arrays[f"image_bias{i}"]
        x = _silu(graph, graph("Conv", x, kernel.transpose(3, 2, 0, 1), bias, strides=[stride, stride]))
    return graph("Flatten", graph("Transpose", x, perm=[0, 2, 3, 1]), axis=1)


def _network(graph: Graph, policy: SavedPolicy, x: str) -> str:
    """Logits of discrete actions, or means and log standard deviations."""
    arrays, last = policy.arrays, policy.layers - 1
    for i in range(last):
        x = graph("Add", graph("MatMul", x, arrays[f"weight{i}"]), arrays[f"bias{i}"])
        if f"gain{i}" in arrays:
            x = _normed(graph, x, arrays[f"gain{i}"], arrays.get(f"shift{i}"))
        x = graph("Relu", x) if policy.activation == "relu" else _silu(graph, x)
    # Of a Gaussian the greedy action needs the means alone, which are the first half.
    columns = slice(policy.action_size)
    return graph("Add", graph("MatMul", x, arrays[f"weight{last}"][:, columns]), arrays[f"bias{last}"][columns])


def _normed(graph: Graph, x: str, gain: np.ndarray, shift: np.ndarray | None) -> str:
    """RMSNorm, or LayerNorm where there is a shift."""
    if shift is not None:
        x = graph("Sub", x, graph("ReduceMean", x, axes=[-1]))
    mean_square = graph("ReduceMean", graph("Mul", x, x), axes=[-1])
    rms = graph("Sqrt", graph("Add", mean_square, np.array(NORM_EPSILON, np.float32)))
    x = graph("Div", graph("Mul", x, gain), rms)
    return x if shift is None else graph("Add", x, shift)


def _silu(graph: Graph, x: str) -> str:
    """``x * sigmoid(x)``; by way of tanh, which overflows in no runtime."""
    half = graph("Mul", x, np.array(0.5, np.float32))
    return graph("Add", half, graph("Mul", half, graph("Tanh", half)))


def _action(graph: Graph, policy: SavedPolicy, x: str) -> None:
    """The output, from what the network gives."""
    (low, high), name = policy.bounds, output(policy).name
    if policy.discrete:
        graph("Add", graph("ArgMax", x, axis=-1, keepdims=0), low.astype(np.int64), name=name)
    else:
        scaled = graph("Mul", graph("Add", graph("Tanh", x), np.array(1, np.float32)), (high - low) / np.float32(2))
        # Rounding would leave the bounds by a last digit.
        graph("Max", graph("Min", graph("Add", scaled, low), high), low, name=name)


def save(path: Path, policy: SavedPolicy) -> int:
    """Write the policy as a new ONNX file, and return its size in bytes.

    Raises:
        ConfigError: where the file exists, or the package onnx is missing.
    """
    check_new(path)
    written = build(policy).SerializeToString(deterministic=True)
    with replacing(path) as file:
        file.write(written)
    return len(written)
