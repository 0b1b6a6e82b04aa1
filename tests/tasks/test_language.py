import math

import pytest
import torch
from torch.nn import functional as F

from milkweed.models import SequenceModel
from milkweed.tasks import Language
from milkweed.train.module import SequenceModule

TOKENS = 5


@pytest.fixture
def task(monkeypatch):
    model = SequenceModel(
        TOKENS, TOKENS, 8, 1, {"name": "s4d", "d_state": 4}, pooling="none", encoder="embedding", dropout=0.0
    )
    task = SequenceModule(model, Language())
    monkeypatch.setattr(task, "log_dict", lambda *_, **__: None)
    return task


def batch(lengths, length=6):
    tokens = torch.randint(TOKENS, (len(lengths), length + 1))
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "lengths": torch.tensor(lengths)}


def test_every_valid_character_counts_the_same(task):
    examples = [batch([6, 2]), batch([3])]
    losses = []
    for number, example in enumerate(examples):
        logits = task.model(example["inputs"], example["lengths"])
        for row, length in enumerate(example["lengths"]):
            losses.append(F.cross_entropy(logits[row, :length], example["targets"][row, :length], reduction="none"))
        task.validation_step(example, number)
    mean = torch.cat(losses).mean()
    assert torch.allclose(task.task.losses["val_loss"].compute(), mean)
    assert torch.allclose(task.task.score("val").compute(), mean / math.log(2))
    assert torch.allclose(task.task.further_scores("val")["perplexity"].compute(), mean.exp())


def test_tokens_of_several_characters_share_their_bits_among_them(task):
    examples = [batch([6, 6]), batch([6])]
    examples[0]["characters"], examples[1]["characters"] = torch.tensor([20, 5]), torch.tensor([0])
    total = 0.0
    for number, example in enumerate(examples):
        logits = task.model(example["inputs"], example["lengths"])
        total += F.cross_entropy(logits.flatten(0, 1), example["targets"].flatten(), reduction="sum").item()
        task.validation_step(example, number)
    assert task.task.further_scores("val")["perplexity"].compute().item() == pytest.approx(
        math.exp(total / 18), rel=1e-5
    )
    first = task.model(examples[0]["inputs"], examples[0]["lengths"])
    bits = F.cross_entropy(first.flatten(0, 1), examples[0]["targets"].flatten(), reduction="sum").item() / math.log(2)
    assert task.task.score("val").compute().item() == pytest.approx(bits / 25, rel=1e-5)


def test_knowing_nothing_costs_the_logarithm_of_the_vocabulary(task):
    with torch.no_grad():
        task.model.head.weight.zero_()
        task.model.head.bias.zero_()
    task.test_step(batch([6] * 3), 0)
    assert task.task.score("test").compute() == pytest.approx(math.log2(TOKENS))
    assert task.task.further_scores("test")["perplexity"].compute() == pytest.approx(TOKENS)


def test_what_is_no_language_is_refused(task):
    example = batch([6])
    with pytest.raises(ValueError, match=r"train batch 3: inputs must be \(batch, length\) integers"):
        task.training_step({**example, "inputs": torch.randn(1, 6, 1)}, 3)
    task.model.pooling = "mean"
    with pytest.raises(ValueError, match=r"logits for every step, \(1, 6, 'vocabulary'\).*model.pooling=none"):
        task.training_step(example, 0)
