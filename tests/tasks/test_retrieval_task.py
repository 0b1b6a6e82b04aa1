import json
import math
from pathlib import Path

import pytest
import torch

from milkweed.cli import main
from milkweed.models import M2Bert
from milkweed.tasks import Retrieval
from milkweed.tasks.retrieval import SearchNdcg
from milkweed.train.module import SequenceModule


def literal_ndcg(scores, relevant, top=10):
    """Of one query, from the definition: gains in the order of falling scores, over those of a perfect order."""
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    found = sum(relevant[place] / math.log2(rank + 2) for rank, place in enumerate(order[:top]))
    perfect = sum(1 / math.log2(rank + 2) for rank in range(min(top, sum(relevant))))
    return found / perfect


def searched(queries, passages, answers, *, sets=None, own=None):
    """Rows as the data module gives them: every query and every passage once."""
    count = max(queries, passages)
    gains = [answers.get(query, {}) for query in range(count)]
    widest = max((len(each) for each in gains), default=0)
    return {
        "query_ids": torch.tensor([n if n < queries else -1 for n in range(count)]),
        "passage_ids": torch.tensor([[n if n < passages else -1] for n in range(count)]),
        "set_ids": torch.tensor(sets or [0] * count),
        "own_ids": torch.tensor(own or [-1] * count),
        "answers": torch.tensor([[*each, *[-1] * (widest - len(each))] for each in gains], dtype=torch.long),
        "gains": torch.tensor([[*each.values(), *[0.0] * (widest - len(each))] for each in gains]),
    }


def in_parts(metric, queries, passages, rows, size):
    """Update by batches of rows, which are shuffled."""
    count = len(rows["query_ids"])
    filled = [torch.cat([part, part.new_zeros(count - len(part), part.shape[1])]) for part in (queries, passages)]
    for places in torch.randperm(count).split(size):
        metric.update(filled[0][places], filled[1][places], {name: value[places] for name, value in rows.items()})
    return metric


@pytest.mark.parametrize("queries", [3, 30])
def test_search_counts_every_passage_once_and_only_real_queries(queries):
    vectors = torch.randn(queries, 5, dtype=torch.double), torch.randn(17, 5, dtype=torch.double)
    answers = {q: {(3 * q + n) % 17: 1.0 for n in range(1 + q % 4)} for q in range(queries)}
    metric = in_parts(SearchNdcg(), *vectors, searched(queries, 17, answers), 4)
    scores = (vectors[0] @ vectors[1].T).tolist()
    expected = [literal_ndcg(scores[q], [int(p in answers[q]) for p in range(17)]) for q in range(queries)]
    assert metric.compute().item() == pytest.approx(sum(expected) / queries, abs=1e-12)


def test_search_of_several_sets_is_the_mean_of_each_alone():
    vectors = torch.randn(8, 5, dtype=torch.double), torch.randn(12, 5, dtype=torch.double)
    answers = {q: {q: 1.0} for q in range(8)}
    sets = [0] * 6 + [1] * 2 + [1] * 4
    metric = in_parts(SearchNdcg(), *vectors, searched(8, 12, answers, sets=sets), 5)
    found = metric.compute().item()
    scores = (vectors[0] @ vectors[1].T).tolist()
    first = [literal_ndcg(scores[q][:6], [int(p == q) for p in range(6)]) for q in range(6)]
    second = [literal_ndcg(scores[q][6:], [int(p == q) for p in range(6, 12)]) for q in (6, 7)]
    assert metric.by_set[0].item() == pytest.approx(sum(first) / 6, abs=1e-12)
    assert metric.by_set[1].item() == pytest.approx(sum(second) / 2, abs=1e-12)
    assert found == pytest.approx((sum(first) / 6 + sum(second) / 2) / 2, abs=1e-12)


def test_the_document_of_the_querys_own_id_is_passed_over():
    vectors = torch.eye(4, dtype=torch.double), torch.eye(4, dtype=torch.double) + 0.1
    rows = searched(4, 4, {0: {1: 1.0}}, own=[0, -1, -1, -1])
    vectors[1][1, 0] = 0.2  # the best for query 0 after its own document
    assert in_parts(SearchNdcg(), *vectors, rows, 2).compute() == 1


