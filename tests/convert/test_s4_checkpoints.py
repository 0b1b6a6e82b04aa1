"""Layers of state-spaces/s4 give the outputs that the original gave."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from milkweed.convert.checkpoints.s4 import load_s4, load_s4d_minimal
from milkweed.nn import S4, S4D

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = ["s4_dplr_legs", "s4_diag_lin"]


def golden(name):
    stored = load_file(GOLDEN / f"{name}.safetensors")
    return stored, {key: value for key, value in stored.items() if not key.startswith("__")}


def as_version_3(state):
    """The names and signs that the repository's conversion script reads."""
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix("layer.").replace("kernel.", "kernel.kernel.", 1)
        if key.endswith("inv_dt"):
            key, value = key.replace("inv_dt", "log_dt"), value[:, 0]
        elif key.endswith("A_real"):
            key = key.replace("A_real", "inv_w_real")
        elif key.endswith("A_imag"):
            key, value = key.replace("A_imag", "w_imag"), -value
        elif key.endswith("l_kernel"):
            key = key.replace("l_kernel", "L")
        renamed[key] = value
    return renamed


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("name", FILES)
def test_golden_outputs(name, version):
    stored, state = golden(name)
    layer = load_s4(as_version_3(state) if version == 3 else state)
    assert type(layer) is (S4 if name == "s4_dplr_legs" else S4D)
    y = layer(stored["__u"].transpose(1, 2)).transpose(1, 2)
    assert (y - stored["__y"]).abs().max() < 1e-5
    kernel = layer.filter.system().kernel(stored["__kernel"].shape[-1])
    assert (kernel - stored["__kernel"]).abs().max() < 1e-5 * stored["__kernel"].abs().max()


def test_an_imported_layer_has_no_length():
    # The original, at another length, computes the same system's kernel: a longer one continues it.
    layer = load_s4(golden("s4_dplr_legs")[1])
    longer = layer.filter.system().kernel(300)
    torch.testing.assert_close(longer[..., :96], layer.filter.system().kernel(96))
    system = layer.filter.system()
    x, expected = system.b, []
    for _ in range(300):
        expected.append(torch.einsum("rhn,hn->rh", system.c, x))
        x = torch.einsum("hmn,hn->hm", system.a, x)
    torch.testing.assert_close(longer, torch.stack(expected, -1), rtol=1e-4, atol=1e-5)


def test_tied_bidirectional_and_heads_are_read_off():
    torch.manual_seed(0)
    _, state = golden("s4_diag_lin")
    state["layer.kernel.C"] = torch.randn(4, 6, 8, 2)
    state["layer.D"] = torch.randn(2, 6)
    state["layer.kernel.B"] = state["layer.kernel.B"][:, :2]
    for name in ("A_real", "A_imag"):
        state[f"layer.kernel.{name}"] = state[f"layer.kernel.{name}"][:2]
    state["layer.kernel.inv_dt"] = state["layer.kernel.inv_dt"].expand(6, 8)
    state["output_linear.0.weight"] = torch.randn(12, 12)
    layer = load_s4(state)
    assert (layer.filter.channels, layer.filter.n_ssm, layer.filter.bidirectional) == (2, 2, True)
    u = torch.randn(3, 20, 6)
    kernel = layer.filter.system().kernel(20).detach()
    past, future = kernel[:2], kernel[2:]
    y = torch.zeros(3, 2, 6, 20)
    for t in range(20):
        for j in range(20):
            lag = past[..., t - j] if t >= j else future[..., j - t - 1]
            y[..., t] += lag * u[:, None, j]
    y = torch.nn.functional.gelu(y + layer.filter.D.detach()[..., None] * u.transpose(1, 2)[:, None])
    mixed = y.flatten(1, 2).transpose(1, 2) @ state["output_linear.0.weight"].T + state["output_linear.0.bias"]
    torch.testing.assert_close(layer(u), torch.nn.functional.glu(mixed, -1), rtol=1e-4, atol=1e-4)


def test_the_softmax_kernel():
    _, state = golden("s4_diag_lin")
    kernel = {name.removeprefix("layer.kernel."): value.double() for name, value in state.items()}
    A = torch.complex(-torch.exp(kernel["A_real"]), -kernel["A_imag"])
    dt_a = torch.exp(kernel["inv_dt"]) * A
    length = 300
    # Version 4, disc='dss', where no real part is positive.
    x = (torch.exp(dt_a * length) - 1) * A
    C = torch.view_as_complex(kernel["B"]) * torch.view_as_complex(kernel["C"])
    C = C * (torch.exp(dt_a) - 1) * x.conj() / (x.abs().square() + 1e-7)
    expected = torch.einsum("chn,hnl->chl", C, torch.exp(dt_a[..., None] * torch.arange(length))).real
    found = load_s4(state, discretization="dss").filter.system().kernel(length)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer.D"), r"missing \['D'\]"),
        (lambda s: s.update({"layer.kernel.Q": torch.zeros(1)}), r"unexpected \['Q'\]"),
        (lambda s: s.update({"layer.kernel.C": torch.zeros(3, 6, 8, 2)}), "C must be"),
        (lambda s: s.update({"layer.kernel.A_real": torch.zeros(4, 8)}), "n_ssm must divide d_model=6"),
        (lambda s: s.update({"output_linear.0.bias": torch.zeros(3)}), "do not make one S4 layer"),
    ],
)
def test_foreign_tensors_are_refused(change, message):
    _, state = golden("s4_dplr_legs")
    change(state)
    with pytest.raises(ValueError, match=message):
        load_s4(state)


def test_two_names_of_one_tensor_are_refused():
    _, state = golden("s4_diag_lin")
    state["kernel.C"] = state["layer.kernel.C"]
    with pytest.raises(ValueError, match="there twice"):
        load_s4(state)


STRANGE = {
    "complex": (lambda value: value.to(torch.complex64), "must be real floating point; got torch.complex64"),
    "whole": (lambda value: value.long(), "must be real floating point; got torch.int64"),
    "NaN": (lambda value: value * float("nan"), "holds NaN or infinity"),
    "no tensor": (lambda value: value.tolist(), "must be a tensor; got list"),
}


@pytest.mark.parametrize("how", STRANGE)
@pytest.mark.parametrize("key", ["D", "output_linear.0.bias"])
def test_numbers_of_another_kind_are_refused_by_name(key, how):
    change, message = STRANGE[how]
    state = golden("s4_dplr_legs")[1]
    name = next(name for name in state if name.endswith(key))
    with pytest.raises(ValueError, match=f"'{name}' {message}"):
        load_s4(state | {name: change(state[name])})
    minimal = {key: value for key, value in golden("s4d_minimal")[1].items() if not key.startswith("__")}
    with pytest.raises(ValueError, match=f"'{key}' {message}"):
        load_s4d_minimal(minimal | {key: change(minimal[key])})
