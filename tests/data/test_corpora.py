import json
from itertools import pairwise

import numpy as np
import pytest

from milkweed.data.corpora import Corpus, Shares, break_up, open_corpora, open_text, three_parts


def text_of(length, seed=0, alphabet="ab c\n d\n"):
    random = np.random.RandomState(seed)
    return "".join(alphabet[place] for place in random.randint(len(alphabet), size=length))


def one_document(text):
    return Corpus(lambda: iter([break_up([text])]), "key")


@pytest.mark.parametrize("length", [0, 1, 63, 1000, 1009, 70001])
@pytest.mark.parametrize("size", [1, 7, 65536])
@pytest.mark.parametrize("alphabet", ["ab c\n d\n", "abc ", "abc", "\n "])
def test_pieces_are_the_text_and_break_between_words(length, size, alphabet):
    if length > 2000 and size < 10:
        return
    text = text_of(length, alphabet=alphabet)
    pieces = list(break_up(text[start : start + size] for start in range(0, length, size)))
    assert "".join(pieces) == text
    assert all(pieces)
    for before, after in pairwise(pieces):
        if len(before) < 65536:  # within a word that is longer, there is no good place
            assert (before[-1] == "\n" and not after[0].isspace()) or (not before[-1].isspace() and after[0].isspace())
    if {"a", " "} <= set(alphabet):
        assert all(len(piece) < 1100 for piece in pieces)


def test_breaks_are_at_line_ends_if_there_are_any():
    pieces = list(break_up([("word " * 20 + "\n") * 50]))
    assert len(pieces) > 4
    assert all(piece.endswith("\n") for piece in pieces)


@pytest.mark.parametrize("length", [1, 20, 63, 1000, 5003])
def test_shares_are_the_text_cut_between_words(length):
    text = text_of(length, alphabet="abcdefgh ")
    parts = {"train": "", "val": "", "test": ""}
    shares = Shares(one_document(text), tuple(parts), (5, 5))
    for name, piece, _ in shares.pieces():
        parts[name] += piece
    assert "".join(parts.values()) == text
    for name, start in (("val", len(parts["train"])), ("test", len(parts["train"]) + len(parts["val"]))):
        if parts[name] and start:
            assert text[start - 1].isspace() or text[start].isspace()
    if length >= 1000:
        for name, share in (("train", 0.9), ("val", 0.05), ("test", 0.05)):
            assert abs(len(parts[name]) - share * length) < 100


def test_a_text_without_shares_is_read_once():
    count = 0

    def documents():
        nonlocal count
        count += 1
        yield break_up(["a b c"])

    shares = Shares(Corpus(documents, "key"), ("train",))
    assert list(shares.pieces()) == [("train", "a b c", False), ("train", "", True)]
    assert count == 1


def test_what_is_missing_is_cut_from_the_training_text():
    corpora = {"train": one_document("a"), "validation": one_document("b")}
    cut, val = three_parts(corpora)
    assert (cut.corpus, cut.names, cut.last) == (corpora["train"], ("train", "test"), (5,))
    assert (val.corpus, val.names, val.last) == (corpora["validation"], ("val",), ())
    (cut,) = three_parts({"train": corpora["train"]})
    assert (cut.names, cut.last) == (("train", "val", "test"), (5, 5))


def test_keys_change_with_the_content_only(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("one")
    assert open_text(tmp_path / "a.txt").key == open_text(tmp_path / "b.txt").key
    (tmp_path / "b.txt").write_text("two")
    assert open_text(tmp_path / "a.txt").key != open_text(tmp_path / "b.txt").key


def test_line_ends_and_strange_separators_are_kept(tmp_path):
    text = "\ufeffa\r\nb\u2028c\rd\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    found = "".join(piece for document in open_text(tmp_path / "a.txt").documents() for piece in document)
    assert found == text[1:]


def write_rows(file, texts):
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def documents(corpus):
    return ["".join(document) for document in corpus.documents()]


def test_rows_are_documents(tmp_path):
    write_rows(tmp_path / "train.jsonl", ["a b", "", "c\nd"])
    write_rows(tmp_path / "test.jsonl", ["e"])
    corpora = open_corpora(str(tmp_path), "text")
    assert documents(corpora["train"]) == documents(corpora["train"]) == ["a b", "", "c\nd"]
    assert documents(corpora["test"]) == ["e"]
    assert corpora["train"].key != corpora["test"].key


def test_blank_lines_of_any_kind_are_no_rows(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a b"}\r\n\r\n \r\n{"text": "c"}\r\n')
    assert documents(open_corpora(str(tmp_path), "text")["train"]) == ["a b", "c"]


@pytest.mark.parametrize("value", [5, 0.5, ["a"], True])
def test_a_column_of_something_else_is_refused(tmp_path, value):
    write_rows(tmp_path / "train.jsonl", ["a", value])
    with pytest.raises(ValueError, match=r"train\.jsonl: row 2 has text=.*; expected text, .*; data.column names"):
        documents(open_corpora(str(tmp_path), "text")["train"])
    with pytest.raises(ValueError, match=r"train\.jsonl: row 1 lacks words; it has text; data.column names"):
        documents(open_corpora(str(tmp_path), "words")["train"])


@pytest.mark.parametrize("streaming", [False, True])
def test_what_datasets_reads(tmp_path, monkeypatch, streaming):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    table = datasets.Dataset.from_dict({"text": ["a b", "c d"]})
    table.to_parquet(tmp_path / "set" / "train.parquet")
    corpora = open_corpora(str(tmp_path / "set"), "text", None, streaming)
    assert documents(corpora["train"]) == documents(corpora["train"]) == ["a b", "c d"]
    assert open_corpora(str(tmp_path / "set"), "text", None, streaming)["train"].key == corpora["train"].key


def test_keys_hold_how_the_bytes_are_read(tmp_path):
    text, keys = 'text\n"a ""b"" c"\n', set()
    for name in ("a.csv", "a.tsv", "a.txt", "A.CSV"):
        (tmp_path / name).write_text(text)
        keys.add(open_corpora(str(tmp_path / name), "text")["train"].key)
    assert len(keys) == 3
    (tmp_path / "b.csv").write_text("x,y\n1,2\n")
    both = {open_corpora(str(tmp_path / "b.csv"), column)["train"].key for column in "xy"}
    assert len(both) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_keys_hold_the_part_of_a_data_set(tmp_path, monkeypatch, streaming):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    for part in ("one", "two"):
        datasets.Dataset.from_dict({"text": [part]}).to_parquet(tmp_path / "set" / f"{part}.parquet")
    (tmp_path / "set" / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: one.parquet\n"
        "- config_name: two\n  data_files: two.parquet\n---\n"
    )
    found = [open_corpora(str(tmp_path / "set"), "text", part, streaming)["train"] for part in ("one", "two")]
    assert [documents(each) for each in found] == [["one"], ["two"]]
    assert found[0].key != found[1].key
