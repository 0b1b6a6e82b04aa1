"""From a graph's module to an ONNX model in memory."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from milkweed._version import __version__
from milkweed.convert.experts import experts_apart
from milkweed.convert.hub.conversion_progress import FolderError
from milkweed.convert.hub.inputs import first_line
from milkweed.convert.input_moments import evaluating
from milkweed.convert.onnx.graph import Graph

OLDEST_OPSET, NEWEST_OPSET, OPSET = 18, 23, 20
# Constants that come out larger than what they are made of stay computed, beyond so many numbers.
LARGEST_GROWTH = 8192


def trace(graph: Graph, name: str, opset: int) -> Any:
    """Make the ONNX model of a graph; a FolderError names what cannot be exported."""
    inputs = graph.example(graph.traced())
    free = {axis: _axis(axis, graph.limits.get(axis)) for axis in graph.axes}
    shapes = tuple(
        {place: free[axis] for place, axis in enumerate(each.shape) if isinstance(axis, str)}
        for each in graph.inputs.values()
    )
    try:
        with evaluating(graph.module), plain_forms(graph.module), quiet_torch():
            program = torch.onnx.export(
                graph.module,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=(shapes,),  # of one argument, *inputs
                verbose=False,
            )
    except Exception as error:  # torch and its exporter have many kinds
        raise FolderError(f"{name} cannot be exported: {reason(error)}") from error
    assert program is not None
    model = program.model
    _check_free(graph, model, name)
    return _tidied(model)


def _check_free(graph: Graph, model: Any, name: str) -> None:
    """Refuse a program in which an axis came out with the size that was traced."""
    for each, made in zip(graph.inputs.values(), model.graph.inputs, strict=True):
        for axis, size in zip(each.shape, made.shape, strict=True):
            if isinstance(axis, str) and isinstance(size, int):
                raise FolderError(f"{name} cannot be exported: {_fixes(axis)}")


def _fixes(axis: str) -> str:
    return f"its forward pass computes with the size of {axis} in a way that fixes it; fix the length with length=N"


def _axis(name: str, limit: int | None) -> Any:
    return torch.export.Dim(name) if limit is None else torch.export.Dim(name, max=limit)


def _tidied(model: Any) -> Any:
    """Fold what is computed from parameters alone, and forget where on this machine the model was made."""
    from onnx_ir.passes import common
    from onnxscript import optimizer

    with quiet_torch():
        optimizer.fold_constants(model, input_size_limit=2**62, output_size_limit=LARGEST_GROWTH)
        for each in (common.RemoveUnusedNodesPass(), common.ClearMetadataAndDocStringPass()):
            each(model)
    model.producer_name, model.producer_version = "milkweed", __version__
    return model


@contextlib.contextmanager
def plain_forms(module: nn.Module) -> Iterator[None]:
    """Let models of transformers compute in forms that other runtimes have.

    Attention written out has fewer nodes there than torch's fused form has. Torch's product of groups, for experts,
    does not exist there; split into linear layers, experts read the tokens that are theirs.
    """
    models: list[Any] = [each for each in module.modules() if hasattr(each, "set_attn_implementation")]
    before = [each.config._attn_implementation for each in models]
    try:
        for each in models:
            with contextlib.suppress(ValueError):  # of those that have one form alone
                each.set_attn_implementation("eager")
        with experts_apart(module):
            yield
    finally:
        for each, implementation in zip(models, before, strict=True):
            each.config._attn_implementation = implementation


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep the exporter's own reports to itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def reason(error: BaseException) -> str:
    """Why an export failed, in a line that names the operation, from what torch says over pages."""
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__
    text = "\n".join(str(each) for each in chain)
    operation = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", text)
    if operation:
        return f"ONNX has nothing for the operation {operation[1].replace('.', '::', 1)}"
    bound = re.search(r"You marked (\S+) as dynamic.*specialized.*?constant \((\d+)\)", text, re.DOTALL)
    fixed = re.search(r"Not all values of (\w+).*are valid", text)
    if bound or fixed:
        return _fixes(fixed[1] if fixed else "an axis")
    return f"{type(chain[-1]).__name__}: {first_line(chain[-1])}"
