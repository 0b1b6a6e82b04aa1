"""What the Monarch Mixer's layers refuse, by name, instead of taking it for something else."""

import pytest
import torch

from milkweed.nn import (
    CausalMonarchMixer,
    ExplicitFilter,
    GatedMixer,
    GatedMixerBlock,
    ImplicitFilter,
    LearnableTransform,
    LongConv,
    MonarchMixer,
    ShortConv,
)

SIZES = {"d_model": 4, "l_max": 16}
SMALL = {"kernel_options": {"width": 4}}


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: LongConv(**SIZES, dtype=torch.complex64),
            TypeError,
            "real floating point; got torch.complex64; use t",
        ),
        (lambda: LongConv(**SIZES, kernel="explicit", dtype=torch.int64), TypeError, "dtype must be real floating poi"),
        (
            lambda: ImplicitFilter(**SIZES, dtype="float32"),
            TypeError,
            "dtype must be a torch.dtype, or None; got 'float",
        ),
        (
            lambda: ExplicitFilter(**SIZES, dtype=torch.bool),
            TypeError,
            "dtype must be real floating point; got torch.bo",
        ),
        (lambda: MonarchMixer(4, 8, dtype=torch.complex64), TypeError, "dtype must be real floating point"),
        (lambda: CausalMonarchMixer(4, 8, dtype=torch.int8), TypeError, "dtype must be real floating point"),
        (lambda: GatedMixer(**SIZES, dtype=torch.int8), TypeError, "dtype must be real floating point"),
        # Such options would make another layer than the one that is asked for: a causal mixer that sees the future.
        (lambda: GatedMixer(**SIZES, kernel_options={"bidirectional": True}), ValueError, "'bidirectional' is unknown"),
        (lambda: GatedMixer(**SIZES, kernel_options={"dtype": torch.float64}), ValueError, "'dtype' is unknown"),
        (lambda: GatedMixer(**SIZES, kernel_options={"widht": 4}), ValueError, "did you mean 'width'"),
        (lambda: GatedMixer(**SIZES, kernel_options="width"), TypeError, "mapping of LongConv's arguments"),
        (lambda: GatedMixerBlock(**SIZES, dropout=float("nan")), ValueError, "dropout must be in 0 <= p <= 1; got nan"),
        (lambda: GatedMixerBlock(**SIZES, norm_eps=-1.0), ValueError, "norm_eps must be at least 0 and finite; got -1"),
        (lambda: GatedMixerBlock(**SIZES, d_hidden=0), ValueError, "d_hidden must be at least 1; got 0"),
        (lambda: GatedMixerBlock(**SIZES, d_hidden=8.0), TypeError, "d_hidden must be an integer, or None; got 8.0"),
        (lambda: ShortConv(0), ValueError, "channels must be at least 1; got 0"),
        (lambda: ShortConv(None), TypeError, "channels must be an integer; got None"),
        (lambda: LearnableTransform(8, inverse="no"), TypeError, "inverse must be True or False; got 'no'"),
        (lambda: LearnableTransform(8, unitary=1), TypeError, "unitary must be True or False; got 1"),
        (lambda: LearnableTransform(8, norm=None), TypeError, "norm must be a string; got None"),
        (lambda: LearnableTransform(True), TypeError, "n must be an integer; got True"),
        (lambda: LearnableTransform(8, ["dft"]), TypeError, "start must be a string"),
        (lambda: LearnableTransform(8, dtype="float32"), TypeError, "dtype must be a torch.dtype"),
    ],
)
def test_options(build, error, message):
    with pytest.raises(error, match=message):
        build()


