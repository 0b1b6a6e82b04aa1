"""Programs in another runtime: exported with torch.onnx.export, run by ONNX Runtime."""

import logging
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

DYNAMIC = torch.export.Dim.DYNAMIC


def to_onnx(module, args, dynamic_shapes):
    """A function like the module, run by ONNX Runtime: from tensors to the list of its outputs."""
    onnxruntime = pytest.importorskip("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.onnx"
        with warnings.catch_warnings():
            # What torch warns itself of, inside its exporter.
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(module, args, dynamo=True, dynamic_shapes=dynamic_shapes, verbose=False)
        program.save(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options)
    names = [each.name for each in session.get_inputs()]

    def run(*args):
        arrays = [leaf.numpy() for leaf in tree_leaves(args)]
        return [torch.from_numpy(y) for y in session.run(None, dict(zip(names, arrays, strict=True)))]

    run.operations = [node.op_type for node in program.model.graph]
    return run


def relative_error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())
