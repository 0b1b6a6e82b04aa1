import math

import pytest
import torch

from milkweed.models import M2Bert
from milkweed.tasks import Retrieval
from milkweed.tasks.retrieval import SearchNdcg, ndcg


def literal_ndcg(scores, relevant, top=10):
    """Of one query, from the definition: gains in the order of falling scores, over those of a perfect order."""
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    found = sum(relevant[place] / math.log2(rank + 2) for rank, place in enumerate(order[:top]))
    perfect = sum(1 / math.log2(rank + 2) for rank in range(min(top, sum(relevant))))
    return found / perfect


@pytest.mark.parametrize(("queries", "passages"), [(1, 1), (3, 7), (5, 10), (17, 63), (4, 1000)])
def test_ndcg_is_the_literal_one(queries, passages):
    scores = torch.randn(queries, passages, dtype=torch.double)
    relevant = torch.rand(queries, passages) < 0.2
    relevant[:, 0] = True
    expected = [literal_ndcg(s, r) for s, r in zip(scores.tolist(), relevant.int().tolist(), strict=True)]
    assert ndcg(scores, relevant).tolist() == pytest.approx(expected, abs=1e-12)
    assert ndcg(scores.float(), relevant).tolist() == pytest.approx(expected, abs=1e-6)


def test_ndcg_by_hand():
    scores = torch.arange(12, 0, -1.0).repeat(3, 1)
    relevant = torch.zeros(3, 12, dtype=torch.bool)
    relevant[0, 0] = relevant[1, 2] = relevant[2, 11] = True
    assert ndcg(scores, relevant).tolist() == [1.0, pytest.approx(0.5), 0.0]


def test_search_counts_every_passage_once_and_only_real_queries():
    generator = torch.Generator().manual_seed(1)
    queries, passages = (torch.randn(size, 5, generator=generator, dtype=torch.double) for size in (6, 30))
    pairs = [(q, p) for q in range(6) for p in (3 * q, 3 * q + 1)] + [(0, 25), (5, 3)]
    rows = pairs + [(-1, p) for p in range(30) if p not in {p for _, p in pairs}]
    metric = SearchNdcg()
    for start in range(0, len(rows), 4):
        ids = torch.tensor(rows[start : start + 4])
        metric.update(queries[ids[:, 0]], passages[ids[:, 1]], ids[:, 0], ids[:, 1])
    scores = queries @ passages.T
    expected = [literal_ndcg(scores[q].tolist(), [int((q, p) in pairs) for p in range(30)]) for q in range(6)]
    assert metric.compute().item() == pytest.approx(sum(expected) / 6, abs=1e-12)


@pytest.fixture
def make(monkeypatch):
    def make(head="none", **options):
        model = M2Bert(9, 2, length=8, d_model=8, depth=1, head=head, dropout=0.0)
        task = Retrieval(model, **options)
        monkeypatch.setattr(task, "log_dict", lambda *_, **__: None)
        return task

    return make


def batch(size=4, negatives=2):
    relevant = torch.zeros(size, size, 1 + negatives)
    relevant[range(size), range(size), 0] = 1
    if negatives:
        relevant[0, 1, 1] = 1  # a negative of another query that answers this one
    return {
        "inputs": torch.randint(9, (size, 5)),
        "lengths": torch.randint(1, 6, (size,)),
        "passages": torch.randint(9, (size, 1 + negatives, 7)),
        "passage_lengths": torch.randint(1, 8, (size, 1 + negatives)),
        "query_ids": torch.arange(size),
        "passage_ids": torch.arange(size * (1 + negatives)).view(size, -1),
        "targets": relevant.flatten(1),
    }


def literal_vectors(task, tokens, lengths, pooling):
    """Every text by itself, without padding."""
    vectors = []
    for row, length in zip(tokens, lengths.tolist(), strict=True):
        outputs = task.model(row[None, :length])[0].double()
        vector = outputs[0] if pooling == "first" else outputs.sum(0) / length
        vectors.append(vector / vector.square().sum().sqrt())
    return torch.stack(vectors)


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("in_batch", [True, False])
def test_loss_is_the_squared_error_of_cosines(make, pooling, in_batch):
    task, example = make(pooling=pooling, in_batch=in_batch), batch()
    queries = literal_vectors(task, example["inputs"], example["lengths"], pooling)
    passages = literal_vectors(task, example["passages"].flatten(0, 1), example["passage_lengths"].flatten(), pooling)
    errors = []
    for row in range(4):
        for place in range(12):
            if in_batch or place // 3 == row:
                cosine = (queries[row] * passages[place]).sum()
                errors.append((cosine - example["targets"][row, place]) ** 2)
    expected = torch.stack(errors).mean()
    loss = task.training_step(example, 0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    found = {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}
    task.model.zero_grad()
    expected.backward()
    for name, gradient in found.items():
        wanted = task.model.get_parameter(name).grad
        assert torch.allclose(gradient, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()) + 1e-7), name


def test_validation_compares_with_the_whole_split(make):
    task = make()
    examples = [batch(negatives=0), batch(negatives=0)]
    for example in examples:
        example["targets"] = torch.eye(4)
    examples[1]["query_ids"], examples[1]["passage_ids"] = torch.arange(4, 8), torch.arange(4, 8)[:, None]
    vectors = []
    for number, example in enumerate(examples):
        task.validation_step(example, number)
        vectors.append(task.run_model(example))
    queries, passages = torch.cat(vectors).detach().unbind(1)
    scores = (queries @ passages.T).tolist()
    expected = [literal_ndcg(row, [int(place == q) for place in range(8)]) for q, row in enumerate(scores)]
    assert task.score("val").compute().item() == pytest.approx(sum(expected) / 8, abs=1e-6)


def test_passages_without_a_query_cost_nothing(make):
    task, example = make(), batch(negatives=0)
    example["targets"] = torch.zeros(4, 4)
    example["query_ids"] = torch.full((4,), -1)
    assert task._step("val", example, 0).item() == 0
    assert task.losses["val_loss"].weight == 0


def test_a_few_steps_bring_pairs_together(make):
    task, example = make(), batch()
    optimizer = torch.optim.AdamW(task.model.parameters(), 0.003)
    losses = []
    for step in range(30):
        losses.append(task.training_step(example, step))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_what_gives_no_vectors_is_refused(make):
    task = make("classification")
    task.model.head.forward = lambda x: x[:, 1:]
    with pytest.raises(ValueError, match=r"retrieval needs vectors \(B, D\), or \(4, 5, 'D'\).*--model.head none"):
        task.training_step(batch(), 0)
    with pytest.raises(ValueError, match="train batch 2: inputs must be"):
        task.training_step({**batch(), "inputs": torch.randn(4, 5)}, 2)
