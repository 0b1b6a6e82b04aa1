"""What the structured layers share: sizes, bias, and the way to and from a dense layer."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from milkweed._arguments import check_tensor, checked
from milkweed.nn.wrappers import unwrapped
from milkweed.ops._common import autocast_dtype
from milkweed.ops._epilogue import check_epilogue, finish
from milkweed.structures import LowRank, Monarch, StructuredMatrix


class StructuredLinear(nn.Module, ABC):
    """A linear layer whose weight is a structured matrix made of the layer's parameters.

    A subclass takes ``in_features, out_features`` first and ``bias`` by name, creates its parameters and defines
    ``matrix`` and ``reset_parameters``; ``from_linear`` where a dense layer can become one.

    Args:
        in_features: Size of each input.
        out_features: Size of each output.
        bias: Whether to add a bias.
        device: Where parameters live.
        dtype: Their dtype.

    Raises:
        ValueError: A size is below 1.

    Example:
        >>> layer, x = mw.nn.LowRankLinear(20, 10, rank=3), torch.randn(4, 20)
        >>> isinstance(layer, mw.nn.StructuredLinear), torch.allclose(layer.to_linear()(x), layer(x), atol=1e-5)
        (True, True)
    """

    # Whether W + M has the structure of W for every Monarch or low-rank matrix M, see `add_`.
    takes_updates: ClassVar[bool] = False

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {name}={value}")
        self.in_features, self.out_features = in_features, out_features
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None

    @abstractmethod
    def matrix(self) -> StructuredMatrix:
        """The weight, (out_features, in_features), made of the parameters themselves: gradients flow through it."""

    @abstractmethod
    def reset_parameters(self) -> None:
        """Draw all parameters anew."""

    def forward(self, x: Tensor, activation: str | None = None) -> Tensor:
        """Apply the layer to the last dimension.

        Args:
            x: (..., in_features).
            activation: Applied to the result, in the same pass over memory where the backend can: ``"gelu"``,
                ``"gelu_tanh"``, ``"relu"`` or ``"silu"``.

        Returns:
            (..., out_features); under autocast in the autocast dtype.

        Raises:
            ValueError: The last dimension is not ``in_features``, or the activation is unknown.
            TypeError: The dtype is not the parameters', and autocast is off.
        """
        if not isinstance(x, Tensor):
            check_tensor("x", x)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must be (..., in_features={self.in_features}); got shape {tuple(x.shape)}")
        dtype = self.matrix().dtype
        if x.dtype != dtype and autocast_dtype(x) is None:
            raise TypeError(f"x must be {dtype} as the layer's parameters are; got {x.dtype}; cast x, or use autocast")
        return self._affine(x, activation)

    def _affine(self, x: Tensor, activation: str | None) -> Tensor:
        """The forward pass of a checked input; a layer of one operation leaves bias and activation to that."""
        check_epilogue(self.bias, activation, self.out_features)
        y = self.matrix()(x)
        return finish(y, None if self.bias is None else self.bias.to(y.dtype), activation)

    def _by_operation(self, operation: Callable[..., Tensor], x: Tensor, full: tuple[int, int]) -> Tensor:
        """Call an operation on whole blocks, ``full`` outputs and inputs, and crop its result."""
        more = full[0] - self.out_features
        bias = self.bias if self.bias is None or not more else F.pad(self.bias, (0, more))
        if full[1] > self.in_features:
            x = F.pad(x, (0, full[1] - self.in_features))
        y = operation(x, bias=bias)
        return y[..., : self.out_features] if more else y

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """Multiply the factors out, in float32 at least.

        Returns:
            The dense layer with the same outputs, on the same device, in the same dtype and training mode, untrained
            where this one is.
        """
        matrix = self.matrix()
        linear = nn.utils.skip_init(
            nn.Linear,
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=matrix.device,
            dtype=matrix.dtype,
        )
        with torch.autocast(matrix.device.type, enabled=False):
            wide = matrix.to(dtype=torch.promote_types(matrix.dtype, torch.float32))
            linear.weight.copy_(wide.to_dense())
        factors = [parameter for name, parameter in self.named_parameters() if name != "bias"]
        linear.weight.requires_grad_(any(factor.requires_grad for factor in factors))
        if self.bias is not None:
            linear.bias.copy_(self.bias).requires_grad_(self.bias.requires_grad)
        return linear.train(self.training)

    @torch.no_grad()
    def add_(self, update: Monarch | LowRank) -> Self:
        """Add a matrix to the weight, in place: exactly, as the rank grows by what that needs.

        Parameters are replaced by larger ones, which are trained or not as those before. Sums are taken in float32 at
        least.

        Args:
            update: (out_features, in_features).

        Returns:
            The layer.

        Raises:
            ValueError: The sum has another structure, or the update another shape.
            TypeError: The update is neither a Monarch nor a low-rank matrix, or complex beside real parameters.
        """
        check_update(self, update)
        matrix = self.matrix()
        wide = torch.promote_types(torch.promote_types(matrix.dtype, update.dtype), torch.float32)
        factors, rank = self._sum(matrix.to(dtype=wide), cast(Any, update.to(device=matrix.device, dtype=wide)))
        for name, factor in factors.items():
            old = self.get_parameter(name)
            setattr(self, name, nn.Parameter(factor.to(old.dtype).contiguous(), old.requires_grad))
        cast(Any, self).rank = rank
        return self

    def _sum(self, matrix: Any, update: Monarch | LowRank) -> tuple[dict[str, Tensor], int]:
        """The factors of the sum by the names of their parameters, and its rank; where the layer takes updates."""
        raise NotImplementedError

    @classmethod
    def _from(cls, linear: nn.Linear, factors: dict[str, Tensor], **options: Any) -> Self:
        """A layer with these factors and everything else as the dense layer has it."""
        linear = cast(nn.Linear, unwrapped(linear))
        weight = linear.weight
        layer = nn.utils.skip_init(
            cls,
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
            **options,
        )
        with torch.no_grad():
            for name, factor in factors.items():
                layer.get_parameter(name).copy_(factor).requires_grad_(weight.requires_grad)
            if layer.bias is not None:
                layer.bias.copy_(linear.bias).requires_grad_(linear.bias.requires_grad)
        return layer.train(linear.training)

    @classmethod
    def from_linear(cls, *args: Any, **options: Any) -> Self:
        """Project a dense layer; a subclass that can says here how.

        Args:
            *args: The dense layer, and options by position.
            **options: Those of the projection. Of them ``input_covariance`` (in_features, in_features), E[x xᵀ] of the
                layer's inputs, keeps the outputs rather than the weight.

        Raises:
            TypeError: It cannot.
        """
        raise TypeError(f"{cls.__name__} has no projection: define from_linear there, or project in its configuration")

    def _reset_bias(self) -> None:
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def options(self) -> dict[str, Any]:
        """The constructor's options beside sizes and bias, as plain values: the attributes of the same names.

        A subclass may leave out what is at its default.
        """
        return {name: getattr(self, name) for name in constructor_options(type(self)) if hasattr(self, name)}

    @override
    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, "
        return sizes + (options and f"{options}, ") + f"bias={self.bias is not None}"


def check_update(layer: Any, update: Monarch | LowRank) -> None:
    """Refuse a matrix that cannot be added to a layer's weight."""
    if not isinstance(update, Monarch | LowRank):
        raise TypeError(f"update must be a Monarch or a LowRank matrix; got {type(update).__name__}")
    if not layer.takes_updates:
        raise ValueError(
            f"a {type(layer).__name__} cannot take an update: the sum does not have its structure; make it dense with "
            "to_linear(), or the whole model with milkweed.densify_(model)"
        )
    if update.dtype.is_complex and not next(layer.parameters()).is_complex():
        raise TypeError(f"update must be real, as the layer's parameters are; got {update.dtype}")
    shape = layer.out_features, layer.in_features
    if update.shape != shape:
        raise ValueError(f"update must be (out_features, in_features) = {shape}; got {update.shape}")


