"""A valid call of every public function, class and method, to be spoilt one argument at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn as tnn

from milkweed import convert, models, nn, ops, ssm, structures
from milkweed.convert.checkpoints import m2, s4
from milkweed.convert.sites import find_sites
from milkweed.nn import filters

R = torch.randn
PAIRS = {
    "Lambda": lambda: torch.complex(-torch.rand(2, 3) - 0.1, R(2, 3)),
    "P": lambda: torch.complex(R(1, 2, 3), R(1, 2, 3)),
    "B": lambda: torch.complex(R(2, 3), R(2, 3)),
    "C": lambda: torch.complex(R(2, 3), R(2, 3)),
    "dt": lambda: torch.full((2,), 0.1),
}


def stable(*shape: int) -> torch.Tensor:
    """Real pairs with negative real parts."""
    x = R(*shape, 2)
    x[..., 0] = -x[..., 0].abs() - 0.1
    return x


def dense(n: int) -> torch.Tensor:
    return -torch.eye(n) + 0.1 * R(n, n)


def of(
    function: Callable[..., Any], **given: Callable[[], Any]
) -> Callable[[], tuple[Callable[..., Any], dict[str, Any]]]:
    """A call whose tensors are drawn anew each time."""
    return lambda: (
        function,
        {name: value() if callable(value) and not isinstance(value, type) else value for name, value in given.items()},
    )


def method(make: Callable[[], Any], name: str, **given: Any) -> Callable[[], tuple[Callable[..., Any], dict[str, Any]]]:
    """A call of a method of a new object; ``given`` may depend on it."""

    def call() -> tuple[Callable[..., Any], dict[str, Any]]:
        made = make()
        values = {
            key: value(made) if callable(value) and not isinstance(value, type) else value
            for key, value in given.items()
        }
        return getattr(made, name), values

    return call


def x(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[..., torch.Tensor]:
    return lambda *_: R(*shape).to(dtype)


def tokens(*shape: int) -> Callable[..., torch.Tensor]:
    return lambda *_: torch.randint(0, 8, shape)


def linear() -> tnn.Linear:
    return tnn.Linear(16, 16)


OPS = {
    "block_diagonal_mm": of(ops.block_diagonal_mm, x=x(3, 8), weight=x(2, 4, 4)),
    "monarch_mm": of(ops.monarch_mm, x=x(3, 16), right=x(4, 4, 4), left=x(4, 4, 4)),
    "fft_conv": of(ops.fft_conv, u=x(2, 3, 8), kernel=x(3, 8)),
    "diagonal_ssm_kernel": of(ops.diagonal_ssm_kernel, c=x(3, 4, 2), dt_a=lambda: stable(3, 4), length=8),
    "diagonal_ssm_state": of(ops.diagonal_ssm_state, u=x(2, 3, 8), dt_a=lambda: stable(3, 4)),
    "dense_ssm_kernel": of(ops.dense_ssm_kernel, a=lambda: dense(4), b=x(4), c=x(4), length=8),
    "dense_ssm_state": of(ops.dense_ssm_state, u=x(2, 3, 8), a=lambda: dense(4).expand(3, 4, 4), b=x(3, 4)),
    "dense_ssm_advance": of(ops.dense_ssm_advance, x=x(2, 3, 4), a=lambda: dense(4).expand(3, 4, 4), steps=3),
    "implicit_kernel": of(
        ops.implicit_kernel,
        features=x(8, 3),
        frequency=x(16),
        network=lambda: [R(16, 3), R(16), R(16, 16), R(16), R(16, 16), R(16), R(4, 16)],
        decay=x(4),
    ),
    "linear_recurrence": of(ops.linear_recurrence, a=x(2, 8), x=x(2, 8)),
    "FrozenKernel": of(ops.FrozenKernel, kernel=x(3, 4), length=8),
    "available_backends": of(ops.available_backends, operation="fft_conv"),
    "explain": of(ops.explain, operation="fft_conv", args=lambda: (R(2, 3, 8), R(3, 8))),
    "use_backend": of(ops.use_backend, name="eager"),
}
SSM = {
    "basis": of(ssm.basis, A=lambda: dense(4), B=x(4), times=lambda: torch.rand(5)),
    "basis_functions": of(ssm.basis_functions, name="legs", d_state=4, times=lambda: torch.rand(5)),
    "cauchy_kernel": of(ssm.cauchy_kernel, **PAIRS, length=8),
    "diagonal": of(ssm.diagonal, name="lin", d_state=8),
    "discretize": of(ssm.discretize, A=lambda: dense(4), B=x(4), dt=0.1),
    "discretize_diagonal": of(ssm.discretize_diagonal, dt_a=lambda: stable(3)),
    "discretize_dplr": of(ssm.discretize_dplr, A=lambda: stable(2, 3), P=x(1, 2, 3, 2), B=x(2, 3, 2), dt=PAIRS["dt"]),
    "hippo": of(ssm.hippo, name="legs", d_state=4),
    "hippo glagt": of(ssm.hippo, name="glagt", d_state=4, alpha=0.1, beta=0.5),
    "log_timescale": of(ssm.log_timescale, channels=4),
    "measure": of(ssm.measure, name="legs", times=lambda: torch.rand(5)),
    "nplr": of(ssm.nplr, name="legs", d_state=4),
    "real_dplr": of(ssm.real_dplr, Lambda=PAIRS["Lambda"], P=lambda: PAIRS["P"]().transpose(0, 1), B=PAIRS["B"]),
    "Reconstruction": of(ssm.Reconstruction, name="legs", d_state=4),
    "Reconstruction.coefficients": method(lambda: ssm.Reconstruction("legs", 4), "coefficients", u=x(6)),
    "Reconstruction.final": method(lambda: ssm.Reconstruction("legs", 4), "final", u=x(6)),
    "Reconstruction.past": method(
        lambda: ssm.Reconstruction("legs", 4), "past", coefficients=x(4), ago=lambda _: torch.rand(3)
    ),
    "softmax_kernel": of(ssm.softmax_kernel, W=x(1, 2, 2), A=lambda: stable(1, 2), dt_a=lambda: stable(1, 2), length=4),
}


def factors() -> tuple[torch.Tensor, ...]:
    return torch.eye(3).expand(1, 3, 3), torch.eye(3).expand(1, 3, 3, 3)


MATRICES: dict[str, Callable[[], structures.StructuredMatrix]] = {
    "Monarch": lambda: structures.Monarch(R(2, 2, 2), R(2, 2, 2)),
    "BlockDiagonal": lambda: structures.BlockDiagonal(R(2, 2, 2)),
    "Chain": lambda: structures.Chain((R(2, 2, 2), R(2, 2, 2))),
    "Circulant": lambda: structures.Circulant(R(4)),
    "Diagonal": lambda: structures.Diagonal(R(4)),
    "FlatBlockButterfly": lambda: structures.FlatBlockButterfly(R(2, 2, 2, 2)),
    "LowRank": lambda: structures.LowRank(R(4, 2), R(2, 4)),
    "Permutation": lambda: structures.Permutation(torch.tensor([1, 0, 3, 2])),
    "Product": lambda: structures.Product((structures.Diagonal(R(4)), structures.Circulant(R(4)))),
    "Sum": lambda: structures.Sum((structures.Diagonal(R(4)), structures.LowRank(R(4, 1), R(1, 4)))),
    "Toeplitz": lambda: structures.Toeplitz(R(4), R(3)),
}
STRUCTURES = {
    **{f"{name}.__call__": method(make, "__call__", x=x(3, 4)) for name, make in MATRICES.items()},
    **{f"{name}.flops": method(make, "flops", batch=2) for name, make in MATRICES.items()},
    **{f"{name}.named_tensors": method(make, "named_tensors", prefix="a.") for name, make in MATRICES.items()},
    **{f"{name}.to": method(make, "to", dtype=torch.float64) for name, make in MATRICES.items()},
    **{
        f"{name}.solve": method(MATRICES[name], "solve", b=x(4))
        for name in ("BlockDiagonal", "Chain", "Circulant", "Diagonal", "Monarch", "Permutation", "Product")
    },
    "Monarch": of(structures.Monarch, right=x(2, 2, 2), left=x(2, 2, 2)),
    "Monarch.kronecker": of(structures.Monarch.kronecker, a=x(2, 2), b=x(2, 2)),
    "BlockDiagonal": of(structures.BlockDiagonal, weight=x(2, 2, 2)),
    "Chain": of(structures.Chain, factors=lambda: (R(2, 2, 2), R(2, 2, 2))),
    "Chain.identity": of(structures.Chain.identity, digits=(2, 3)),
    "Circulant": of(structures.Circulant, column=x(4)),
    "Diagonal": of(structures.Diagonal, entries=x(4)),
    "FlatBlockButterfly": of(structures.FlatBlockButterfly, blocks=x(2, 2, 2, 2)),
    "LowRank": of(structures.LowRank, left=x(4, 2), right=x(2, 4)),
    "add_monarch": of(structures.add_monarch, a=MATRICES["Monarch"], b=MATRICES["LowRank"]),
    "Permutation": of(structures.Permutation, index=lambda: torch.tensor([1, 0])),
    "Permutation.stride": of(structures.Permutation.stride, rows=2, columns=3),
    "Product": of(structures.Product, factors=lambda: (structures.Diagonal(R(4)),)),
    "Product.of": of(structures.Product.of, matrices=lambda: (structures.Diagonal(R(4)),)),
    "Sum.of": of(structures.Sum.of, matrices=lambda: (structures.Diagonal(R(4)),)),
    "Sum": of(structures.Sum, terms=lambda: (structures.Diagonal(R(4)),)),
    "Toeplitz": of(structures.Toeplitz, column=x(4), row=x(3)),
    "load": of(structures.load, path="structure"),
    "save": of(structures.save, matrix=MATRICES["Monarch"], path="structure.safetensors"),
    "monarch_shapes": of(structures.monarch_shapes, in_features=8, out_features=8, nblocks=2),
    "monarch_acdc": of(structures.monarch_acdc, a=x(4), d=x(4)),
    "monarch_circulant": of(structures.monarch_circulant, column=x(4)),
    **{
        f"monarch_{kind}": of(getattr(structures, f"monarch_{kind}"), n=4) for kind in ("dct", "dft", "dst", "hadamard")
    },
    "monarch_fastfood": of(
        structures.monarch_fastfood, scale=x(4), gaussian=x(4), permutation=lambda: torch.randperm(4), signs=x(4)
    ),
    "monarch_hd": of(structures.monarch_hd, signs=lambda: (R(4),)),
    "monarch_toeplitz": of(structures.monarch_toeplitz, column=x(4), row=x(3)),
    "factorize_monarch_product": of(structures.factorize_monarch_product, dense=x(16, 16), block_size=4, refine=1),
    "project_block_diagonal": of(structures.project_block_diagonal, dense=x(8, 8), nblocks=2),
    "project_chain": of(structures.project_chain, dense=x(8, 8), digits=(2, 2, 2)),
    "project_circulant": of(structures.project_circulant, dense=x(8, 8)),
    "project_diagonal": of(structures.project_diagonal, dense=x(8, 8)),
    "project_flat_butterfly": of(structures.project_flat_butterfly, dense=x(8, 8), nblocks=2),
    "project_low_rank": of(structures.project_low_rank, dense=x(8, 8), rank=2),
    "project_monarch": of(structures.project_monarch, dense=x(8, 8), nblocks=2),
    "project_pixelfly": of(structures.project_pixelfly, dense=x(8, 8), nblocks=2, rank=2),
    "project_toeplitz": of(structures.project_toeplitz, dense=x(8, 8)),
    **{
        f"{kind}{name}": call
        for kind in ("KroneckerBasis", "BivariateBasis", "ChebyshevBasis")
        for name, call in {
            "": of(getattr(structures, kind), factors=factors),
            ".for_output": of(getattr(structures, kind).for_output, factors=factors),
            ".to_polynomial": method(
                lambda kind=kind: getattr(structures, kind)(factors()), "to_polynomial", x=x(1, 1, 9)
            ),
            ".from_polynomial": method(
                lambda kind=kind: getattr(structures, kind)(factors()), "from_polynomial", coefficients=x(1, 1, 9)
            ),
            ".multiply": method(
                lambda kind=kind: getattr(structures, kind)(factors()), "multiply", kernel=x(1, 9), u=x(1, 1, 9)
            ),
            ".evaluate": method(lambda kind=kind: getattr(structures, kind)(factors()), "evaluate", x=x(1, 1, 9)),
            ".interpolate": method(
                lambda kind=kind: getattr(structures, kind)(factors()),
                "interpolate",
                values=lambda basis: basis.evaluate(R(1, 1, 9)),
            ),
        }.items()
    },
    "causal_product": of(
        structures.causal_product,
        kernel=x(1, 9),
        u=x(1, 1, 9),
        **{f"{name}_basis": lambda: structures.KroneckerBasis(factors()) for name in ("output", "kernel", "input")},
    ),
}
LINEARS = {
    "MonarchLinear": lambda: nn.MonarchLinear(16, 16, 2),
    "BlockDiagonalLinear": lambda: nn.BlockDiagonalLinear(16, 16, 2),
    "LowRankLinear": lambda: nn.LowRankLinear(16, 16, 2),
    "ButterflyLinear": lambda: nn.ButterflyLinear(16, 16),
    "PixelflyLinear": lambda: nn.PixelflyLinear(16, 16, 2),
}
SEQUENCE = {
    "S4": lambda: nn.S4(4, 8),
    "S4D": lambda: nn.S4D(4, 8),
    "LongConv": lambda: nn.LongConv(4, 9),
    "GatedMixer": lambda: nn.GatedMixer(4, 9),
    "CausalMonarchMixer": lambda: nn.CausalMonarchMixer(4, 9),
    "MonarchMixer": lambda: nn.MonarchMixer(4, 9),
    "SequenceLayer": lambda: nn.SequenceLayer(nn.LongConv(4, 9)),
    "S4Filter": lambda: filters.S4Filter(4, 8),
    "S4DFilter": lambda: filters.S4DFilter(4, 8),
    "GatedMixerBlock": lambda: nn.GatedMixerBlock(4, 9, nblocks=2),
    "ResidualBlock": lambda: nn.ResidualBlock(nn.S4D(4, 8), 4),
}
FEATURES = {"GatedMixerBlock": "x", "ResidualBlock": "x", "MonarchMixer": "x"}
STEPPERS = {name: make for name, make in {**SEQUENCE, "Mlp": lambda: nn.Mlp(4, 8)}.items() if name != "MonarchMixer"}
NN = {
    "S4": of(nn.S4, d_model=4, d_state=8),
    "S4D": of(nn.S4D, d_model=4, d_state=8),
    "S4ND": of(nn.S4ND, d_model=4, dims=2, d_state=8),
    "S4ND.forward": method(lambda: nn.S4ND(4, 2, 8), "forward", u=x(2, 3, 3, 4)),
    "LongConv": of(nn.LongConv, d_model=4, l_max=9),
    "LongConv.kernels": method(SEQUENCE["LongConv"], "kernels", length=9),
    "LongConv.convolve": method(SEQUENCE["LongConv"], "convolve", u=x(2, 4, 9)),
    "ExplicitFilter": of(nn.ExplicitFilter, d_model=4, l_max=9),
    "ExplicitFilter.forward": method(lambda: nn.ExplicitFilter(4, 9), "forward", length=5),
    "ImplicitFilter": of(nn.ImplicitFilter, d_model=4, l_max=9),
    "ImplicitFilter.forward": method(lambda: nn.ImplicitFilter(4, 9), "forward", length=5),
    "CausalMonarchMixer": of(nn.CausalMonarchMixer, d_model=4, seq_len=9),
    "CausalMonarchMixer.lags": method(SEQUENCE["CausalMonarchMixer"], "lags", length=5),
    "GatedMixer": of(nn.GatedMixer, d_model=4, l_max=9),
    "GatedMixerBlock": of(nn.GatedMixerBlock, d_model=4, l_max=9, nblocks=2),
    "MonarchMixer": of(nn.MonarchMixer, d_model=4, seq_len=9),
    "SequenceLayer": of(nn.SequenceLayer, filter=SEQUENCE["LongConv"]),
    "ResidualBlock": of(nn.ResidualBlock, layer=SEQUENCE["S4D"], d_model=4),
    "SequenceNorm": of(nn.SequenceNorm, kind="layer", d_model=4),
    "SequenceNorm.forward": method(lambda: nn.SequenceNorm("layer", 4), "forward", x=x(2, 9, 4)),
    "SequenceNorm.forward over the batch": method(lambda: nn.SequenceNorm("batch", 4), "forward", x=x(2, 9, 4)),
    "ShortConv": of(nn.ShortConv, channels=4),
    "ShortConv.forward": method(lambda: nn.ShortConv(4), "forward", x=x(2, 4, 9)),
    "Mlp.stepper": method(lambda: nn.Mlp(4, 8), "stepper"),
    "Mlp": of(nn.Mlp, features=4, hidden=8),
    "Mlp.forward": method(lambda: nn.Mlp(4, 8), "forward", x=x(2, 4)),
    "BlockDiagonalGlu": of(nn.BlockDiagonalGlu, d_model=4, d_hidden=8, nblocks=2),
    "BlockDiagonalGlu.forward": method(lambda: nn.BlockDiagonalGlu(4, 8, 2), "forward", x=x(2, 4)),
    "LearnableTransform": of(nn.LearnableTransform, n=4),
    "LearnableTransform.forward": method(lambda: nn.LearnableTransform(4), "forward", x=x(2, 4)),
    "LearnableTransform2d": of(nn.LearnableTransform2d, height=4, width=4),
    "LearnableTransform2d.forward": method(lambda: nn.LearnableTransform2d(4, 4), "forward", x=x(2, 4, 4)),
    "OnlineConv": of(nn.OnlineConv, kernel=x(4, 9)),
    "ConcatLinear": of(nn.ConcatLinear, parts=lambda: [nn.LowRankLinear(8, 8, 2)]),
    "ConcatLinear.forward": method(lambda: nn.ConcatLinear([nn.LowRankLinear(8, 8, 2)]), "forward", x=x(2, 8)),
    "AdaptedLinear": of(nn.AdaptedLinear, base=linear, update=lambda: nn.MonarchLinear(16, 16, 2, bias=False)),
    "AdaptedLinear.forward": method(
        lambda: nn.AdaptedLinear(linear(), nn.MonarchLinear(16, 16, 2, bias=False)), "forward", x=x(2, 16)
    ),
    **{
        f"{name}.add_": method(
            lambda make=make: make(), "add_", update=lambda _: structures.LowRank(R(16, 1), R(1, 16))
        )
        for name, make in {
            "MonarchLinear": lambda: nn.MonarchLinear(16, 16, 2),
            "ConcatLinear": lambda: nn.ConcatLinear([nn.LowRankLinear(16, 16, 2)]),
        }.items()
    },
    "MonarchLinear": of(nn.MonarchLinear, in_features=16, out_features=16, nblocks=2),
    "BlockDiagonalLinear": of(nn.BlockDiagonalLinear, in_features=16, out_features=16, nblocks=2),
    "LowRankLinear": of(nn.LowRankLinear, in_features=16, out_features=16, rank=2),
    "ButterflyLinear": of(nn.ButterflyLinear, in_features=16, out_features=16),
    "PixelflyLinear": of(nn.PixelflyLinear, in_features=16, out_features=16, nblocks=2),
    **{f"{name}.forward": method(make, "forward", x=x(3, 16)) for name, make in LINEARS.items()},
    **{
        f"{name}.from_linear": of(
            getattr(nn, name).from_linear, linear=linear, **({"rank": 2} if name == "LowRankLinear" else {})
        )
        for name in LINEARS
    },
    **{
        f"{name}.forward": method(make, "forward", **{FEATURES.get(name, "u"): x(2, 9, 4)})
        for name, make in SEQUENCE.items()
    },
    **{f"{name}.stepper": method(make, "stepper") for name, make in STEPPERS.items() if name != "Mlp"},
    **{
        f"{name}.initial_state": method(lambda make=make: make().stepper(), "initial_state", batch_size=2)
        for name, make in STEPPERS.items()
    },
    **{
        f"{name} step": method(
            lambda make=make: make().stepper(), "forward", u=x(2, 4), state=lambda stepper: stepper.initial_state(2)
        )
        for name, make in STEPPERS.items()
    },
    **{
        f"{name} read": method(
            lambda make=make: make().stepper(), "read", u=x(2, 3, 4), state=lambda stepper: stepper.initial_state(2)
        )
        for name, make in STEPPERS.items()
    },
    "build_linear": of(nn.build_linear, spec={"name": "monarch", "nblocks": 2}, in_features=8, out_features=8),
    "build_sequence_layer": of(nn.build_sequence_layer, spec={"name": "s4d"}, d_model=4),
    "check_spec": of(nn.check_spec, kind="layer", spec={"name": "s4d"}),
    "fixed_states": of(nn.fixed_states, stepper=lambda: nn.S4D(4).stepper()),
    "parameter_groups": of(nn.parameter_groups, model=SEQUENCE["S4D"], lr=1e-3),
}
FILTERS = {
    "S4DFilter": of(filters.S4DFilter, d_model=4, d_state=8),
    "S4Filter": of(filters.S4Filter, d_model=4, d_state=8),
    "S4Filter.system": method(SEQUENCE["S4Filter"], "system"),
    "S4DFilter.system": method(SEQUENCE["S4DFilter"], "system"),
    "S4.system": method(SEQUENCE["S4"], "system"),
    "S4D.system": method(SEQUENCE["S4D"], "system"),
    "S4DFilter.recurrence": method(SEQUENCE["S4DFilter"], "recurrence"),
    "S4NDFilter": of(filters.S4NDFilter, d_model=4, dims=2, d_state=8),
    "S4NDFilter.forward": method(lambda: filters.S4NDFilter(4, 2, 8), "forward", u=x(2, 3, 3, 4)),
}
NETWORKS: dict[str, tuple[dict[str, Any], Callable[..., torch.Tensor]]] = {
    "Gpt2": ({"d_input": 8, "d_output": 8, "length": 9, "d_model": 8, "depth": 1, "heads": 2}, tokens(2, 9)),
    "LinearMemory": ({"d_input": 1, "d_output": 2, "d_model": 2}, x(2, 9, 1)),
    "M2Bert": ({"d_input": 8, "length": 9, "d_model": 8, "depth": 1, "d_hidden": 8, "nblocks": 2}, tokens(2, 9)),
    "M2Gpt": ({"d_input": 8, "d_output": 8, "length": 9, "d_model": 8, "depth": 1, "heads": 2}, tokens(2, 9)),
    "M2Vit": (
        {
            "d_input": 3,
            "d_output": 2,
            "size": (8, 8),
            "patch": 4,
            "d_model": 8,
            "depth": 1,
            "d_hidden": 8,
            "nblocks": 2,
        },
        x(2, 64, 3),
    ),
    "MlpMixer": ({"d_input": 3, "d_output": 2, "length": 9, "d_model": 8, "depth": 1}, x(2, 9, 3)),
    "Sashimi": ({"d_input": 8, "d_output": 8, "d_model": 4, "depth": 1, "pool": (2,)}, tokens(2, 8)),
    "Forecaster": ({"d_input": 3, "d_output": 2, "horizon": 4, "d_model": 4, "depth": 1}, x(2, 9, 3)),
    "SequenceModel": ({"d_input": 3, "d_output": 2, "d_model": 4, "depth": 1}, x(2, 9, 3)),
}
# One step and several of the networks that step.
STEPS = {
    "M2Gpt": (tokens(2), tokens(2, 3)),
    "Sashimi": (tokens(2), tokens(2, 3)),
    "SequenceModel": (x(2, 3), x(2, 4, 3)),
}
MODELS = {
    **{name: of(getattr(models, name), **options) for name, (options, _) in NETWORKS.items()},
    **{
        f"{name}.forward": method(lambda name=name: network_of(name), "forward", inputs=inputs)
        for name, (_, inputs) in NETWORKS.items()
    },
    "build_model": of(models.build_model, config={"name": "SequenceModel", "options": {"d_input": 1, "d_output": 2}}),
    "generate": of(models.generate, model=lambda: network_of("M2Gpt"), prompt=tokens(1, 3), steps=2),
    "stream": of(models.stream, model=lambda: network_of("M2Gpt"), prompt=tokens(1, 3), steps=2),
    **{f"{name}.stepper": method(lambda name=name: network_of(name), "stepper") for name in STEPS},
    **{
        f"{name} {verb}": method(
            lambda name=name: network_of(name).stepper(),
            verb,
            **(
                {"batch_size": 2}
                if verb == "initial_state"
                else {"u": step if verb == "forward" else steps, "state": lambda s: s.initial_state(2)}
            ),
        )
        for name, (step, steps) in STEPS.items()
        for verb in ("initial_state", "forward", "read")
    },
}


def network_of(name: str) -> Any:
    return getattr(models, name)(**NETWORKS[name][0])


def network() -> tnn.Module:
    return tnn.Sequential(tnn.Linear(16, 16), tnn.ReLU(), tnn.Linear(16, 16))


def same_network() -> tnn.Module:
    torch.manual_seed(1)
    return network()


def converted() -> tnn.Module:
    model = network()
    convert.convert_(model, convert.MonarchConfig(4))
    return model


def adapted() -> tnn.Module:
    model = same_network()
    convert.add_adapters_(model, convert.AdapterConfig(2))
    return model


def minimal_s4d() -> dict[str, torch.Tensor]:
    kernel = {"kernel.C": R(4, 3, 2), "kernel.log_dt": R(4), "kernel.log_A_real": R(4, 3), "kernel.A_imag": R(4, 3)}
    return kernel | {"D": R(4), "output_linear.0.weight": R(8, 4, 1), "output_linear.0.bias": R(8)}


CONVERT = {
    "AdapterConfig": of(convert.AdapterConfig, nblocks=2),
    "MonarchConfig": of(convert.MonarchConfig, nblocks=2),
    "BlockDiagonalConfig": of(convert.BlockDiagonalConfig, nblocks=2),
    "LowRankConfig": of(convert.LowRankConfig, rank=2),
    "PixelflyConfig": of(convert.PixelflyConfig, nblocks=2),
    "MonarchConfig.project": method(
        lambda: convert.MonarchConfig(4), "project", linear=lambda _: linear(), input_covariance=None
    ),
    "MonarchConfig.empty": method(lambda: convert.MonarchConfig(4), "empty", linear=lambda _: linear()),
    "BlockDiagonalConfig.project": method(
        lambda: convert.BlockDiagonalConfig(4), "project", linear=lambda _: linear(), input_covariance=None
    ),
    "AdapterConfig.adapt": method(lambda: convert.AdapterConfig(2), "adapt", site=lambda _: find_sites(network())[0]),
    "ConversionReport.save": method(
        lambda: convert.convert_(network(), convert.MonarchConfig(4)), "save", path="report.json"
    ),
    "FolderConversion.save": method(
        lambda: convert.FolderConversion(convert.convert_(network(), convert.MonarchConfig(4))), "save", path="new.json"
    ),
    "FolderConversion.load": of(convert.FolderConversion.load, path="converted.json"),
    "convert_folder": of(convert.convert_folder, source=lambda: Path("nothing here"), out="converted"),
    "export_onnx": of(convert.export_onnx, model=lambda: Path("nothing here"), file="model.onnx"),
    "load_s4d_minimal": of(s4.load_s4d_minimal, state=minimal_s4d),
    "extend_positions": of(m2.extend_positions, model=lambda: network_of("M2Bert"), length=12),
    "add_adapters_": of(convert.add_adapters_, model=network, rules=lambda: convert.AdapterConfig(2)),
    "merge_adapters_": of(convert.merge_adapters_, model=adapted),
    "remove_adapters_": of(convert.remove_adapters_, model=adapted),
    "save_adapters": of(convert.save_adapters, model=adapted, path="adapters"),
    "load_adapters_": of(convert.load_adapters_, model=same_network, path="saved"),
    "convert_": of(convert.convert_, model=network, plan=lambda: convert.MonarchConfig(4)),
    "densify_": of(convert.densify_, model=converted),
    "default_rules": of(convert.default_rules),
    "plan_conversion": of(
        convert.plan_conversion, model=network, rules=lambda: convert.MonarchConfig(4), calibration=lambda: [R(32, 16)]
    ),
    "save_pretrained": of(
        convert.save_pretrained,
        model=lambda: models.build_model(
            {"name": "SequenceModel", "options": {"d_input": 1, "d_output": 2, "d_model": 4, "depth": 1}}
        ),
        path="model",
    ),
    "load_pretrained": of(convert.load_pretrained, path="model"),
}
CALLS = {
    f"{module}.{name}": call
    for module, calls in {
        "ops": OPS,
        "ssm": SSM,
        "structures": STRUCTURES,
        "nn": NN,
        "nn.filters": FILTERS,
        "models": MODELS,
        "convert": CONVERT,
    }.items()
    for name, call in calls.items()
}
# Constructors of records that functions return, bases that users subclass, and what two classes say to each other.
NOT_CALLED = {
    *("Backend", "Choice", "HippoBasis", "Factorization", "Projection", "LayerReport", "KeptMatrix"),
    *("OnnxExport", "OnnxFile"),
    *("FolderConversion", "ConversionReport", "ConversionPlan", "MergedAdapters", "StateSpaceFilter"),
    *("EndToEnd", "EndToEnd.from_dict", "Figure", "HeldOut", "Size", "ConversionReport.from_dict"),
    *("StructuredLinear", "StructuredLinear.from_linear", "CausalBasis", "CausalBasis.causally"),
    *("CausalBasis.echo", "CausalBasis.scale", "CausalBasis.output_digits", "ChebyshevBasis.echo"),
    *("ChebyshevBasis.scale", "ChebyshevBasis.output_digits", "FrozenKernel.layout", "register"),
    *(f"{config}.hidden_units" for config in ("LayerConfig", "MonarchConfig", "BlockDiagonalConfig")),
}


def prepare(folder: Path) -> None:
    """Write the files that the calls read."""
    structures.save(MATRICES["Monarch"](), folder / "structure")
    report = convert.convert_(network(), convert.MonarchConfig(4))
    convert.FolderConversion(report).save(folder / "converted.json")
    convert.save_adapters(adapted(), folder / "saved")
    function, given = MODELS["build_model"]()
    convert.save_pretrained(function(**given), folder / "model")
