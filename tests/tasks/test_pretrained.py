from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from milkweed.cli import main
from milkweed.convert import load_pretrained, save_pretrained
from milkweed.convert.checkpoints.m2 import load_m2_bert
from milkweed.models import M2Bert, SequenceModel
from milkweed.tasks.tokens import start_from

TEXTS = Path(__file__).parents[1] / "data" / "texts"
GOLDEN = Path(__file__).parents[1] / "golden" / "m2_bert_tiny.safetensors"
SIZES = {"d_input": 20, "length": 8, "d_model": 8, "depth": 2}


def bert(head, **options):
    return M2Bert(**{**SIZES, "d_output": 3 if head == "classification" else None, "head": head, **options})


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("head", ["none", "classification", "masked_lm"])
def test_encoder_is_taken_over_and_the_head_where_it_is_alike(tmp_path, head):
    source = bert("masked_lm")
    save_pretrained(source, tmp_path)
    model = bert(head)
    before = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("head.")}
    assert not same(source.encoder.state_dict(), model.encoder.state_dict())
    start_from(model, str(tmp_path))
    assert same(source.encoder.state_dict(), model.encoder.state_dict())
    if head == "masked_lm":
        assert same(source.state_dict(), model.state_dict())
    else:
        assert same(before, model.state_dict())


def test_a_classifier_of_other_classes_starts_afresh(tmp_path):
    source, alike, other = bert("classification"), bert("classification"), bert("classification", d_output=2)
    save_pretrained(source, tmp_path / "model.safetensors")
    for model in (alike, other):
        start_from(model, str(tmp_path / "model.safetensors"))
    assert same(source.state_dict(), alike.state_dict())
    assert not torch.equal(source.head.pooler.weight, other.head.pooler.weight)


@pytest.mark.parametrize("length", [9, 63, 1000])
def test_an_encoder_for_shorter_texts_is_extended(tmp_path, length):
    source = bert("masked_lm")
    save_pretrained(source, tmp_path)
    model = bert("none", length=length)
    start_from(model, str(tmp_path))
    positions = source.encoder.positions.weight
    assert torch.equal(model.encoder.positions.weight, torch.cat([positions] * 125)[:length])
    assert torch.equal(model.encoder.tokens.weight, source.encoder.tokens.weight)
    assert same(source.encoder.blocks[0].mlp.state_dict(), model.encoder.blocks[0].mlp.state_dict())


def test_options_that_differ_are_named_with_their_values(tmp_path):
    save_pretrained(bert("masked_lm"), tmp_path)
    model = bert("none", d_model=16, length=7, d_input=21, pre_norm=True)
    with pytest.raises(
        ValueError,
        match=r"has vocabulary_size=20, length=8, d_model=8, pre_norm=False, and this model 21, 7, 16, True; use "
        r"data.vocabulary_size=20 data.length=8 model.d_model=8 model.pre_norm=false",
    ):
        start_from(model, str(tmp_path))
    start_from(bert("none", dropout=0.5), str(tmp_path))


def test_what_holds_no_encoder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds neither model\.safetensors nor pytorch_model\.bin; name a run"):
        start_from(bert("none"), str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; name a run, e\.g\. runs/m2-bert-mlm"):
        start_from(bert("none"), str(tmp_path / "nowhere"))
    other = SequenceModel(1, 1, 8, 1, {"name": "s4d", "d_state": 4})
    save_pretrained(other, tmp_path)
    with pytest.raises(TypeError, match="is a SequenceModel; expected an M2Bert"):
        start_from(bert("none"), str(tmp_path))
    with pytest.raises(TypeError, match="needs a model with an encoder, M2Bert; got SequenceModel"):
        start_from(other, str(tmp_path))


def test_published_files_will_do(tmp_path):
    state = {name: value for name, value in load_file(GOLDEN).items() if not name.startswith("__")}
    source = load_m2_bert(state)
    save_file(state, tmp_path / "model.safetensors")
    torch.save({"state": {"model": {f"model.{name}": value for name, value in state.items()}}}, tmp_path / "m2.pt")
    for path in (tmp_path, tmp_path / "m2.pt"):
        model = M2Bert(**(source.options | {"head": "none", "padding": "masked"}))
        start_from(model, str(path))
        assert same(source.encoder.state_dict(), model.encoder.state_dict())
        assert model.encoder.padding == "masked"


def test_pretrain_then_fine_tune_then_evaluate(tmp_path, capsys):
    sizes = ["--model.d_model", "16", "--model.depth", "1", "--data.vocabulary_size", "192", "--data.length", "32"]
    short = ["--out", str(tmp_path), "--trainer.max_epochs", "1", "--data.batch_size", "4"]
    text = ["--data.source", __file__, "--data.tokenizer", "null", "--data.length", "48", "--data.limit", "16"]
    text += ["--trainer.accumulate_grad_batches", "1"]
    assert main(["train", "m2-bert-mlm", "--name", "first", *short, *sizes, *text]) == 0
    tokenizer = ["--data.tokenizer", str(tmp_path / "first"), "--data.source", str(TEXTS / "stsb")]
    start = ["--task.pretrained", str(tmp_path / "first")]
    assert main(["train", "m2-bert-glue", "--name", "no", *short, *sizes, *tokenizer, *start]) == 2
    assert "has length=48, and this model 32; use --data.length 48" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "no").exists()
    tokenizer += ["--data.length", "48"]
    still = ["--task.lr", "1e-12"]
    assert main(["train", "m2-bert-glue", "--name", "tuned", *short, *sizes, *tokenizer, *start, *still]) == 0
    first, tuned = (load_pretrained(tmp_path / name) for name in ("first", "tuned"))
    for name, value in first.encoder.state_dict().items():
        assert torch.allclose(value, tuned.encoder.state_dict()[name], atol=1e-6), name
    capsys.readouterr()
    # What the run came from is not needed any more.
    (tmp_path / "first" / "model.safetensors").unlink()
    assert main(["evaluate", str(tmp_path / "tuned")]) == 0
    assert "pearson" in capsys.readouterr().out
    resume = ["--name", "tuned", "--resume", "auto", "--out", str(tmp_path), "--trainer.max_epochs", "2"]
    assert main(["train", "m2-bert-glue", *resume]) == 0
