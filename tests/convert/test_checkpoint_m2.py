"""M2-BERT checkpoints give the outputs that the original gave, and what is no such checkpoint is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from milkweed.convert import load_pretrained
from milkweed.convert.checkpoints.m2 import extend_positions, load_m2_bert, read_m2_checkpoint
from milkweed.models import M2Bert

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = ["m2_bert_tiny", "m2_bert_tiny_additions"]
FREQ = "bert.encoder.layer.1.attention.filter_fn2.implicit_filter_rev.3.freq"


def golden(name="m2_bert_tiny"):
    stored = load_file(GOLDEN / f"{name}.safetensors")
    return stored, {key: value for key, value in stored.items() if not key.startswith("__")}


def check_outputs(model, stored):
    with torch.no_grad():
        assert (model.encoder(stored["__input_ids"]) - stored["__hidden"]).abs().max() < 1e-4
        if "masked_lm" in model.options["head"]:
            assert (model(stored["__input_ids"]) - stored["__logits"]).abs().max() < 1e-4


@pytest.mark.parametrize("name", FILES)
def test_golden_outputs(name):
    stored, state = golden(name)
    model = load_m2_bert(state)
    check_outputs(model, stored)
    options = model.options
    assert options["pre_norm"] == (name == "m2_bert_tiny_additions")
    assert options["length"] == stored["__input_ids"].shape[1]
    assert (options["depth"], options["nblocks"], options["padding"], options["head"]) == (2, 4, "legacy", "masked_lm")
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("prefix", ["model.", "module.", "model.module.", "module.model."])
def test_prefixes(prefix):
    stored, state = golden()
    check_outputs(load_m2_bert({prefix + key: value for key, value in state.items()}), stored)


def test_every_key_of_twelve_layers_is_known():
    # The published counts: 59 names per layer and 12 outside, two more per layer with the training additions.
    for name, count in zip(FILES, (720, 744), strict=True):
        _, state = golden(name)
        deep = {}
        for key, value in state.items():
            if ".layer.0." in key:
                deep |= {key.replace(".layer.0.", f".layer.{i}."): value for i in range(12)}
            elif ".layer.1." not in key:
                deep[key] = value
        assert len(deep) == count
        assert load_m2_bert(deep).options["depth"] == 12
        for key in (
            "bert.encoder.layer.11.mlp.wo.bias",
            "bert.embeddings.LayerNorm.weight",
            "cls.predictions.decoder.bias",
        ):
            with pytest.raises(ValueError, match="missing"):
                load_m2_bert({name: value for name, value in deep.items() if name != key})


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt"])
def test_files(suffix, tmp_path):
    stored, state = golden()
    file = tmp_path / f"model.{suffix}"
    if suffix == "safetensors":
        save_file(state, file)
    elif suffix == "bin":
        torch.save(state, file)
    else:  # Composer
        torch.save({"state": {"model": {f"model.{k}": v for k, v in state.items()}, "timestamp": {"epoch": 3}}}, file)
    check_outputs(load_m2_bert(read_m2_checkpoint(file)), stored)


def test_folders(tmp_path):
    stored, state = golden()
    with pytest.raises(FileNotFoundError, match=r"holds neither model\.safetensors nor pytorch_model\.bin"):
        read_m2_checkpoint(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    check_outputs(load_m2_bert(read_m2_checkpoint(tmp_path)), stored)
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(ValueError, match="published M2-BERT with load_m2_bert"):
            load_pretrained(path)
    save_file({name: 2 * tensor for name, tensor in state.items()}, tmp_path / "model.safetensors")
    assert torch.equal(read_m2_checkpoint(tmp_path)[FREQ], 2 * state[FREQ])


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_files_are_data(tmp_path, capsys):
    file = tmp_path / "model.bin"
    for content in (Harmful(), {"state": Harmful()}):
        torch.save(content, file)
        with pytest.raises(ValueError, match=r"holds code, .*print, beside tensors, which is not run"):
            read_m2_checkpoint(file)
    torch.save({"state": {"model": {"a": 3}}}, file)
    with pytest.raises(ValueError, match="tensors by name"):
        read_m2_checkpoint(file)
    with pytest.raises(FileNotFoundError, match=r"give a \.safetensors"):
        read_m2_checkpoint(tmp_path / "other.bin")
    assert "executed" not in capsys.readouterr().out


def test_what_may_be_missing_or_more():
    stored, state = golden()
    for key in [key for key in state if key.endswith((".3.freq", ".5.freq", "_rev.1.freq"))]:
        del state[key]
    del state["bert.embeddings.position_ids"]
    state["bert.encoder.layer.0.attention.flashfftconv.f_16_fft"] = torch.zeros(3)
    check_outputs(load_m2_bert(state), stored)


def test_classifiers_and_bare_encoders():
    stored, state = golden()
    bare = {key: value for key, value in state.items() if not key.startswith("cls.")}
    model = load_m2_bert(bare)
    check_outputs(model, stored)
    assert model.head is None
    dense, out = torch.randn(64, 64), torch.randn(3, 64)
    bare |= {"bert.pooler.dense.weight": dense, "bert.pooler.dense.bias": torch.ones(64)}
    bare |= {"classifier.weight": out, "classifier.bias": torch.zeros(3)}
    model = load_m2_bert(bare)
    expected = torch.tanh(stored["__hidden"][:, 0] @ dense.T + 1) @ out.T
    torch.testing.assert_close(model(stored["__input_ids"]), expected, rtol=1e-3, atol=1e-3)


def test_half_precision_stays():
    _, state = golden()
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in state.items()}
    for name, parameter in load_m2_bert(half).named_parameters():
        assert parameter.dtype == (torch.float32 if ".filter." in name else torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("bert.encoder.layer.1.mlp.wo.bias"), r"missing \['bert.encoder.layer.1.mlp.wo.bias'\]"),
        (lambda s: s.update(extra=torch.zeros(1)), r"unexpected \['extra'\]"),
        (lambda s: s.update({FREQ: s[FREQ] + 1}), "frequencies of one filter must be equal"),
        (lambda s: s.update({"model.bert.embeddings.LayerNorm.bias": torch.zeros(64)}), "there twice"),
        (lambda s: s.update({"cls.predictions.decoder.weight": torch.zeros(512, 64)}), "must be the token embedding"),
        (
            lambda s: s.update({"bert.encoder.layer.0.attention.filter_fn.pos_emb.t": torch.zeros(1, 48, 1)}),
            "pos_emb.t must be what 48 positions",
        ),
        (
            lambda s: s.update({"bert.encoder.layer.0.attention.filter_fn2.modulation.deltas": torch.ones(1, 1, 64)}),
            "modulation.deltas must be what",
        ),
        (lambda s: s.update({"bert.embeddings.position_ids": torch.arange(47)[None]}), "position_ids must be"),
        (lambda s: s.update({"bert.encoder.layer.0.mlp.wo.bias": torch.zeros(3)}), "do not make one M2-BERT"),
        (lambda s: s.update({"bert.encoder.layer.0.mlp.gated_layers.weight": torch.zeros(3)}), "number of dimensions"),
        (lambda s: s.pop("bert.embeddings.word_embeddings.weight"), "missing 'bert.embeddings.word_embeddings.weight'"),
    ],
)
def test_foreign_tensors_are_refused(change, message):
    _, state = golden()
    change(state)
    with pytest.raises(ValueError, match=message):
        load_m2_bert(state)


@pytest.mark.parametrize("kernels", ["keep", "stretch"])
@pytest.mark.parametrize("length", [48, 143, 8192])
def test_extended_positions(length, kernels):
    model = load_m2_bert(golden()[1]).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    longer = extend_positions(model, length, kernels)
    assert longer.options["length"] == length
    assert longer.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    positions = longer.encoder.positions.weight
    assert torch.equal(positions, before["encoder.positions.weight"][torch.arange(length) % 48])
    changed = {name for name, tensor in longer.state_dict().items() if not torch.equal(tensor, before[name])}
    if length == 48:
        assert not changed
    else:
        assert all("positions" in name for name in changed)
    with torch.no_grad():
        assert longer.eval()(torch.zeros(1, length, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize("length", [49, 143, 1000])
def test_kept_kernels_answer_as_before(length):
    model = load_m2_bert(golden()[1])
    longer = extend_positions(model, length)
    tokens = torch.randint(model.options["d_input"], (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(longer(tokens), model(tokens), rtol=1e-4, atol=1e-4)
    saved = M2Bert(**longer.options)
    saved.load_state_dict(longer.state_dict())
    # In two steps, of which the first is a whole repetition of the embeddings, it is the same model.
    again = extend_positions(extend_positions(model, 96), length) if length > 96 else saved
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, longer.state_dict()[name], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(saved.eval()(tokens), longer(tokens))


def test_kernels_are_stretched():
    model = load_m2_bert(golden()[1])
    length = 47 * 5 + 1
    longer = extend_positions(model, length, "stretch")
    for old, new in zip(model.encoder.blocks, longer.encoder.blocks, strict=True):
        for conv in ("long_conv", "residual_conv"):
            kernels = (getattr(block.mixer, conv).filter() for block in (old, new))
            for short, long in zip(*kernels, strict=True):
                torch.testing.assert_close(long[:, ::5], short, rtol=1e-4, atol=1e-5)


def test_models_that_cannot_be_extended():
    model = M2Bert(12, length=8, d_model=8, depth=1, d_hidden=16, kernel_options={"kernel": "explicit"})
    with pytest.raises(ValueError, match="only implicit kernels"):
        extend_positions(model, 16)
    with pytest.raises(ValueError, match="length must be at least the model's, 8; got 7"):
        extend_positions(model, 7)
    with pytest.raises(ValueError, match="kernels='stretched' is unknown; did you mean 'stretch'"):
        extend_positions(model, 9, "stretched")
    for wrong in (model.encoder, "model.safetensors", model.state_dict(), None):
        with pytest.raises(TypeError, match=f"model must be an M2Bert; got {type(wrong).__name__}; read a file with"):
            extend_positions(wrong, 16)
    with pytest.raises(TypeError, match="length must be an integer; got '16'"):
        extend_positions(model, "16")
