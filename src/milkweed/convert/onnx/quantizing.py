"""Weights of a file in 8 bits, by ONNX Runtime's quantiser."""

from __future__ import annotations

import tempfile
from pathlib import Path

from milkweed.convert.hub.conversion_progress import FolderError
from milkweed.convert.hub.inputs import first_line
from milkweed.convert.onnx.tracing import quiet_torch
from milkweed.convert.onnx.writing import LARGEST_SINGLE_FILE, save, size_of


def quantize(file: Path, out: Path, target: Path) -> None:
    """Write a copy of a file whose weights are 8-bit integers, which is then moved to the target.

    Activations are rounded while it runs. Weights that the graph computes from parameters would stay as they are, so
    they must be folded before.
    """
    import onnx_ir
    from onnxruntime.quantization import QuantType, quantize_dynamic

    large = size_of(file) > LARGEST_SINGLE_FILE
    try:
        with tempfile.TemporaryDirectory(dir=out.parent) as folder, quiet_torch():
            quantize_dynamic(
                str(file), f"{folder}/{out.name}", weight_type=QuantType.QInt8, use_external_data_format=large
            )
            save(onnx_ir.load(f"{folder}/{out.name}"), out, target)
    except FolderError:
        raise
    except Exception as error:  # ONNX Runtime's own kinds
        raise FolderError(f"the model cannot be written in 8 bits: {first_line(error)}") from error
