"""Products with a block-diagonal matrix whose inputs and outputs are read and written in permuted places.

Both factors of a Monarch matrix, forward and backward, are this one product: a permutation between them is only the
place where a number is written, so that no pass over memory is spent on it.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import triton
from torch import Tensor

from milkweed.ops import _triton_gemm_kernels as kernels
from milkweed.ops import _triton_launch as gpu
from milkweed.ops._triton_configs import Tile, power_of_two, tile_for

# Bytes that a GPU's memory moves at a time: writing fewer of them costs as much.
_SECTOR = 32
# Programs that fill a large GPU twice.
_PROGRAMS = 256


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the features of a row lie."""

    # ``"plain"``: block after block. ``"runs"``: feature ``j * runs + i`` of a block, with ``size / per`` runs, is
    # number j of run i; runs are ``per`` long and ``stride`` apart, blocks are ``per`` apart. ``"scattered"``: feature
    # i of the row lies at ``(i % per) * stride + i // per``.
    order: str = "plain"
    per: int = 1  # See there
    stride: int = 1  # See there


PLAIN = Places()


def interleaved(blocks: int) -> Places:
    """Features of equal number side by side: feature i of block k at ``i * blocks + k``."""
    return Places("runs", 1, blocks) if blocks > 1 else PLAIN


def multiply(
    x: Tensor,
    weight: Tensor,
    reads: Places = PLAIN,
    writes: Places = PLAIN,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    out: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """Multiply rows by a block-diagonal matrix: ``out[b, k, q] = sum_p weight[k, q, p] x[b, k, p]``."""
    # x is (rows, k * p) with contiguous rows, weight (k, q, p) of any strides; out and kept are contiguous (rows, k *
    # q), and kept receives what the activation is applied to. Sums, the bias (k * q,) (in the places of the results)
    # and the activation are computed in float32.
    blocks, outputs, inputs = weight.shape
    rows = x.shape[0]
    out = gpu.unwritten(x, rows, blocks * outputs) if out is None else out
    if out.numel() == 0:
        return out
    # Blocks whose results stand side by side: a program may take several.
    most = math.gcd(blocks, writes.stride, 8) if writes.order == "runs" and writes.per == 1 else 1
    tile = tile_for("multiply", x.device, rows, outputs * most, inputs, x.dtype)
    if activation is not None:
        # The sum and what becomes of it both take registers.
        tile = dataclasses.replace(tile, outputs=min(tile.outputs, 128))
    group, columns = _group(most, writes.stride, tile, outputs, inputs, x.element_size())
    programs = blocks // group * triton.cdiv(outputs, columns) * triton.cdiv(rows, tile.rows)
    gpu.launch(
        kernels.multiply, (programs,),
        x, weight, None if bias is None else bias.contiguous(), out, kept, rows, blocks, outputs, inputs,
        x.stride(0), reads.per, reads.stride,
        weight.stride(0), weight.stride(1), weight.stride(2),
        out.stride(0), writes.per, writes.stride,
        ROWS=tile.rows, OUTPUTS=columns, INPUTS=tile.inputs, GROUP=group,
        READS=reads.order, WRITES=writes.order, PRECISION=float32_precision(), ACTIVATION=activation,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def _group(most: int, stride: int, tile: Tile, outputs: int, inputs: int, size: int) -> tuple[int, int]:
    """Choose how many blocks whose results stand side by side a program computes, and the outputs of each."""
    # With g blocks it stores g neighbours at a time, but the tile of each may be g times narrower, so that the operands
    # are read more often. The least traffic to and from the cache, per result, decides; g is a power of two. README.md
    # of the Monarch multiply derives it.

    def columns(group: int) -> int:
        return min(tile.outputs // group, power_of_two(outputs))

    def traffic(group: int) -> float:
        reads = inputs * size * (1 / tile.rows + 1 / columns(group))
        return reads + _SECTOR / min(group * max(1.0, _SECTOR / (size * stride)), _SECTOR / size)

    limit = min(most, tile.outputs // 16)
    group = min((1 << i for i in range(limit.bit_length())), key=traffic)
    return group, columns(group)


def sum_outer(grad: Tensor, x: Tensor, shape: torch.Size, grads: Places = PLAIN) -> Tensor:
    """Sum outer products over rows, block by block: ``out[k, q, p] = sum_b grad[b, k, q] x[b, k, p]``."""
    # grad is (rows, k * q) and x (rows, k * p), both with contiguous rows; the result has x's dtype and is summed in
    # float32.
    blocks, outputs, inputs = shape
    rows = x.shape[0]
    tile = tile_for("sum_outer", x.device, rows, outputs, inputs, x.dtype)
    tiles = blocks * triton.cdiv(outputs, tile.outputs) * triton.cdiv(inputs, tile.inputs)
    # Few and small blocks leave a large GPU idle: share the rows out.
    parts = max(1, min(_PROGRAMS // tiles, rows // 512))
    out = gpu.unwritten(x, parts, *shape, dtype=torch.float32 if parts > 1 else x.dtype)
    gpu.launch(
        kernels.sum_outer, (tiles * parts,), grad, x, out, rows, blocks, outputs, inputs,
        grad.stride(0), grads.per, grads.stride, x.stride(0), triton.cdiv(rows, parts),
        ROWS=tile.rows, OUTPUTS=tile.outputs, INPUTS=tile.inputs, READS=grads.order, PRECISION=float32_precision(),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out[0] if parts == 1 else out.sum(0).to(x.dtype)


def gather(
    grad: Tensor, blocks: int, *, kept: Tensor | None = None, activation: str | None = None, sums: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Bring interleaved features in the order of their blocks, through an activation's derivative on the way."""
    # grad is (rows, q * k) with feature i of block k at ``i * blocks + k``; kept, of the same shape, is what the
    # activation was applied to. The result is (rows, k * q), and where they are wanted the sums over rows, (q * k,) in
    # the order of grad.
    if blocks == 1 and kept is None and not sums:
        return grad, None
    rows, width = grad.shape
    out = gpu.unwritten(grad, rows, width)
    most = min(64, power_of_two(blocks, 1))
    columns = min(power_of_two(width // blocks), 1024 // most)
    tiles = triton.cdiv(blocks, most) * triton.cdiv(width // blocks, columns)
    parts = max(1, min(triton.cdiv(4 * _PROGRAMS, tiles), triton.cdiv(rows, 64)))
    partial = gpu.unwritten(grad, parts, width, dtype=torch.float32) if sums else None
    gpu.launch(
        kernels.gather, (tiles * parts,), grad, kept, out, partial,
        rows, blocks, width // blocks, grad.stride(0), triton.cdiv(rows, parts),
        ROWS=8, OUTPUTS=columns, BLOCKS=most, EXACT=most == blocks, ACTIVATION=activation,
    )  # fmt: skip
    return out, None if partial is None else partial.sum(0).to(grad.dtype)


def float32_precision() -> str:
    """TF32 where torch's own products may be, else three products of TF32 parts, as exact as float32."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
