"""Files of version 0.1.0, where the filter of an S4 layer and what follows it were one module, load as ever."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import milkweed as mw
from milkweed.convert.versions import former, renamed
from milkweed.nn import S4D, S4ND, LongConv, SequenceLayer

GOLDEN = Path(__file__).parents[1] / "golden" / "v0_1_0"
MODELS = [file.stem for file in sorted(GOLDEN.glob("*.safetensors")) if file.stem != "outputs"]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_0_1_0_gives_its_outputs(name, tmp_path):
    file, outputs = GOLDEN / f"{name}.safetensors", load_file(GOLDEN / "outputs.safetensors")
    with safe_open(file, "pt") as stored:
        assert stored.metadata()["milkweed"] == "0.1.0"
    model = mw.load_pretrained(file)
    torch.testing.assert_close(model(outputs[f"{name}.x"]).detach(), outputs[f"{name}.y"], rtol=1e-5, atol=1e-6)
    again = mw.load_pretrained(mw.save_pretrained(model, tmp_path))
    assert torch.equal(again(outputs[f"{name}.x"]), model(outputs[f"{name}.x"]))


def test_there_is_one_of_every_kind():
    assert {"sequence_s4", "sequence_s4d", "sequence_long_conv", "sequence_causal_monarch", "sashimi"} <= set(MODELS)


def test_names_go_both_ways():
    layers = {"a": S4D(4, 4, gate=True), "b": S4ND(4, d_state=4), "c": SequenceLayer(LongConv(4, 9))}
    model = torch.nn.ModuleDict(layers | {"d": torch.nn.Linear(2, 2)})
    names = list(model.state_dict())
    old = former(names, model, "0.1.0")
    assert {"a.log_dt", "a.gate.weight", "b.axes.0.C", "b.D", "c.output.bias", "c.filter.filter.positions"} <= set(old)
    assert len(set(old)) == len(names)
    assert list(renamed(dict.fromkeys(old), model, "0.1.0")) == names
    assert list(renamed(dict.fromkeys(names), model, mw.__version__)) == names == former(names, model, mw.__version__)


def test_two_names_that_are_one_today_are_refused(tmp_path):
    file = GOLDEN / "sequence_s4.safetensors"
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    tensors = load_file(file)
    tensors["blocks.0.layer.filter.log_dt"] = tensors["blocks.0.layer.log_dt"] + 1
    save_file(tensors, tmp_path / "model.safetensors", metadata)
    with pytest.raises(ValueError, match=r"model.safetensors.*log_dt' and .*log_dt' of version 0.1.0 are both"):
        mw.load_pretrained(tmp_path)


def test_a_converted_layer_of_0_1_0(monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = mw.models.SequenceModel(2, 3, d_model=16, depth=1, layer={"name": "s4d", "d_state": 4}).eval()
    mw.convert_(model, mw.plan_conversion(model, {"re:.*mix.output": mw.MonarchConfig(nblocks=2)}))
    x = torch.randn(2, 9, 2)
    file = _as_0_1_0(mw.save_pretrained(model, tmp_path / "new"), model, tmp_path / "old.safetensors")
    assert "blocks.0.layer.output.left" in load_file(file)
    assert torch.equal(mw.load_pretrained(file)(x), model(x))


def test_adapters_of_0_1_0(tmp_path):
    torch.manual_seed(0)
    base = mw.models.SequenceModel(2, 3, d_model=16, depth=1, layer={"name": "s4d", "d_state": 4}).eval()
    mw.save_pretrained(base, tmp_path / "base")
    mw.add_adapters_(base, {"re:.*mix.output": mw.AdapterConfig(nblocks=2)}, train="head")
    for parameter in base.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    file = _as_0_1_0(mw.save_adapters(base, tmp_path / "new"), base, tmp_path / "adapters.safetensors")
    fresh, x = mw.load_pretrained(tmp_path / "base"), torch.randn(2, 9, 2)
    mw.load_adapters_(fresh, file)
    assert torch.equal(fresh(x), base(x))


def _as_0_1_0(file, model, out):
    """The same file with the names of 0.1.0, in its tensors and its metadata."""
    import hashlib
    import json

    from safetensors.torch import save_file

    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    tensors = load_file(file)
    old = dict(zip(tensors, former(tensors, model, "0.1.0"), strict=True))
    metadata["milkweed"] = "0.1.0"
    for key in ("conversion", "adapters", "trained"):
        if key in metadata:
            metadata[key] = metadata[key].replace(".mix.output", ".output")
    if "base" in metadata:
        from milkweed.convert.adapters import base_parameters

        base = json.loads(metadata["base"])
        names = former(base_parameters(model), model, "0.1.0")
        base["names"] = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
        base["samples"] = dict(zip(former(base["samples"], model, "0.1.0"), base["samples"].values(), strict=True))
        metadata["base"] = json.dumps(base)
    save_file({old[name]: tensor for name, tensor in tensors.items()}, out, metadata)
    return out


def test_one_weight_under_three_names_loads(tmp_path):
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(3)))
    model[1].weight = model[2].weight = model[0].weight
    mw.save_pretrained(model, tmp_path)
    into = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(3)))
    into[1].weight = into[2].weight = into[0].weight
    assert torch.equal(mw.load_pretrained(tmp_path, into=into)[2].weight, model[0].weight)