@pytest.mark.parametrize(
    ("answers", "empty", "expected"),
    [({0: {0: 1.0}}, 1, 1.0), ({1: {1: 1.0}, 0: {5: 1.0}}, 1, 1.0), ({}, 2, 0.0), ({0: {9: 1.0}}, 2, 0.0)],
)
def test_a_set_without_answers_is_left_out_and_said(answers, empty, expected):
    vectors = torch.eye(2), torch.eye(2)
    metric = in_parts(SearchNdcg(), *vectors, searched(2, 2, answers, sets=[0, 1]), 2)
    with pytest.warns(UserWarning, match=f"in {empty} of 2 data sets no query has an answer among the passages"):
        assert metric.compute().item() == expected


def test_nothing_asked_is_nothing_found():
    metric = in_parts(SearchNdcg(), torch.eye(0, 2), torch.eye(2), searched(0, 2, {}), 2)
    with pytest.warns(UserWarning, match="in 0 of 0 data sets"):
        assert metric.compute().item() == 0.0


def test_passages_that_a_limit_leaves_out_do_not_count_against_the_search():
    vectors = torch.eye(3, dtype=torch.double), torch.eye(3, dtype=torch.double)
    rows = searched(3, 3, {0: {0: 1.0, 17: 1.0}, 1: {17: 1.0}, 2: {2: 1.0}})
    assert in_parts(SearchNdcg(), *vectors, rows, 3).compute() == 1


@pytest.fixture
def make(monkeypatch):
    def make(head="none", **options):
        model = M2Bert(9, 2, length=8, d_model=8, depth=1, head=head, dropout=0.0)
        task = SequenceModule(model, Retrieval(**options))
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
        "set_ids": torch.zeros(size, dtype=torch.long),
        "own_ids": torch.full((size,), -1),
        "answers": torch.arange(size)[:, None],
        "gains": torch.ones(size, 1),
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


def test_answers_alone_teach_nothing(make):
    with pytest.raises(ValueError, match=r"would become one vector; use data.negatives=1 or more, or task.in_batch"):
        make(in_batch=False).training_step(batch(negatives=0), 0)


def test_validation_compares_with_the_whole_split(make):
    task = make()
    examples = [batch(negatives=0), batch(negatives=0)]
    for example in examples:
        example["targets"] = torch.eye(4)
    for name in ("passage_ids", "answers"):
        examples[1][name] = torch.arange(4, 8)[:, None]
    examples[1]["query_ids"] = torch.arange(4, 8)
    vectors = []
    for number, example in enumerate(examples):
        task.validation_step(example, number)
        vectors.append(task.task.run_model(task.model, example))
    queries, passages = torch.cat(vectors).detach().unbind(1)
    scores = (queries @ passages.T).tolist()
    expected = [literal_ndcg(row, [int(place == q) for place in range(8)]) for q, row in enumerate(scores)]
    assert task.task.score("val").compute().item() == pytest.approx(sum(expected) / 8, abs=1e-6)


@pytest.mark.parametrize("missing", ["query_ids", "passage_ids"])
def test_what_is_not_there_costs_nothing(make, missing):
    task, example = make(), batch(negatives=0)
    whole = task.task.loss("val", task.task.run_model(task.model, example), example).item()
    example[missing][1:] = -1
    vectors = task.task.run_model(task.model, example)
    pairs = vectors[:1, 0] @ vectors[:, 1].T if missing == "query_ids" else vectors[:, 0] @ vectors[:1, 1].T
    answers = example["targets"][:1] if missing == "query_ids" else example["targets"][:, :1]
    expected = (pairs - answers).square().mean().item()
    assert task.task.loss("val", vectors, example).item() == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(whole, rel=1e-3)
    example[missing][:] = -1
    assert task._step("val", example, 0).item() == 0
    assert task.task.losses["val_loss"].weight == 0


