import json

import pytest
import torch

from milkweed._batches import NO_PASSAGE, NO_QUERY
from milkweed.data import Retrieval
from milkweed.data.retrieval_sets import read_sets
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


def loco(folder, answers, documents):
    write(folder / "queries.jsonl", [{"query": "where", "split": "train", "answer_pids": answers}])
    rows = [{"pid": pid, "passage": text, "split": "train"} for pid, text in documents]
    write(folder / "documents.jsonl", rows)
    return {"source": folder / "queries.jsonl", "documents": str(folder / "documents.jsonl")}


def test_a_single_answer_is_one_id_not_its_letters(tmp_path, tokenizer):
    # "ab" read letter by letter would name the documents a and b, which are there.
    data = make(**loco(tmp_path, "ab", [("a", "a dog"), ("b", "cat 1"), ("ab", "cat 2")]), tokenizer=tokenizer)
    sets = read_sets(str(data.source), data.documents)
    assert [each.gains for each in sets["train"]] == [{"where": {"cat 2": 1.0}}]


@pytest.mark.parametrize(
    ("answers", "documents", "message"),
    [
        ([], [("a", "a dog")], r"the train query 'where' has answer_pids=\[\]; expected a list of one id or more"),
        ([None], [("a", "a dog")], r"answer_pids=\[None\]; expected a list"),
        ({"a": 1}, [("a", "a dog")], r"answer_pids=\{'a': 1\}; expected a list"),
        (["b"], [("a", "a dog")], "answered by pid 'b', which none of the 1 documents"),
        (["a"], [("a", "a dog"), ("a", "cat 1")], "split train: id 'a' stands for two different texts"),
        (["1"], [(1.5, "a dog")], "split train: 1.5 is not an id"),
        (["a"], [("a", 7)], "the text of id 'a' is 7; expected a text"),
    ],
)
def test_damaged_tables_of_loco_are_refused(tmp_path, tokenizer, answers, documents, message):
    with pytest.raises(ValueError, match=message):
        make(**loco(tmp_path, answers, documents), tokenizer=tokenizer).setup()


def test_a_query_or_passage_of_loco_without_text_is_refused(tmp_path, tokenizer):
    files = loco(tmp_path, ["a"], [("a", "a dog"), ("b", " ")])
    with pytest.raises(ValueError, match="split train: the passage of pid 'b' is empty"):
        make(**files, tokenizer=tokenizer).setup()
    files = loco(tmp_path, ["a"], [("a", "a dog")])
    write(files["source"], [{"query": " ", "split": "train", "answer_pids": ["a"]}])
    with pytest.raises(ValueError, match="the train query ' ' is empty; write what is asked, or drop the row"):
        make(**files, tokenizer=tokenizer).setup()


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_pairs_that_are_read_as_locos_say_what_to_do(tmp_path, tokenizer, suffix):
    if suffix == "csv":
        (tmp_path / "train.csv").write_text("query,passage\nwhere,here\n")
    else:
        write(tmp_path / "train.jsonl", [{"query": "where", "passage": "here"}])
    with pytest.raises(ValueError, match=r"lacks answer_pids.* for pairs of query and passage use data.documents=null"):
        make(tmp_path, tokenizer, documents="data/loco/documents").setup()


def test_other_layouts_that_are_mistaken_for_each_other(tmp_path, tokenizer):
    write_beir(tmp_path / "sets" / "one", {"test": same_numbers(3)})
    for source in (tmp_path / "sets", tmp_path / "sets" / "one"):
        with pytest.raises(ValueError, match=r"has its documents in corpus\.jsonl; use data.documents=null"):
            make(source, tokenizer, documents="data/loco/documents").setup()
    files = loco(tmp_path, ["a"], [("a", "a dog")])
    with pytest.raises(ValueError, match=r"queries\.jsonl: row 1 lacks passage; .* as data.documents"):
        make(files["source"], tokenizer).setup()


def test_the_same_document_twice_is_one(tmp_path):
    files = loco(tmp_path, [7], [(7, "a dog"), ("7", "a dog")])
    sets = read_sets(str(files["source"]), files["documents"])
    assert {text for split in sets.values() for each in split for text in each.passages} == {"a dog"}


@pytest.mark.parametrize("negatives", [5, [5], [None], {"a": "b"}, ["cat", " "]])
def test_negatives_are_texts(source, tokenizer, negatives):
    write(source / "train.jsonl", [{"query": "q", "passage": "p", "negatives": negatives}])
    with pytest.raises(ValueError, match=r"row 1 has negatives=.*; expected a list of texts"):
        make(source, tokenizer, negatives=1).setup()


