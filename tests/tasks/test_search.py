"""nDCG against scikit-learn's, which averages over equal scores as well, and by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from milkweed.tasks import search
from milkweed.tasks.search import ndcg, search_ndcg


def judgements(gains):
    rows, places = np.nonzero(gains)
    return torch.tensor(rows), torch.tensor(places), torch.tensor(gains[rows, places])


def draw(queries, passages, values=3, seed=0):
    random = np.random.RandomState(seed)
    gains = random.randint(values + 1, size=(queries, passages)) * (random.rand(queries, passages) < 0.2)
    gains[:, 0] = 1
    return random.randn(queries, passages), gains.astype(float)


@pytest.mark.parametrize(("queries", "passages"), [(1, 1), (3, 7), (5, 10), (17, 63), (4, 1000), (131, 997)])
@pytest.mark.parametrize("rounded", [None, 1, 0])
def test_ndcg_is_that_of_scikit_learn(queries, passages, rounded):
    scores, gains = draw(queries, passages)
    scores = scores if rounded is None else scores.round(rounded)  # many are equal
    found = ndcg(torch.tensor(scores), *judgements(gains))
    if passages == 1:  # which scikit-learn refuses
        assert found.tolist() == [1.0]
        return
    expected = [ndcg_score(gains[q : q + 1], scores[q : q + 1], k=10) for q in range(queries)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert ndcg(torch.tensor(scores).float(), *judgements(gains)).tolist() == pytest.approx(expected, abs=1e-5)


def test_ndcg_by_hand():
    scores = torch.arange(12, 0, -1.0).repeat(4, 1)
    gains = np.zeros((4, 12))
    gains[0, 0] = gains[1, 2] = gains[2, 11] = 1
    gains[3, 0], gains[3, 1] = 1, 2
    third = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    assert ndcg(scores, *judgements(gains)).tolist() == pytest.approx([1.0, 0.5, 0.0, third])


def test_a_model_that_tells_nothing_apart_gets_what_chance_gives():
    gains = np.zeros((3, 40))
    gains[0, 0] = gains[1, 39] = gains[2, 5] = 1
    by_chance = sum(1 / math.log2(1 + rank) for rank in range(1, 11)) / 40
    assert ndcg(torch.zeros(3, 40), *judgements(gains)).tolist() == pytest.approx([by_chance] * 3)


def test_the_order_of_the_judgements_does_not_matter():
    scores, gains = draw(6, 50)
    rows, places, values = judgements(gains)
    order = torch.randperm(len(rows))
    expected = ndcg(torch.tensor(scores), rows, places, values)
    assert torch.allclose(ndcg(torch.tensor(scores), rows[order], places[order], values[order]), expected, atol=1e-14)


def test_a_query_without_judgements_gets_nothing():
    found = ndcg(torch.randn(3, 5), torch.tensor([1]), torch.tensor([2]), torch.tensor([1.0]))
    assert found[0] == found[2] == 0
    assert found[1] > 0
    assert ndcg(torch.randn(3, 5), *(torch.zeros(0, dtype=torch.long) for _ in range(3))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("budget", [1, 100, 1000, 2**24])
def test_searching_in_parts_is_searching_at_once(monkeypatch, budget):
    random = np.random.RandomState(0)
    queries, passages = random.randn(23, 4), random.randn(101, 4)
    _, gains = draw(23, 101)
    own = torch.full((23,), -1)
    own[3], own[22] = 7, 100
    gains[3, 7] = gains[22, 100] = 0
    scores = queries @ passages.T
    scores[3, 7] = scores[22, 100] = -1e9
    monkeypatch.setattr(search, "_SCORES", budget)
    found = search_ndcg(torch.tensor(queries), torch.tensor(passages), *judgements(gains), own)
    expected = [ndcg_score(gains[q : q + 1], scores[q : q + 1], k=10) for q in range(23)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_no_more_scores_are_held_at_a_time_than_is_said(monkeypatch):
    monkeypatch.setattr(search, "_SCORES", 5000)
    most = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            outputs = function(*args, **(kwargs or {}))
            most.append(max((each.numel() for each in torch.utils._pytree.tree_leaves(outputs)
                             if isinstance(each, torch.Tensor)), default=0))  # fmt: skip
            return outputs

    queries, passages = torch.randn(300, 2), torch.randn(997, 2)
    rows = torch.arange(300).repeat_interleave(20)
    with Watch():
        search_ndcg(queries, passages, rows, torch.arange(6000) % 997, torch.ones(6000), torch.full((300,), -1))
    assert max(most) <= 6000  # the judgements themselves; of scores, 5 queries' at a time
