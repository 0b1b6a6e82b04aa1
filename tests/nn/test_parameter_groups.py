"""Which parameters are decayed, and at which rate they learn."""

import copy

import pytest
import torch
from torch import nn

from milkweed.models import SequenceModel
from milkweed.nn import parameter_groups


def names(model, groups):
    of = {id(p): name for name, p in model.named_parameters()}
    return {group["name"]: {of[id(p)] for p in group["params"]} for group in groups}


def test_groups_cover_everything_once_and_survive_deepcopy():
    model = copy.deepcopy(SequenceModel(1, 3, 8, 2, {"name": "s4d", "d_state": 4}))
    groups = parameter_groups(model, lr=0.01, weight_decay=0.05)
    found = names(model, groups)
    assert sum(map(len, found.values())) == len(list(model.parameters()))
    assert {n.rpartition(".")[2] for n in found["ssm"]} == {"log_dt", "A_real", "A_imag"}
    assert all(model.get_parameter(n).ndim > 1 for n in found["decay"])
    assert {"blocks.0.layer.filter.D", "head.bias", "norm.norm.weight"} <= found["no_decay"]
    rates = {g["name"]: (g["lr"], g["weight_decay"]) for g in groups}
    assert rates == {"decay": (0.01, 0.05), "no_decay": (0.01, 0.0), "ssm": (1e-3, 0.0)}
    assert {g["name"]: g["lr"] for g in parameter_groups(model, lr=1e-4)}["ssm"] == 1e-4
    assert {g["name"]: g["lr"] for g in parameter_groups(model, lr=1e-2, ssm_lr=5e-3)}["ssm"] == 5e-3
    torch.optim.AdamW(groups)


def test_frozen_parameters_are_left_out():
    model = SequenceModel(1, 3, 8, 1)
    model.blocks[0].layer.filter.log_dt.requires_grad_(False)
    assert "blocks.0.layer.filter.log_dt" not in names(model, parameter_groups(model, lr=0.1))["ssm"]
    with pytest.raises(ValueError, match="no parameter with requires_grad"):
        parameter_groups(model.requires_grad_(False), lr=0.1)


def test_a_wrong_role_is_refused():
    class Odd(nn.Linear):
        def parameter_roles(self):
            return {"wieght": "ssm"}

    with pytest.raises(ValueError, match="names parameter 'wieght'"):
        parameter_groups(nn.Sequential(Odd(2, 2)), lr=0.1)


class Fixed(nn.Module):
    """A layer that speaks for the plain layer within it."""

    def __init__(self, settings):
        super().__init__()
        self.inner, self.settings = nn.Linear(3, 3), settings

    def parameter_settings(self):
        return self.settings


def test_settings_do_not_follow_the_model():
    model = copy.deepcopy(nn.Sequential(Fixed({"inner.weight": (2e-3, 0.3)}), nn.Linear(3, 3)))
    groups = parameter_groups(model, lr=0.1, weight_decay=0.05)
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in groups} == {
        "decay": (0.1, 0.05),
        "no_decay": (0.1, 0.0),
        "lr 0.002 decay 0.3": (2e-3, 0.3),
    }
    assert names(model, groups)["lr 0.002 decay 0.3"] == {"0.inner.weight"}
    assert sum(len(g["params"]) for g in groups) == 4
    torch.optim.AdamW(groups)
    # Nothing but settings to train is enough.
    model[0].inner.bias.requires_grad_(False)
    assert [g["lr"] for g in parameter_groups(model[0], lr=0.1)] == [2e-3]


@pytest.mark.parametrize(
    "settings", [{"weight": (0.1, 0.0)}, {"inner.weight": (0.0, 0.0)}, {"inner.bias": (0.1, -1.0)}]
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match="names parameter"):
        parameter_groups(Fixed(settings), lr=0.1)


def test_compiled_layers_are_looked_into():
    from milkweed.nn import S4D

    groups = parameter_groups(torch.compile(S4D(4, 8)), lr=0.1)
    assert len(next(g for g in groups if g["name"] == "ssm")["params"]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be"),
        ({"lr": float("nan")}, "lr must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
    ],
)
def test_rates_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        parameter_groups(nn.Linear(2, 2), **({"lr": 0.1} | options))
    with pytest.raises(TypeError, match="model must be a module"):
        parameter_groups(nn.Linear(2, 2).parameters(), lr=0.1)