@pytest.mark.parametrize("name", ["query", "passage", "split"])
@pytest.mark.parametrize("value", [5, ["a"], True])
def test_numbers_and_lists_are_no_texts(source, tokenizer, name, value):
    rows = [{"query": "what", "passage": "that"}, {"query": "what", "passage": "this", name: value}]
    write(source / "train.jsonl", rows)
    with pytest.raises(ValueError, match=rf"train\.jsonl: row 2 has {name}=.*; expected text, in quotes"):
        make(source, tokenizer).setup()


def test_a_single_query_is_trained_on_and_not_kept_for_validation(source, tokenizer):
    write(source / "train.jsonl", [{"query": "what", "passage": each} for each in ("this", "that")])
    data = make(source, tokenizer)
    assert [len(data.split(name)) for name in ("train", "test")] == [2, 11]
    with pytest.raises(ValueError, match=r"has no split validation, but test, train; name a file validation\.jsonl"):
        data.split("val")


def test_pairs_need_passages_that_do_not_answer(source, tokenizer):
    write(source / "validation.jsonl", [{"query": "what", "passage": "that"}])
    with pytest.raises(ValueError, match=r"batch_size=1 is one pair per process and negatives=0, .*data.batch_size=2"):
        make(source, tokenizer, batch_size=1).train_dataloader()
    with pytest.raises(ValueError, match=r"batch_size=4 is one pair per process .*data.batch_size=8 or more"):
        make(source, tokenizer, batch_size=4).check_processes(4)
    make(source, tokenizer, batch_size=1, negatives=1).train_dataloader()
    make(source, tokenizer, batch_size=2).train_dataloader()
    with pytest.raises(ValueError, match=r"the train split has one pair and negatives=0, .*use more pairs, or"):
        make(source, tokenizer, limit=1).train_dataloader()
    write(source / "train.jsonl", [{"query": "what", "passage": "that"}])
    for size in (1, 32):
        with pytest.raises(ValueError, match=r"the train split has one pair and negatives=0, .*use more pairs, or"):
            make(source, tokenizer, batch_size=size).train_dataloader()
    with pytest.raises(ValueError, match="answered by all 1 of them; use more data"):
        make(source, tokenizer, batch_size=1, negatives=1).train_dataloader()


def test_bad_data_are_refused(source, tokenizer):
    with pytest.raises(ValueError, match="negatives=-1 must be at least 0"):
        make(source, tokenizer, negatives=-1)
    write(source / "test.jsonl", [{"query": "what", "answer": "that"}])
    with pytest.raises(ValueError, match=r"test\.jsonl: row 1 lacks passage; it has answer, query"):
        make(source, tokenizer).setup()
    write(source / "test.jsonl", [{"query": "what", "passage": " "}])
    with pytest.raises(ValueError, match="the test split's row 1 has an empty passage"):
        make(source, tokenizer).setup()
    write(source / "test.jsonl", [{"passage": "that"}])
    with pytest.raises(ValueError, match="the test split has no query; fill the column query"):
        make(source, tokenizer).setup()
    (source / "test.jsonl").unlink()
    with pytest.raises(ValueError, match=r"has no split test, but train, validation; name a file test\.jsonl"):
        make(source, tokenizer).test_dataloader()


def test_negatives_need_passages_that_do_not_answer(source, tokenizer):
    for name in ("train", "validation"):
        write(source / f"{name}.jsonl", [{"query": "what", "passage": each} for each in ("this", "that")])
    with pytest.raises(ValueError, match="a query of the training split is answered by all 2 of them"):
        make(source, tokenizer, negatives=1).setup()
    make(source, tokenizer).setup()


def write_beir(folder, splits, *, corpus=PASSAGES, queries=QUERIES):
    """A set in BEIR's layout; ids of passages are p0, p1, ..., and of queries q0, q1, ..."""
    (folder / "qrels").mkdir(parents=True)
    write(folder / "corpus.jsonl", [{"_id": f"p{n}", "title": "", "text": text} for n, text in enumerate(corpus)])
    write(folder / "queries.jsonl", [{"_id": f"q{n}", "text": text} for n, text in enumerate(queries)])
    for name, rows in splits.items():
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(str(value) for value in row) for row in rows)]
        (folder / "qrels" / f"{name}.tsv").write_text("\n".join(lines) + "\n")


def same_numbers(count, first=0):
    return [(f"q{n}", f"p{n}", 1) for n in range(first, first + count)]


