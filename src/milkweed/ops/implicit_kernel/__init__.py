"""Kernels from a network of sines under a decaying envelope."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from milkweed._arguments import check_real
from milkweed.ops import backends
from milkweed.ops._common import compute_dtype, needs_plain_formula
from milkweed.ops.implicit_kernel import eager, reference

backends.register(
    "implicit_kernel",
    backends.Backend("eager", eager.implicit_kernel, needs_plain_formula),
    backends.Backend("reference", reference.implicit_kernel),
    backends.export_backend(reference.implicit_kernel),
)
_NAMES = ("weight 0", "bias 0", "weight 1", "bias 1", "weight 2", "bias 2", "weight 3")


def implicit_kernel(
    features: Tensor, frequency: Tensor, network: Sequence[Tensor], decay: Tensor, *, backend: str | None = None
) -> Tensor:
    """Evaluate ``k_n = W3 sin(f (W2 sin(f (W1 sin(f (W0 z_n + b0)) + b1)) + b2)) * exp(-decay n)`` for n = 0 .. L - 1.

    In float32 at least, whether or not autocast is on. Nothing of length L is kept for the backward pass but the
    features: it computes the network anew, block by block.

    Args:
        features: (L, E), the rows z_n.
        frequency: (W,), f, which multiplies the argument of every sine.
        network: W0 (W, E), b0 (W,), W1 (W, W), b1 (W,), W2 (W, W), b2 (W,), W3 (D, W).
        decay: (D,), of each kernel's envelope, per lag.
        backend: ``"eager"`` or ``"reference"``; by default the context's, else the fastest that can run.

    Returns:
        (D, L), in float32 or float64.

    Raises:
        ValueError: A shape does not fit, or the backend is unknown.
        TypeError: A tensor is not real floating point.

    Source:
        Hyena (arXiv 2302.10866), section 3.3.

    Example:
        >>> features, frequency = torch.rand(50, 5), torch.ones(16)
        >>> shapes = [(16, 5), (16,), (16, 16), (16,), (16, 16), (16,), (4, 16)]  # W0, b0, W1, b1, W2, b2, W3
        >>> network = [torch.randn(shape) for shape in shapes]
        >>> mw.ops.implicit_kernel(features, frequency, network, decay=torch.full((4,), 0.1)).shape
        torch.Size([4, 50])
    """
    if not isinstance(network, Sequence) or isinstance(network, str | bytes):
        raise TypeError(f"network must be a list of tensors; got {type(network).__name__}")
    if len(network) != len(_NAMES):
        raise ValueError(f"network must be {len(_NAMES)} tensors, {', '.join(_NAMES)}; got {len(network)}")
    check_real(features=features, frequency=frequency, **dict(zip(_NAMES, network, strict=True)), decay=decay)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be (L, E) with L, E >= 1; got shape {tuple(features.shape)}")
    if frequency.ndim != 1 or decay.ndim != 1:
        raise ValueError(
            f"frequency and decay must be vectors; got shapes {tuple(frequency.shape)} and {tuple(decay.shape)}"
        )
    (width,), (channels,), inputs = frequency.shape, decay.shape, features.shape[1]
    hidden = (width, width)
    shapes = ((width, inputs), (width,), hidden, (width,), hidden, (width,), (channels, width))
    for name, tensor, shape in zip(_NAMES, network, shapes, strict=True):
        if tensor.shape != shape:
            raise ValueError(
                f"network: {name} must be {shape} for E = {inputs}, W = {width}, D = {channels}; "
                f"got shape {tuple(tensor.shape)}"
            )
    features = features.to(compute_dtype(features, frequency, *network, decay))
    return backends.dispatch("implicit_kernel", backend, features, frequency, *network, decay)
