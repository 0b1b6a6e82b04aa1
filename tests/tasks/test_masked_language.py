import math

import pytest
import torch
from torch import nn

from milkweed._batches import IGNORED
from milkweed.models import M2Bert, SequenceModel
from milkweed.tasks import MaskedLanguage
from milkweed.train.module import SequenceModule
from milkweed.train.optimisation import Optimisation

TOKENS = 7


@pytest.fixture
def make(monkeypatch):
    def make(model=None, **options):
        model = model or M2Bert(TOKENS, length=6, d_model=8, depth=1, dropout=0.0)
        task = SequenceModule(model, MaskedLanguage(), Optimisation(**MaskedLanguage.optimisation | options))
        monkeypatch.setattr(task, "log_dict", lambda *_, **__: None)
        return task

    return make


def batch(size=4, length=6, share=0.4):
    tokens = torch.randint(TOKENS, (size, length))
    chosen = torch.rand(size, length) < share
    chosen[0, 1] = True
    return {
        "inputs": torch.where(chosen, 4, tokens),
        "targets": torch.where(chosen, tokens, IGNORED),
        "lengths": torch.full((size,), length),
    }


def literal(logits, targets):
    """Cross entropies of the masked tokens one by one, and whether each is told right."""
    losses, right = [], []
    for row, wanted in zip(logits.double().reshape(-1, TOKENS), targets.flatten().tolist(), strict=True):
        if wanted != IGNORED:
            losses.append(row.exp().sum().log() - row[wanted])
            right.append(float(row.argmax() == wanted))
    return losses, right


def test_only_masked_tokens_count_and_all_the_same(make):
    task = make()
    losses, right = [], []
    for number, example in enumerate([batch(), batch(2), batch(1, 5)]):
        found = literal(task.model(example["inputs"], example["lengths"]), example["targets"])
        loss = task._step("val", example, number)
        assert loss.item() == pytest.approx(torch.stack(found[0]).mean().item(), rel=1e-5)
        losses += found[0]
        right += found[1]
    mean = torch.stack(losses).mean().item()
    assert task.task.losses["val_loss"].compute().item() == pytest.approx(mean, rel=1e-5)
    assert task.task.score("val").compute().item() == pytest.approx(math.exp(mean), rel=1e-5)
    assert task.task.further_scores("val")["accuracy"].compute().item() == pytest.approx(sum(right) / len(right))


def test_gradients_are_those_of_the_literal_loss(make):
    task = make()
    task.model.double()
    example = batch()
    task.training_step(example, 0).backward()
    found = {name: parameter.grad.clone() for name, parameter in task.model.named_parameters()}
    task.model.zero_grad()
    torch.stack(literal(task.model(example["inputs"], example["lengths"]), example["targets"])[0]).mean().backward()
    for name, parameter in task.model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-9, atol=1e-12), name


def test_any_model_with_logits_for_every_token_will_do(make):
    layer = {"name": "s4d", "d_state": 4, "bidirectional": True}
    task = make(SequenceModel(TOKENS, TOKENS, 8, 1, layer, pooling="none", encoder="embedding"))
    example = batch()
    expected = torch.stack(literal(task.model(example["inputs"]), example["targets"])[0]).mean()
    assert task.training_step(example, 0).item() == pytest.approx(expected.item(), rel=1e-5)
    task.model.pooling = "mean"
    with pytest.raises(ValueError, match=r"logits for every token, \(4, 6, 'vocabulary'\); the model gave \(4, 7\)"):
        task.training_step(example, 0)


def test_under_bfloat16_autocast(make):
    task = make()
    example = batch()
    exact = task.training_step(example, 0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = task.training_step(example, 0)
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_bad_batches_are_refused(make):
    task = make()
    example = batch()
    with pytest.raises(ValueError, match=r"train batch 3: inputs must be \(batch, length\) integers"):
        task.training_step({**example, "inputs": torch.randn(4, 6)}, 3)
    with pytest.raises(ValueError, match=r"inputs must be .* got torch.int64 of shape \(0, 6\)"):
        task.training_step({key: value[:0] for key, value in example.items()}, 0)
    with pytest.raises(ValueError, match="no token of the batch is masked"):
        task.training_step({**example, "targets": torch.full((4, 6), IGNORED)}, 0)
    with pytest.raises(ValueError, match=r"built for up to length=6 tokens; got shape \(4, 7\)"):
        task.training_step(batch(length=7), 0)


def test_optimiser_is_berts(make, monkeypatch):
    task = make(lr=1e-3, weight_decay=0.1, warmup_steps=10)
    monkeypatch.setattr(SequenceModule, "_total_steps", lambda _: 110)
    made = task.configure_optimizers()
    assert all(group["betas"] == (0.9, 0.98) for group in made["optimizer"].param_groups)
    factor = made["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert [factor(step) for step in (0, 10, 60, 110)] == pytest.approx([0.1, 1.0, 0.51, 0.02])


def test_a_few_steps_learn_what_follows_from_the_neighbours(make):
    # Every token is one more than the one before: both neighbours tell it.
    task = make(M2Bert(TOKENS, length=6, d_model=16, depth=1, dropout=0.0))
    optimizer = torch.optim.AdamW(task.model.parameters(), 0.01)
    for step in range(120):
        tokens = (torch.randint(5, (32, 1)) + torch.arange(6)) % 5
        chosen = torch.zeros(32, 6, dtype=torch.bool)
        chosen[:, 1 + step % 4] = True
        example = {
            "inputs": torch.where(chosen, 6, tokens),
            "targets": torch.where(chosen, tokens, IGNORED),
            "lengths": torch.full((32,), 6),
        }
        loss = task.training_step(example, step)
        optimizer.zero_grad()
        nn.Module.zero_grad(task)
        loss.backward()
        optimizer.step()
    assert loss < 0.3  # knowing nothing costs log 5 = 1.61


@pytest.mark.parametrize("head", ["none", "classification"])
def test_an_encoder_without_the_head_is_refused(make, head):
    # Its 8 channels would do as logits of 7 tokens.
    task = make(M2Bert(TOKENS, 8, length=6, d_model=8, depth=1, head=head))
    with pytest.raises(ValueError, match=f"this M2Bert has head={head}; set model.head=masked_lm"):
        task.training_step(batch(), 0)