def test_beirs_layout(tmp_path, tokenizer):
    graded = [("q25", "p25", 2), ("q25", "p3", 1), ("q25", "p4", 0), ("q26", "p25", 3)]
    write_beir(tmp_path / "set", {"train": same_numbers(20), "dev": same_numbers(2, 20), "test": graded})
    data = make(tmp_path / "set", tokenizer)
    assert [len(data.split(name).queries) for name in ("train", "val", "test")] == [20, 2, 2]
    split = data.split("test")
    assert split.names == [""]
    assert len(split.passages) == 30
    assert len(split) == 31  # every passage once, and the query whose only answer is taken
    batch = split[list(range(31))]
    assert sorted(batch["passage_ids"].flatten().tolist()) == [NO_PASSAGE, *range(30)]
    assert sorted(batch["query_ids"].tolist()) == [NO_QUERY] * 29 + [0, 1]
    row = batch["query_ids"].tolist().index(0)
    assert text_of(data, batch["inputs"][row], batch["lengths"][row]) == QUERIES[25]
    assert dict(zip(batch["answers"][row].tolist(), batch["gains"][row].tolist(), strict=True)) == {25: 2.0, 3: 1.0}
    alone = batch["query_ids"].tolist().index(1)
    assert batch["passage_ids"][alone].item() == NO_PASSAGE
    assert batch["answers"][alone].tolist() == [25, NO_PASSAGE]
    assert batch["gains"][alone].tolist() == [3.0, 0.0]
    expected = torch.zeros(31, 31)
    for query, passages in ((row, (25, 3)), (alone, (25,))):
        for passage in passages:
            expected[query, batch["passage_ids"].flatten().tolist().index(passage)] = 1
    assert torch.equal(batch["targets"], expected)


def test_passages_judged_worthless_are_negatives(tmp_path, tokenizer):
    rows = [*same_numbers(10), *((f"q{n}", f"p{n + 15}", 0) for n in range(10))]
    write_beir(tmp_path / "set", {"train": rows, "dev": same_numbers(2, 20), "test": same_numbers(2, 25)})
    split = make(tmp_path / "set", tokenizer, negatives=1).split("train")
    assert split[list(range(10))]["passage_ids"].tolist() == [[n, n + 15] for n in range(10)]


def test_a_corpus_is_cut_into_tokens_once_for_all_splits(tmp_path, tokenizer):
    write_beir(tmp_path / "set", {"train": same_numbers(20), "test": same_numbers(2, 25)})
    data = make(tmp_path / "set", tokenizer)
    assert [len(data.split(name).queries) for name in ("train", "val", "test")] == [18, 2, 2]
    assert data.split("train").passages[7] is data.split("val").passages[7] is data.split("test").passages[7]


@pytest.mark.parametrize("name", ["corpus", "queries"])
def test_an_id_of_beirs_stands_for_one_text(tmp_path, tokenizer, name):
    write_beir(tmp_path / "set", {"test": same_numbers(1)})
    file, key = tmp_path / "set" / f"{name}.jsonl", name[0].replace("c", "p") + "0"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write(file, [*rows, rows[0]])
    assert len(make(tmp_path / "set", tokenizer).split("test").passages) == 30
    write(file, [*rows, {"_id": key, "text": "another"}])
    with pytest.raises(ValueError, match=rf"{name}\.jsonl: id '{key}' stands for two different texts"):
        make(tmp_path / "set", tokenizer).setup()
    write(file, [*rows, {"_id": "z", "text": ["a"]}])
    with pytest.raises(ValueError, match=rf"{name}\.jsonl: row 31 has text=\['a'\]; expected text"):
        make(tmp_path / "set", tokenizer).setup()


def test_titles_precede_texts(tmp_path, tokenizer):
    write_beir(tmp_path / "set", {"test": same_numbers(1)})
    write(tmp_path / "set" / "corpus.jsonl", [{"_id": "p0", "title": "cat", "text": "on mat"}])
    data = make(tmp_path / "set", tokenizer)
    assert text_of(data, data.split("test").passages[0], None) == "cat on mat"


def test_several_sets_are_kept_apart(tmp_path, tokenizer):
    write_beir(tmp_path / "a", {"train": same_numbers(20), "test": same_numbers(2, 25)})
    write_beir(tmp_path / "c", {"test": same_numbers(3, 20)})
    (tmp_path / "b").mkdir()
    pairs = [{"query": query, "passage": passage} for query, passage in zip(QUERIES, PASSAGES, strict=True)]
    write(tmp_path / "b" / "train.jsonl", pairs[:10])
    write(tmp_path / "b" / "test.jsonl", pairs[10:12])
    data = make(tmp_path, tokenizer, negatives=3)
    assert data.split("train").names == data.split("val").names == ["a", "b"]
    test = data.split("test")
    assert test.names == ["a", "b", "c"]
    assert test.bounds == [(0, 30), (30, 32), (32, 62)]
    batch = test[list(range(len(test)))]
    for row, (number, passage) in enumerate(zip(batch["set_ids"].tolist(), batch["passage_ids"][:, 0], strict=True)):
        assert test.bounds[number][0] <= passage < test.bounds[number][1]
        known = batch["answers"][row][batch["answers"][row] != NO_PASSAGE]
        assert all(test.bounds[number][0] <= answer < test.bounds[number][1] for answer in known.tolist())
    assert batch["set_ids"][batch["query_ids"] != NO_QUERY].bincount().tolist() == [2, 2, 3]
    train = data.split("train")
    rows = list(range(len(train)))
    for number, ids in zip(train.set_ids.tolist(), train[rows]["passage_ids"].tolist(), strict=True):
        assert all(train.bounds[number][0] <= each < train.bounds[number][1] for each in ids)