LAYERS = {
    "long_conv": lambda: LongConv(**SIZES, width=4),
    "gated": lambda: GatedMixer(**SIZES, **SMALL),
    "block": lambda: GatedMixerBlock(**SIZES, **SMALL),
    "monarch": lambda: MonarchMixer(4, 16),
    "causal": lambda: CausalMonarchMixer(4, 16),
    "transform": lambda: LearnableTransform(4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_inputs_that_are_no_tensors(name):
    layer = LAYERS[name]()
    for given, kind in ((torch.randn(1, 5, 4).numpy(), "ndarray"), (None, "NoneType"), ([[0.0] * 4], "list")):
        with pytest.raises(TypeError, match=f"[ux] must be a tensor; got {kind}; use torch.as_tensor"):
            layer(given)


def test_dtypes_that_autocast_does_not_change():
    mixer = GatedMixer(**SIZES, **SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        assert mixer(torch.randn(1, 5, 4).bfloat16()).dtype == torch.bfloat16
        for dtype in (torch.float64, torch.int64):
            with pytest.raises(TypeError, match=f"u must be .*; got {dtype}"):
                mixer(torch.ones(1, 5, 4, dtype=dtype))


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("gate", ["pre_gate", "post_gate"])
def test_gates_are_not_stretched(gate, state):
    conv = LongConv(**SIZES, width=4)
    given = conv.stepper().initial_state(2) if state else None
    for shape in ((1, 5, 4), (2, 4, 4), (2, 5, 1)):
        with pytest.raises(ValueError, match=rf"{gate} must have u's shape \(2, 5, 4\); got"):
            conv(torch.randn(2, 5, 4), given, **{gate: torch.randn(shape)})


@pytest.mark.parametrize("name", ["long_conv", "gated", "block", "causal"])
def test_steppers(name):
    stepper = LAYERS[name]().stepper()
    state = stepper.initial_state(2)
    u = torch.randn(2, 4)
    others = {"long_conv": "causal"}.get(name, "long_conv")
    foreign = LAYERS[others]().stepper().initial_state(2)
    for step, error, message in (
        (lambda: stepper(u.long(), state), TypeError, r"real floating point; got torch.int64; use u.float\(\)"),
        (lambda: stepper(u.to(torch.complex64), state), TypeError, "real floating point; got torch.complex64"),
        (lambda: stepper(u.numpy(), state), TypeError, "u must be a tensor; got ndarray"),
        (lambda: stepper(u[:, None], state), ValueError, r"u must be \(B, 4\); got shape \(2, 1, 4\)"),
        (lambda: stepper(u[:, :3], state), ValueError, r"u must be \(B, 4\); got shape \(2, 3\)"),
        (lambda: stepper.read(u, state), ValueError, r"u must be \(B, L, 4\) with L >= 1; got shape \(2, 4\)"),
        (lambda: stepper.read(u[:, None][:, :0], state), ValueError, r"with L >= 1; got shape \(2, 0, 4\)"),
        (lambda: stepper.read(u[:, None, :3], state), ValueError, r"u must be \(B, L, 4\)"),
        (lambda: stepper(u[:1], state), ValueError, "state must be of 1 sequences of .* for this u; got"),
        (lambda: stepper.read(u[:1, None], state), ValueError, "state must be of 1 sequences of"),
        (lambda: stepper(u, None), TypeError, "state must be from initial_state or an earlier step; got NoneType"),
        (lambda: stepper(u, foreign), TypeError, "state must be from initial_state or an earlier step; got"),
        (lambda: stepper.read(u[:, None], foreign), TypeError, "state must be from initial_state"),
        (lambda: stepper.initial_state(-1), ValueError, "batch_size must be at least 0; got -1"),
        (lambda: stepper.initial_state(2.0), TypeError, "batch_size must be an integer; got 2.0"),
    ):
        with pytest.raises(error, match=message):
            step()


@pytest.mark.parametrize("name", ["gated", "block"])
def test_steps_in_another_dtype(name):
    stepper = LAYERS[name]().stepper()
    with pytest.raises(TypeError, match=r"u must be torch.float32 as the layer's parameters are; got torch.float64"):
        stepper(torch.randn(2, 4).double(), stepper.initial_state(2))