def test_under_autocast_cosines_are_compared_in_full_precision(make):
    task, example = make(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        vectors = task.task.run_model(task.model, example)
        loss = task.task.loss("train", vectors, example)
    expected = (vectors[:, 0].double() @ vectors[:, 1:].flatten(0, 1).double().T - example["targets"]).square().mean()
    assert vectors.dtype == loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


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


def test_what_gives_no_vectors_is_refused(make, monkeypatch):
    task = make()
    monkeypatch.setattr(task.model, "forward", lambda tokens, lengths: torch.randn(len(tokens), 4, 8))
    with pytest.raises(ValueError, match=r"retrieval needs vectors \(B, D\), or \(4, 5, 'D'\).*model.head=none"):
        task.training_step(batch(), 0)
    with pytest.raises(ValueError, match="train batch 2: inputs must be"):
        task.training_step({**batch(), "inputs": torch.randn(4, 5)}, 2)


@pytest.mark.parametrize(("head", "gives"), [("masked_lm", "a number for every word"), ("classification", "classes")])
def test_a_model_with_a_head_is_refused_at_once(head, gives):
    model = M2Bert(9, 2 if head == "classification" else None, length=8, d_model=8, depth=1, head=head)
    with pytest.raises(ValueError, match=rf"head='{head}' gives .*{gives}; use model\.head=none"):
        SequenceModule(model, Retrieval())


def write_set(folder, words, splits):
    """A set in BEIR's layout whose queries are the words of its documents, turned round."""
    (folder / "qrels").mkdir(parents=True)
    for name, key, step in (("corpus", "d", 1), ("queries", "q", -1)):
        rows = [json.dumps({"_id": f"{key}{n}", "text": word[::step]}) for n, word in enumerate(words)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    for name, numbers in splits.items():
        rows = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in numbers)]
        (folder / "qrels" / f"{name}.tsv").write_text("\n".join(rows) + "\n")


def figures(shown):
    """Names and values of what `evaluate` prints about nDCG."""
    rows = [line.split() for line in shown.splitlines()]
    return {row[0]: row[1] for row in rows if row and row[0].startswith("ndcg")}


def test_train_on_several_sets_and_evaluate_on_others(tmp_path, capsys):
    texts = Path(__file__).parents[1] / "data" / "texts"
    words = [f"cat {n} on mat {n}" for n in range(24)]
    write_set(tmp_path / "sets" / "one", words, {"train": range(12), "test": range(12, 16)})
    write_set(tmp_path / "sets" / "two", words, {"test": range(20, 24)})
    options = ["--data.source", str(tmp_path / "sets"), "--data.documents", "null", "--data.negatives", "1"]
    options += ["--data.tokenizer", str(texts / "tokenizer"), "--data.vocabulary_size", "192", "--data.length", "16"]
    options += ["--data.batch_size", "4", "--model.d_model", "16", "--model.depth", "1", "--trainer.max_epochs", "1"]
    assert main(["train", "m2-bert-retrieval", "--name", "run", "--out", str(tmp_path), *options]) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    assert found["ndcg"] == pytest.approx((found["ndcg_one"] + found["ndcg_two"]) / 2)
    assert "val_ndcg" in (tmp_path / "run" / "metrics.csv").read_text().split("\n")[0].split(",")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    shown = figures(capsys.readouterr().out)
    assert shown == {name: f"{value:.4f}" for name, value in found.items() if name.startswith("ndcg")}
    assert main(["evaluate", str(tmp_path / "run"), "--data.source", str(tmp_path / "sets" / "two")]) == 0
    shown = figures(capsys.readouterr().out)
    assert shown == {"ndcg": f"{found['ndcg_two']:.4f}"}
    missing = ["train", "m2-bert-retrieval", "--name", "no", "--out", str(tmp_path), *options]
    assert main([*missing, "--data.source", str(tmp_path / "sets" / "two")]) == 2
    assert "has no split train, but test" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "no").exists()
