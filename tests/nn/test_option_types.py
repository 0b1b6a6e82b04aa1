"""Options of the wrong type are refused by name, not taken for whatever Python makes of them."""

import pytest
import torch

from milkweed.nn import S4, S4D, S4ND

SHARED = [
    ("gate", "no", "gate must be True or False; got 'no'"),
    ("gate", 1, "gate must be True or False; got 1"),
    ("tie_dropout", None, "tie_dropout must be True or False; got None"),
    ("dropout", "0.1", "dropout must be a number; got '0.1'"),
    ("dropout", True, "dropout must be a number; got True"),
    ("dt_min", "1e-3", "dt_min must be a number; got '1e-3'"),
    ("activation", None, "activation must be a string; got None"),
    ("output", ["glu"], r"output must be a string; got \['glu'\]"),
    ("d_model", True, "d_model must be an integer; got True"),
    ("d_state", 8.0, "d_state must be an integer; got 8.0"),
    ("channels", "2", "channels must be an integer; got '2'"),
    ("frozen", "dt", r"frozen must be a list of names; got 'dt'; use \['dt'\]"),
    ("frozen", [1], r"frozen must be a list of names; got \[1\]"),
    ("init", 3, "init must be a string; got 3"),
    ("bidirectional", 1, "bidirectional must be True or False; got 1"),
]
OWN = [
    (S4, "n_ssm", 2.0, "n_ssm must be an integer, or None; got 2.0"),
    (S4, "rank", "1", "rank must be an integer, or None; got '1'"),
    (S4, "decay", None, "decay must be a string; got None"),
    (S4, "discretization", None, "discretization must be a string; got None"),
    (S4, "backend", True, "backend must be a string, or None; got True"),
    (S4D, "n_ssm", True, "n_ssm must be an integer, or None; got True"),
    (S4D, "dt_tie", "no", "dt_tie must be True or False; got 'no'"),
    (S4D, "b_init", 1, "b_init must be a string, or None; got 1"),
    (S4D, "init_options", ["scale_imag"], r"init_options must be a mapping, .* got \['scale_imag'\]"),
    (S4ND, "dims", 2.0, "dims must be an integer; got 2.0"),
    (S4ND, "kernel_rank", None, "kernel_rank must be an integer; got None"),
    (S4ND, "kind", None, "kind must be a string; got None"),
    (S4ND, "bandlimit", "0.5", "bandlimit must be a number, or None; got '0.5'"),
    (S4ND, "bidirectional", [True, 0], "bidirectional must be True or False; got 0"),
    (S4ND, "axis_options", ["decay"], r"axis_options must be a mapping, .* got \['decay'\]"),
]


@pytest.mark.parametrize(
    ("kind", "option", "value", "message"), [(kind, *rest) for kind in (S4, S4D, S4ND) for rest in SHARED] + OWN
)
def test_wrong_types(kind, option, value, message):
    with pytest.raises(TypeError, match=message):
        kind(**({"d_model": 4, "d_state": 8} | {option: value}))


def test_what_means_the_same_is_taken():
    layer = S4D(4, 8, dropout=0, dt_min=1e-2, dt_max=1, frozen=("dt",), device=torch.device("cpu"))
    assert layer(torch.randn(1, 5, 4)).shape == (1, 5, 4)
    assert not layer.filter.log_dt.requires_grad
