"""Masks, labels and hidden states of the transformers classes of M2-BERT."""

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("transformers")

from milkweed.models.hf.m2_bert import (
    M2BertConfig,
    M2BertForMaskedLM,
    M2BertForSequenceClassification,
    M2BertForTextEncoding,
    M2BertModel,
)
from milkweed.models.hf.sentence_transformer import save_sentence_transformer

CLASSES = (M2BertModel, M2BertForMaskedLM, M2BertForSequenceClassification, M2BertForTextEncoding)
TOKENS = torch.arange(16).view(2, 8)


def make(kind, **options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 3, "max_position_embeddings": 8}
    return kind(M2BertConfig(**sizes, kernel_options={"width": 4}, hidden_dropout_prob=0.0, **options)).eval()


@pytest.mark.parametrize("padding", ["masked", "legacy"])
@pytest.mark.parametrize("kind", CLASSES)
def test_masks_of_another_shape(kind, padding):
    model = make(kind, padding=padding)
    mask = torch.ones(2, 8, dtype=torch.int64)
    for given in (mask[:, :7], mask[:1], mask[0], mask[:, None]):
        with pytest.raises(
            ValueError, match=r"attention_mask must be \(B, L\) = \(2, 8\) as the inputs are; got shape"
        ):
            model(TOKENS, attention_mask=given)
    with pytest.raises(TypeError, match="attention_mask must be a tensor; got list"):
        model(TOKENS, attention_mask=mask.tolist())


def test_masks_that_are_no_padding():
    model = make(M2BertModel)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    expected = model(TOKENS, attention_mask=mask).last_hidden_state
    for dtype in (torch.bool, torch.float32, torch.float16, torch.int8):
        assert torch.equal(model(TOKENS, attention_mask=mask.to(dtype)).last_hidden_state, expected)
    for given in (mask.flip(1), 2 * mask, 0.5 * mask, (mask - 1.0) * 1e9):
        with pytest.raises(ValueError, match="1 for tokens and 0 for the padding behind them"):
            model(TOKENS, attention_mask=given)
    with pytest.raises(ValueError, match="attention_mask has no token in row 1; drop empty texts"):
        model(TOKENS, attention_mask=torch.tensor([[1] * 8, [0] * 8]))


@pytest.mark.parametrize("kind", CLASSES)
def test_hidden_states(kind):
    model = make(kind)
    assert model(TOKENS).hidden_states is None
    output = model(TOKENS, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    encoder = model.base_model.encoder
    for before, after, block in zip(output.hidden_states, output.hidden_states[1:], encoder.blocks, strict=False):
        torch.testing.assert_close(block(before), after)
    assert torch.equal(output.hidden_states[-1], encoder(TOKENS))
    model.config.output_hidden_states = True
    assert len(model(TOKENS).hidden_states) == 4
    assert len(model(TOKENS, return_dict=False)[-1]) == 4
    assert model(TOKENS, output_hidden_states=False).hidden_states is None


def test_labels_of_tokens():
    model = make(M2BertForMaskedLM)
    labels = torch.where(TOKENS % 3 == 0, TOKENS, -100)
    output = model(TOKENS, labels=labels.int())
    chosen = labels != -100
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits[chosen], labels[chosen]))
    for given, message in (
        (labels[:, :7], r"labels must be integers of shape \(2, 8\); got torch.int64 of shape \(2, 7\)"),
        (labels.flatten(), r"got torch.int64 of shape \(16,\)"),
        (labels.float(), "got torch.float32"),
        (labels + 10, "labels must be in 0 .. 19, or -100 where nothing is predicted; got"),
    ):
        with pytest.raises(ValueError, match=message):
            model(TOKENS, labels=given)
    with pytest.raises(TypeError, match="labels must be a tensor; got list"):
        model(TOKENS, labels=labels.tolist())


@pytest.mark.parametrize(
    ("count", "labels", "message"),
    [
        (3, torch.tensor([0, 7]), "labels must be in 0 .. 2"),
        (3, torch.tensor([0]), r"labels must be integers of shape \(2,\)"),
        (3, torch.tensor([0.0, 1.0]), r"labels must be numbers \(B, num_labels\) = \(2, 3\), 0 or 1 for every class"),
        (3, torch.zeros(2, 3, dtype=torch.int64), r"labels must be integers of shape \(2,\)"),
        (1, torch.tensor([0.5]), r"labels must be numbers \(B, num_labels\) = \(2, 1\); got"),
    ],
)
def test_labels_of_texts(count, labels, message):
    with pytest.raises(ValueError, match=message):
        make(M2BertForSequenceClassification, num_labels=count)(TOKENS, labels=labels)


def test_labels_of_several_numbers():
    model = make(M2BertForSequenceClassification, num_labels=3, problem_type="regression")
    labels = torch.rand(2, 3)
    output = model(TOKENS, labels=labels)
    torch.testing.assert_close(output.loss, F.mse_loss(output.logits, labels))
    with pytest.raises(ValueError, match=r"labels must be numbers .* = \(2, 3\); got torch.float32 of shape \(2,\)"):
        model(TOKENS, labels=torch.rand(2))
    model.config.problem_type = "multi_label"
    with pytest.raises(ValueError, match="did you mean 'multi_label_classification'"):
        model(TOKENS, labels=labels)


def test_folders_of_sentence_transformers(tmp_path):
    with pytest.raises(TypeError, match=r"model must be an M2BertForTextEncoding, .* got M2BertModel"):
        save_sentence_transformer(make(M2BertModel), tmp_path)
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(NotADirectoryError, match="file is a file; name a folder"):
        save_sentence_transformer(make(M2BertForTextEncoding), file)
    assert file.read_text() == "kept"