def constructor_options(cls: type) -> dict[str, Any]:
    """List the defaults of what a linear layer is made of beside sizes and bias."""
    decided = {"in_features", "out_features", "bias", "device", "dtype"}
    parameters = inspect.signature(cls).parameters.values()
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return {each.name: each.default for each in parameters if each.name not in decided and each.kind not in variadic}


def dense_weight(linear: nn.Linear) -> Tensor:
    """The weight (out_features, in_features), detached, of a dense layer that is to be converted."""
    linear = cast(nn.Linear, unwrapped(linear))
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"linear must be a torch.nn.Linear; got {type(linear).__name__}")
    if isinstance(linear.weight, nn.UninitializedParameter):
        raise ValueError(f"linear has no weight yet; run the {type(linear).__name__} on an input before")
    weight, bias = linear.weight.detach(), linear.bias
    if bias is not None and (bias.is_complex(), bias.is_floating_point()) != (
        weight.is_complex(),
        weight.is_floating_point(),
    ):
        raise TypeError(
            f"linear.bias must have linear.weight's dtype {weight.dtype}; got {bias.dtype}; cast it with .to()"
        )
    return weight


@torch.no_grad()
def uniform_with_variance(tensor: Tensor, variance: float) -> None:
    """Fill a tensor with uniform numbers around zero, of a variance."""
    bound = math.sqrt(3 * variance)
    nn.init.uniform_(tensor, -bound, bound)


@torch.no_grad()
def orthogonal_blocks(factor: Tensor, gain: float = 1.0) -> None:
    """Fill blocks (k, q, p) with random orthonormal rows or columns, whichever are fewer, times ``gain``."""
    if factor.is_meta:
        return
    _, q, p = factor.shape
    normal = torch.randn(factor.shape[0], max(q, p), min(q, p), device=factor.device)
    basis, triangle = torch.linalg.qr(normal)
    # With these signs the distribution is uniform over all such matrices.
    basis = basis * triangle.diagonal(dim1=-2, dim2=-1).sgn()[:, None, :]
    factor.copy_(gain * (basis if q >= p else basis.mT))
