"""The SaShiMi backbone of state-spaces/s4, key for key."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from milkweed.convert.checkpoints.sashimi import load_sashimi

GOLDEN = Path(__file__).parents[1] / "golden" / "sashimi_tiny.safetensors"


def golden():
    stored = load_file(GOLDEN)
    return stored, {key: value for key, value in stored.items() if not key.startswith("__")}


def test_golden_outputs():
    stored, state = golden()
    model = load_sashimi(state, 4, 4, encoder="linear")
    assert model.options["unet"]
    assert (model.options["pool"], model.options["expand"], model.options["ff"]) == ([2, 3], 2, 2)
    y = model.norm(model.levels(stored["__u"]))
    assert (y - stored["__y"]).abs().max() < 1e-4
    # The whole network, with an encoder and a head that change nothing.
    with torch.no_grad():
        for layer in (model.encoder, model.head):
            layer.weight.copy_(torch.eye(4))
            layer.bias.zero_()
        stepper = model.stepper()
        y, _ = stepper.read(stored["__u"][:, :7], stepper.initial_state(2))
    assert (y - stored["__y"][:, :7]).abs().max() < 1e-4


def test_every_tensor_is_used():
    _, state = golden()
    model = load_sashimi(state, 4, 4)
    own = {name for name in model.state_dict() if not name.startswith(("encoder.", "head."))}
    lengths = sum(key.endswith("l_kernel") for key in state)  # solved into C
    assert len(own) == len(state) - lengths


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), "do not make one Sashimi backbone"),
        (lambda s: s.pop("c_layers.1.layer.ff.2.bias"), "do not make one Sashimi backbone"),
        (lambda s: s.update({"head.weight": torch.zeros(1)}), "unexpected 'head.weight'"),
        (lambda s: s.update({"c_layers.0.layer.layer.D": torch.zeros(1, 3)}), "do not make one S4 layer|must divide"),
    ],
)
def test_foreign_tensors_are_refused(change, message):
    _, state = golden()
    change(state)
    with pytest.raises(ValueError, match=message):
        load_sashimi(state, 4, 4)