def test_tables_may_name_their_data_sets(tmp_path, tokenizer):
    queries = [
        {"query": QUERIES[n], "answer_pids": [f"p{n}"], "split": split, "dataset": name}
        for n, (name, split) in enumerate([("x", "test"), ("y", "test"), ("x", "train"), ("x", "validation")])
    ]
    documents = [
        {"pid": f"p{n}", "passage": PASSAGES[n], "split": row["split"], "dataset": row["dataset"]}
        for n, row in enumerate(queries)
    ]
    write(tmp_path / "queries.jsonl", queries)
    write(tmp_path / "documents.jsonl", documents)
    data = make(tmp_path / "queries.jsonl", tokenizer, documents=str(tmp_path / "documents.jsonl"))
    assert data.split("test").names == ["x", "y"]
    assert data.split("test").bounds == [(0, 1), (1, 2)]


def test_what_is_only_evaluated_needs_no_training_data(tmp_path, tokenizer):
    write_beir(tmp_path / "set", {"test": same_numbers(3)})
    data = make(tmp_path / "set", tokenizer, batch_size=100)
    assert sum(len(batch["inputs"]) for batch in data.test_dataloader()) == 30
    for loader, name in (("train_dataloader", "train"), ("val_dataloader", "validation")):
        with pytest.raises(ValueError, match=rf"has no split {name}, but test; name a file {name}\.jsonl or qrels"):
            getattr(data, loader)()


def test_a_document_of_the_querys_own_id_is_not_searched(tmp_path, tokenizer):
    write_beir(tmp_path / "set", {"test": []}, queries=PASSAGES)
    write(tmp_path / "set" / "queries.jsonl", [{"_id": f"p{n}", "text": PASSAGES[n]} for n in range(30)])
    lines = ["query-id\tcorpus-id\tscore", "p3\tp4\t1", "p3\tp3\t1", "p5\tp3\t1"]
    (tmp_path / "set" / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    split = make(tmp_path / "set", tokenizer).split("test")
    assert split.own == [3, 5]
    assert split.answers == [{4: 1.0}, {3: 1.0}]


def test_batches_need_little_padding(tmp_path, tokenizer):
    lengths = [1 + 7 * n % 29 for n in range(30)]
    write_beir(tmp_path / "set", {"test": same_numbers(10)}, corpus=["cat " * length for length in lengths])
    split = make(tmp_path / "set", tokenizer).split("test")
    found = [len(split.passages[passage]) for passage in split.pairs[:, 1]]
    assert found[:10] == sorted(length + 2 for length in lengths[:10])
    assert found[10:] == sorted(length + 2 for length in lengths[10:])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("q99", "p0", 1), r"test.tsv, row 2: query-id=q99 is not among the 30 in queries.jsonl"),
        (("q0", "p99", 1), r"test.tsv, row 2: corpus-id=p99 is not among the 30 in corpus.jsonl"),
        (("q0", "p0", "good"), r"test.tsv, row 2: score=good is not a number; write 1 for a passage that answers"),
        (("q0", "p0", "nan"), r"test.tsv, row 2: score=nan is not a number"),
        (("q0", "p0", "inf"), r"test.tsv, row 2: score=inf is not a number"),
        (("q1", "p1", 2), r"test.tsv, row 2: query-id=q1 and corpus-id=p1 are judged twice, differently; drop one row"),
        (("q1", "p1", 0), r"test.tsv, row 2: query-id=q1 and corpus-id=p1 are judged twice"),
    ],
)
def test_damaged_judgements_are_refused(tmp_path, tokenizer, row, message):
    write_beir(tmp_path / "set", {"test": [("q1", "p1", 1), row]})
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "set", tokenizer).setup()


def test_incomplete_sets_are_refused(tmp_path, tokenizer):
    write_beir(tmp_path / "set", {"test": [("q1", "p1", 0)]})
    with pytest.raises(ValueError, match=r"the test split has no query; fill the column query, or qrels/test\.tsv"):
        make(tmp_path / "set", tokenizer).setup()
    (tmp_path / "set" / "qrels" / "test.tsv").unlink()
    with pytest.raises(ValueError, match=r"set has no judgements; write qrels/train\.tsv"):
        make(tmp_path / "set", tokenizer).setup()
    (tmp_path / "set" / "queries.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"queries\.jsonl does not exist; a set needs corpus\.jsonl"):
        make(tmp_path / "set", tokenizer).setup()
