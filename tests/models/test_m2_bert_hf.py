"""M2-BERT among transformers' classes: the plain model's outputs, Auto classes, Trainer, files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from milkweed.convert.checkpoints.m2 import load_m2_bert
from milkweed.models import M2Bert

transformers = pytest.importorskip("transformers")

from milkweed.models.hf.m2_bert import (  # noqa: E402
    M2BertConfig,
    M2BertForMaskedLM,
    M2BertForSequenceClassification,
    M2BertForTextEncoding,
    M2BertModel,
)
from milkweed.models.hf.sentence_transformer import save_sentence_transformer  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden" / "m2_bert_tiny.safetensors"
SIZES = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 24,
    "monarch_mlp_nblocks": 2,
    "hidden_dropout_prob": 0.0,
}
AUTO = {
    M2BertModel: transformers.AutoModel,
    M2BertForMaskedLM: transformers.AutoModelForMaskedLM,
    M2BertForSequenceClassification: transformers.AutoModelForSequenceClassification,
    M2BertForTextEncoding: transformers.AutoModelForTextEncoding,
}


def config(**options):
    return M2BertConfig(**(SIZES | options))


def batch(lengths=(20, 7)):
    tokens = torch.randint(0, 40, (len(lengths), max(lengths)))
    mask = torch.zeros_like(tokens)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    return tokens, mask


def plain_values(config):
    return {name: value for name, value in config.to_dict().items() if name not in {"_name_or_path", "dtype"}}


def switch_checkpointing(model, on):
    # transformers 5 gave these another name.
    name = f"checkpointing_{'enable' if on else 'disable'}"
    (getattr(model, f"activation_{name}", None) or getattr(model, f"gradient_{name}"))()


def tensors(output):
    return [value for value in output.to_tuple() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("cls", AUTO)
class TestEveryClass:
    def test_save_and_load(self, cls, tmp_path):
        model = cls(config(pooling="attention", pre_norm=True)).eval()
        model.save_pretrained(tmp_path)
        stored = load_file(tmp_path / "model.safetensors")
        assert set(stored) == set(model.state_dict())
        tokens, mask = batch()
        for kind in (cls, AUTO[cls]):
            loaded, report = kind.from_pretrained(tmp_path, output_loading_info=True)
            assert type(loaded) is cls
            assert not report["missing_keys"]
            assert not report["unexpected_keys"]
            assert plain_values(loaded.config) == plain_values(model.config)
            for found, expected in zip(tensors(loaded(tokens, mask)), tensors(model(tokens, mask)), strict=True):
                assert torch.equal(found, expected)
        half = cls.from_pretrained(tmp_path, dtype=torch.bfloat16)
        for name, parameter in half.named_parameters():
            # Implicit filters stay as exact as they were.
            kept = ".filter." in name
            assert parameter.dtype == (torch.float32 if kept else torch.bfloat16)
            assert torch.equal(parameter, model.get_parameter(name)) or not kept

    def test_padding(self, cls):
        model = cls(config()).double().eval()
        tokens, mask = batch()
        together, alone = tensors(model(tokens, mask)), tensors(model(tokens[1:, :7], mask[1:, :7]))
        for found, expected in zip(together, alone, strict=True):
            found = found[1:, :7] if found.ndim == 3 else found[1:]
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)

    def test_tuples(self, cls):
        model = cls(config()).eval()
        tokens, mask = batch()
        found = model(tokens, mask, return_dict=False)
        assert isinstance(found, tuple)
        assert torch.equal(found[0], tensors(model(tokens, mask))[0])

    def test_embedded_inputs(self, cls):
        model = cls(config()).eval()
        tokens, mask = batch()
        embedded = model.get_input_embeddings()(tokens)
        found, expected = model(inputs_embeds=embedded, attention_mask=mask)[0], model(tokens, mask)[0]
        torch.testing.assert_close(found, expected)

    def test_gradient_checkpointing(self, cls):
        model = cls(config()).train()
        tokens, mask = batch()
        grads = []
        for on in (False, True):
            switch_checkpointing(model, on)
            model.zero_grad()
            model(tokens, mask)[0].square().sum().backward()
            grads.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        assert model.base_model.encoder.gradient_checkpointing
        torch.testing.assert_close(*grads)

    def test_wrong_inputs(self, cls):
        model = cls(config())
        tokens, mask = batch()
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model()
        with pytest.raises(ValueError, match="padding_side = 'right'"):
            model(tokens, mask.flip(-1))


def test_from_plain_gives_the_golden_outputs(tmp_path):
    stored = load_file(GOLDEN)
    plain = load_m2_bert({key: value for key, value in stored.items() if not key.startswith("__")})
    model = M2BertForMaskedLM.from_plain(plain)
    assert not model.training
    assert model.config.padding == "legacy"
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    ids = stored["__input_ids"]
    mask = torch.ones_like(ids)
    mask[:, 5:] = 0  # not looked at
    with torch.no_grad():
        assert (loaded(ids, mask).logits - stored["__logits"]).abs().max() < 1e-4
        base = M2BertModel.from_plain(plain)
        assert (base(ids).last_hidden_state - stored["__hidden"]).abs().max() < 1e-4
        for cls in (M2BertModel, M2BertForTextEncoding, M2BertForSequenceClassification):
            other = cls.from_pretrained(tmp_path)
            encoder = other if cls is M2BertModel else other.bert
            assert torch.equal(encoder(ids).last_hidden_state, base(ids).last_hidden_state)


def test_from_plain_takes_a_classifier():
    plain = M2Bert(40, 5, 24, 8, 1, nblocks=2, head="classification").eval()
    model = M2BertForSequenceClassification.from_plain(plain)
    tokens, mask = batch()
    assert model.config.num_labels == 5
    torch.testing.assert_close(model(tokens, mask).logits, plain(tokens, mask.sum(-1)))


def test_new_heads_on_a_loaded_encoder_are_drawn(tmp_path):
    M2BertForMaskedLM(config()).save_pretrained(tmp_path)
    model, report = M2BertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True, num_labels=4)
    parts = ("pooler.weight", "pooler.bias", "classifier.weight", "classifier.bias")
    assert set(report["missing_keys"]) == {f"head.{part}" for part in parts}
    for part in parts:
        parameter = model.head.get_parameter(part)
        assert parameter.isfinite().all()
        assert 0 < parameter.abs().max() <= 8**-0.5
    language, report = M2BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert language.head.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("written", "error", "message"),
    [
        (None, FileNotFoundError, "has no config.json"),
        ({"model_type": "bert"}, ValueError, "model_type='bert'"),
        ({"model_type": "m2_bert", "hyena_emb_dim": 5}, ValueError, "not one of these classes'"),
    ],
)
def test_other_files_are_refused_rather_than_drawn_at_random(written, error, message, tmp_path):
    stored = load_file(GOLDEN)
    torch.save(
        {key: value for key, value in stored.items() if not key.startswith("__")}, tmp_path / "pytorch_model.bin"
    )
    if written is not None:
        (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(error, match=message) as caught:
        M2BertForMaskedLM.from_pretrained(tmp_path)
    assert "save_m2_folder" in str(caught.value)
    if written and "hyena_emb_dim" in written:
        with pytest.raises(error, match=message):
            transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)


def test_losses():
    tokens, mask = batch()
    labels = tokens.masked_fill(torch.rand(tokens.shape) < 0.5, -100)
    output = M2BertForMaskedLM(config())(tokens, mask, labels=labels)
    log = output.logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(output.loss, -log[labels >= 0].mean())
    classes = M2BertForSequenceClassification(config(num_labels=3))
    output = classes(tokens, mask, labels=torch.tensor([2, 0]))
    torch.testing.assert_close(output.loss, -output.logits.log_softmax(-1)[[0, 1], [2, 0]].mean())
    several = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    output = classes(tokens, mask, labels=several)
    chance = output.logits.sigmoid()
    expected = -(several * chance.log() + (1 - several) * (1 - chance).log()).mean()
    torch.testing.assert_close(output.loss, expected)
    number = M2BertForSequenceClassification(config(num_labels=1))
    output = number(tokens, mask, labels=torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(output.loss, (output.logits[:, 0] - torch.tensor([0.5, 2.0])).square().mean())


def test_pooling():
    tokens, mask = batch()
    for pooling in ("cls", "mean", "attention"):
        model = M2BertForTextEncoding(config(pooling=pooling)).eval()
        output = model(tokens, mask)
        x = output.last_hidden_state[1, :7]
        if pooling == "attention":
            weights = (x @ model.score.weight[0] + model.score.bias).softmax(0)
            expected = (weights[:, None] * x).sum(0)
        else:
            expected = x[0] if pooling == "cls" else x.mean(0)
        torch.testing.assert_close(output.sentence_embedding[1], expected)
    legacy = M2BertForTextEncoding(config(padding="legacy")).eval()
    output = legacy(tokens, mask)
    torch.testing.assert_close(output.sentence_embedding[1], output.last_hidden_state[1, :7].mean(0))
    with pytest.raises(ValueError, match="pooling"):
        config(pooling="max")


def test_more_tokens():
    model = M2BertForMaskedLM(config()).eval()
    with torch.no_grad():
        model.head.bias.normal_()
    tokens, mask = batch()
    before = model(tokens, mask).logits
    model.resize_token_embeddings(43)
    assert model.config.vocab_size == 43
    after = model(tokens, mask).logits
    torch.testing.assert_close(after[..., :40], before)
    assert model(torch.full((1, 3), 42)).logits.shape == (1, 3, 43)
    model.resize_token_embeddings(30)
    torch.testing.assert_close(model(tokens % 30).logits.shape, torch.Size([2, 20, 30]))


def test_a_trainer_takes_a_step(tmp_path):
    pytest.importorskip("accelerate")
    model = M2BertForMaskedLM(config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens, mask = batch((20, 7, 12, 3))
    data = [
        {"input_ids": row, "attention_mask": kept, "labels": row.masked_fill(kept == 0, -100)}
        for row, kept in zip(tokens, mask, strict=True)
    ]
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True, save_steps=1
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    assert trainer.train().training_loss > 0
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert "head.bias" in changed
    assert "bert.encoder.tokens.weight" in changed
    loaded = M2BertForMaskedLM.from_pretrained(tmp_path / "checkpoint-1")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_folder_for_sentence_transformers(pooling, tmp_path):
    model = M2BertForTextEncoding(config(pooling=pooling)).eval()
    save_sentence_transformer(model, tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling"]
    stored = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert stored["word_embedding_dimension"] == 8
    assert stored[f"pooling_mode_{pooling}_token" + "s" * (pooling == "mean")]
    loaded = transformers.AutoModel.from_pretrained(tmp_path)
    tokens, mask = batch()
    assert torch.equal(loaded(tokens, mask).last_hidden_state, model(tokens, mask).last_hidden_state)


def test_folders_that_sentence_transformers_would_misread(tmp_path):
    for options, message in (
        ({"pooling": "attention"}, "sentence-transformers has no pooling"),
        ({"padding": "legacy"}, "longest text"),
    ):
        with pytest.raises(ValueError, match=message):
            save_sentence_transformer(M2BertForTextEncoding(config(**options)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_library_does_not_import_transformers():
    code = "import sys, milkweed; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
