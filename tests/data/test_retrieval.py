import json

import pytest
import torch

from milkweed.data import Retrieval
from milkweed.data.retrieval import NO_QUERY
from milkweed.data.tokenizers import train_tokenizer

QUERIES = [f"where is cat {number}" for number in range(30)]
PASSAGES = [f"cat {number} is on mat {number} and sat there" for number in range(30)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer("\n".join([*QUERIES, *PASSAGES, "nothing of interest", "a dog"]), 100).save_pretrained(folder)
    return str(folder)


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def source(tmp_path):
    pairs = [{"query": query, "passage": passage} for query, passage in zip(QUERIES, PASSAGES, strict=True)]
    write(tmp_path / "train.jsonl", [*pairs[:20], {"query": QUERIES[0], "passage": PASSAGES[1]}])
    write(tmp_path / "test.jsonl", [{"passage": "nothing of interest", "query": None}, *pairs[20:]])
    return tmp_path


def make(source, tokenizer, **options):
    return Retrieval(str(source), tokenizer, **{"vocabulary_size": 100, "length": 32, "batch_size": 4, **options})


def text_of(data, tokens, length):
    return data.tokenizer.decode(tokens[:length], skip_special_tokens=True)


def test_pairs_are_framed_and_matched(source, tokenizer):
    data = make(source, tokenizer)
    split = data.split("test")
    assert len(split) == 11
    batch = split[list(range(11))]
    assert batch["inputs"].shape == (11, int(batch["lengths"].max()))
    assert batch["passages"].shape == (11, 1, int(batch["passage_lengths"].max()))
    for row in range(10):
        assert text_of(data, batch["inputs"][row], batch["lengths"][row]) == QUERIES[20 + row]
        assert text_of(data, batch["passages"][row, 0], batch["passage_lengths"][row, 0]) == PASSAGES[20 + row]
    assert batch["query_ids"].tolist() == [*range(10), NO_QUERY]
    assert text_of(data, batch["passages"][10, 0], batch["passage_lengths"][10, 0]) == "nothing of interest"
    expected = torch.eye(11)
    expected[10] = 0
    assert torch.equal(batch["targets"], expected)


def test_a_query_may_have_several_answers(source, tokenizer):
    data = make(source, tokenizer, seed=1)
    split = data.split("train")
    texts = [text_of(data, query, None) for query in split.queries]
    if QUERIES[0] not in texts:  # kept for the validation
        split = data.split("val")
    zero = [row for row in range(len(split)) if text_of(data, split[[row]]["inputs"][0], None) == QUERIES[0]]
    assert len(zero) == 2
    assert torch.equal(split[zero]["targets"], torch.ones(2, 2))


def test_a_tenth_of_the_queries_is_kept_whatever_the_seed(source, tokenizer):
    parts = [make(source, tokenizer, seed=seed) for seed in (0, 1)]
    for name, count in (("train", 18), ("val", 2)):
        one, other = (data.split(name) for data in parts)
        assert len(one.queries) == count
        assert all(torch.equal(*pair) for pair in zip(one.queries, other.queries, strict=True))


def test_negatives_are_named_or_drawn_and_never_answer(source, tokenizer):
    rows = [
        {"query": query, "passage": passage, "negatives": ["a dog"]}
        for query, passage in zip(QUERIES[:20], PASSAGES[:20], strict=True)
    ]
    write(source / "train.jsonl", rows)
    data = make(source, tokenizer, negatives=3)
    split = data.split("train")
    batch = split[[0, 1]]
    assert batch["passages"].shape[:2] == (2, 4)
    assert [text_of(data, batch["passages"][row, 1], batch["passage_lengths"][row, 1]) for row in (0, 1)] == [
        "a dog"
    ] * 2
    own = batch["targets"].view(2, 2, 4)[[0, 1], [0, 1]]
    assert torch.equal(own, torch.tensor([[1.0, 0, 0, 0]] * 2))
    assert data.split("test")[[0]]["passages"].shape[1] == 1


def test_negatives_change_with_the_epoch_and_repeat_with_the_seed(source, tokenizer):
    def drawn(seed, epoch):
        loader = make(source, tokenizer, negatives=4, seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return {row[0].item(): row[1:].tolist() for batch in loader for row in batch["passage_ids"]}

    first, again, later = drawn(0, 0), drawn(0, 0), drawn(0, 1)
    assert first == again
    shared = first.keys() & later.keys()
    assert all(first[row] != later[row] for row in shared)


def test_padding_to_the_whole_length(source, tokenizer):
    batch = make(source, tokenizer, whole=True, length=40).split("test")[[0, 1]]
    assert batch["inputs"].shape == (2, 40)
    assert batch["passages"].shape == (2, 1, 40)
    batch = make(source, tokenizer, length=5).split("test")[[0, 1]]
    assert batch["passages"].shape == (2, 1, 5)


def test_locos_tables(tmp_path, tokenizer):
    queries = [
        {"qid": f"q{n}", "query": QUERIES[n], "answer_pids": [f"p{n}"], "split": "train" if n < 20 else "test"}
        for n in range(30)
    ]
    documents = [{"pid": f"p{n}", "passage": PASSAGES[n], "split": "train" if n < 20 else "test"} for n in range(30)]
    documents.append({"pid": "p30", "passage": "nothing", "split": "test"})
    write(tmp_path / "queries.jsonl", queries)
    write(tmp_path / "documents.jsonl", documents)
    options = {"documents": str(tmp_path / "documents.jsonl")}
    data = make(tmp_path / "queries.jsonl", tokenizer, **options)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [18, 2, 11]
    batch = data.split("test")[[0, 10]]
    assert text_of(data, batch["passages"][0, 0], batch["passage_lengths"][0, 0]) == PASSAGES[20]
    assert batch["query_ids"].tolist() == [0, NO_QUERY]
    queries[3]["answer_pids"] = ["p29"]
    write(tmp_path / "queries.jsonl", queries)
    with pytest.raises(
        ValueError, match=r"train query 'where is cat 3' is answered by pid 'p29', which none of the 20"
    ):
        make(tmp_path / "queries.jsonl", tokenizer, **options).setup()


def test_bad_data_are_refused(source, tokenizer):
    with pytest.raises(ValueError, match="negatives=-1 must be at least 0"):
        make(source, tokenizer, negatives=-1)
    write(source / "test.jsonl", [{"query": "what", "answer": "that"}])
    with pytest.raises(ValueError, match="split test: row 1 lacks passage; it has answer, query"):
        make(source, tokenizer).setup()
    write(source / "test.jsonl", [{"query": "what", "passage": " "}])
    with pytest.raises(ValueError, match="the test split's row 1 has an empty passage"):
        make(source, tokenizer).setup()
    write(source / "test.jsonl", [{"passage": "that"}])
    with pytest.raises(ValueError, match="the test split has no query; fill the column query"):
        make(source, tokenizer).setup()
    (source / "test.jsonl").unlink()
    with pytest.raises(ValueError, match=r"has no split test, but train; name a file test\.jsonl"):
        make(source, tokenizer).setup()


def test_negatives_need_passages_that_do_not_answer(source, tokenizer):
    for name in ("train", "validation"):
        write(source / f"{name}.jsonl", [{"query": "what", "passage": each} for each in ("this", "that")])
    with pytest.raises(ValueError, match="a query of the training split is answered by all 2 of them"):
        make(source, tokenizer, negatives=1).setup()
    make(source, tokenizer).setup()
