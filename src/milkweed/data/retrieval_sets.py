"""Retrieval sets as they lie on disk: queries, passages, and which of them answers which query how well."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from milkweed.data.tables import (
    SPLIT_NAMES,
    ColumnError,
    Row,
    check_rows,
    files_by_split,
    is_table,
    iterate_rows,
    read_tables,
)

QRELS = ("query-id", "corpus-id", "score")

Gains = dict[str, dict[str, float]]


@dataclass
class RetrievalSet:
    """What is asked and searched in one split of one data set."""

    name: str  # of the data set; empty where there is only one
    queries: dict[str, str] = field(default_factory=dict)  # texts by their ids
    # Texts by their ids; splits that search the same ones share one dictionary.
    passages: dict[str, str] = field(default_factory=dict)
    gains: Gains = field(default_factory=dict)  # how well passages answer, above 0, by the ids of query and passage
    # Passages that are known not to answer, by the query's id.
    negatives: dict[str, list[str]] = field(default_factory=dict)


Splits = dict[str, list[RetrievalSet]]


def read_sets(source: str, documents: str | None) -> Splits:
    """Read one data set or several, in any layout that `Retrieval` describes, by the names of the splits.

    Where there are queries to train on but none to validate with, a fixed tenth of them is kept for it.
    """
    folder = Path(source)
    if documents is not None:
        if any(_is_beir(each) for each in (folder, *_set_folders(folder))):
            raise ValueError(f"data.source={source} has its documents in corpus.jsonl; use data.documents=null")
        return _from_tables(_loco(source, documents))
    folders = _set_folders(folder)
    if not folders:
        return _read_set(folder, "") if _is_beir(folder) else _from_tables(_pairs(source))
    splits: Splits = {}
    for each in folders:
        for split, sets in _read_set(each, each.name).items():
            splits.setdefault(split, []).extend(sets)
    return splits


def _is_beir(folder: Path) -> bool:
    return (folder / "corpus.jsonl").is_file()


def _set_folders(folder: Path) -> list[Path]:
    """The folders of a folder that has no files of its own, if each holds a set."""
    if not folder.is_dir() or any(each.is_file() and is_table(each) for each in folder.iterdir()):
        return []
    return [each for each in sorted(folder.iterdir()) if each.is_dir() and (_is_beir(each) or files_by_split(each))]


def _read_set(folder: Path, name: str) -> Splits:
    if _is_beir(folder):
        return _read_beir(folder, name)
    return _from_tables({(split, row_set or name): rows for (split, row_set), rows in _pairs(str(folder)).items()})


def _loco(source: str, documents: str) -> dict[tuple[str, str], list[Row]]:
    try:
        queries = _by_split_and_set(read_tables(source, ("query", "answer_pids"), texts=("query", "split")))
    except ColumnError as error:
        if {"query", "answer_pids"} <= error.there:
            raise
        raise ValueError(
            f"{error}; these are not queries of data.documents={documents}: for pairs of query and passage use "
            "data.documents=null"
        ) from error
    texts = _by_split_and_set(read_tables(documents, ("pid", "passage"), texts=("split",)))
    return {key: _joined(key[0], rows, texts.get(key, [])) for key, rows in queries.items()}


def _pairs(source: str) -> dict[tuple[str, str], list[Row]]:
    try:
        return _by_split_and_set(read_tables(source, ("passage",), texts=("query", "passage", "split")))
    except ColumnError as error:
        if "passage" in error.there or "answer_pids" not in error.there:
            raise
        raise ValueError(f"{error}; name the documents that answer_pids means as data.documents") from error


def _read_beir(folder: Path, name: str) -> Splits:
    corpus, asked = (folder / file for file in ("corpus.jsonl", "queries.jsonl"))
    passages = _by_id(
        str(corpus),
        ((row["_id"], f"{row.get('title') or ''} {row['text']}".strip()) for row in _rows(corpus, ("_id", "text"))),
    )
    queries = _by_id(str(asked), ((row["_id"], row["text"]) for row in _rows(asked, ("_id", "text"))))
    files = files_by_split(folder / "qrels")
    if not files:
        raise ValueError(f"{folder} has no judgements; write qrels/train.tsv, qrels/test.tsv with {', '.join(QRELS)}")
    splits: Splits = {}
    for split, group in files.items():
        found = RetrievalSet(name, passages=passages)
        for file in sorted(group):
            for number, row in enumerate(_rows(file, QRELS), 1):
                _judge(found, f"{file}, row {number}", row, queries)
        splits[split] = [found]
    if "train" in splits and "validation" not in splits:
        (train,) = splits["train"]
        left, kept = _without_a_tenth(list(train.gains))
        if kept:
            splits["train"], splits["validation"] = ([_of_queries(train, part)] for part in (left, kept))
    return splits


def _judge(found: RetrievalSet, where: str, row: Row, queries: dict[str, str]) -> None:
    query, passage = str(row["query-id"]), str(row["corpus-id"])
    for what, value, known in (("query-id", query, queries), ("corpus-id", passage, found.passages)):
        if value not in known:
            file = "queries.jsonl" if what == "query-id" else "corpus.jsonl"
            raise ValueError(f"{where}: {what}={value} is not among the {len(known)} in {file}; restore the file")
    try:
        gain = float(row["score"])
    except (TypeError, ValueError):
        gain = math.nan
    if not math.isfinite(gain):
        raise ValueError(
            f"{where}: score={row['score']} is not a number; write 1 for a passage that answers, 0 for others"
        )
    before = found.gains.get(query, {}).get(passage, 0.0 if passage in found.negatives.get(query, ()) else None)
    if before is not None and before != max(gain, 0.0):
        raise ValueError(
            f"{where}: query-id={query} and corpus-id={passage} are judged twice, differently; drop one row"
        )
    if gain > 0:
        found.queries[query] = queries[query]
        found.gains.setdefault(query, {})[passage] = gain
    else:
        found.negatives.setdefault(query, []).append(passage)


def _of_queries(whole: RetrievalSet, names: list[str]) -> RetrievalSet:
    return RetrievalSet(
        whole.name,
        {name: whole.queries[name] for name in names},
        whole.passages,
        {name: whole.gains[name] for name in names},
        {name: whole.negatives[name] for name in names if name in whole.negatives},
    )


def _rows(file: Path, fields: tuple[str, ...]) -> list[Row]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; a set needs corpus.jsonl, queries.jsonl and qrels/test.tsv")
    return list(check_rows(str(file), iterate_rows(file, fields), fields, texts=("text", "title")))


def _from_tables(tables: dict[tuple[str, str], list[Row]]) -> Splits:
    """Rows of pairs, by split and set; texts stand for themselves."""
    for name in dict.fromkeys(name for _, name in tables):
        if ("train", name) in tables and ("validation", name) not in tables:
            rows = tables["train", name]
            asked = list(dict.fromkeys(row["query"] for row in rows if (row.get("query") or "").strip()))
            kept = set(_without_a_tenth(asked)[1])
            if kept:
                tables["train", name] = [row for row in rows if row.get("query") not in kept]
                tables["validation", name] = [row for row in rows if row.get("query") in kept]
    splits: Splits = {}
    for (split, name), rows in tables.items():
        splits.setdefault(split, []).append(_from_pairs(split, name, rows))
    return splits


def _from_pairs(split: str, name: str, rows: list[Row]) -> RetrievalSet:
    found = RetrievalSet(name)
    for number, row in enumerate(rows, 1):
        query, passage = str(row.get("query") or ""), str(row["passage"])
        where = f"the {split} split's row {number}"
        if not passage.strip():
            raise ValueError(f"{where} has an empty passage; drop it")
        negatives = _texts(row.get("negatives"), where)
        for text in (passage, *negatives):
            found.passages[text] = text
        if query.strip():
            found.queries[query] = query
            found.gains.setdefault(query, {})[passage] = 1.0
            found.negatives.setdefault(query, []).extend(negatives)
    return found


def _texts(value: Any, where: str) -> list[str]:
    """What the column of negatives holds: a list, in tables of text one of them, or nothing."""
    if value is None or value == "":
        return []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{where} has negatives={value!r:.80}; expected a list of texts, none of them empty")
    return texts


def _by_split_and_set(tables: dict[str, list[Row]]) -> dict[tuple[str, str], list[Row]]:
    """Rows under the split that they name, or else that of their file, and the data set that they name, if any."""
    found: dict[tuple[str, str], list[Row]] = {}
    for name, rows in tables.items():
        for row in rows:
            split = row.get("split") or name
            found.setdefault((SPLIT_NAMES.get(split, split), str(row.get("dataset") or "")), []).append(row)
    return found


def _joined(split: str, queries: list[Row], documents: list[Row]) -> list[Row]:
    """LoCo's two tables as pairs, and as passages that answer nothing."""
    texts = _by_id(f"data.documents, split {split}", ((row["pid"], row["passage"]) for row in documents))
    empty = next((pid for pid, text in texts.items() if not text.strip()), None)
    if empty is not None:
        raise ValueError(f"data.documents, split {split}: the passage of pid {empty!r} is empty; write it, or drop it")
    unasked, pairs = dict(texts), []
    for row in queries:
        query = f"the {split} query {row['query']!r:.80}"
        if not row["query"].strip():
            raise ValueError(f"{query} is empty; write what is asked, or drop the row")
        for pid in _answers(row["answer_pids"], query):
            if pid not in texts:
                raise ValueError(
                    f"{query} is answered by pid {pid!r:.80}, which none of the {len(texts)} documents of that split "
                    "has; check data.documents and its columns split and dataset"
                )
            unasked.pop(pid, None)
            pairs.append({"query": row["query"], "passage": texts[pid]})
    return pairs + [{"passage": text} for text in unasked.values()]


def _answers(value: Any, query: str) -> list[str]:
    """Ids of the documents that answer: a list, or a single one by itself."""
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(_is_id(each) for each in ids):
        raise ValueError(f"{query} has answer_pids={value!r:.80}; expected a list of one id or more, or drop the query")
    return [str(each) for each in ids]


def _by_id(where: str, texts: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    """Texts under their ids, of which each stands for one."""
    found: dict[str, str] = {}
    for name, text in texts:
        if not _is_id(name):
            raise ValueError(f"{where}: {name!r:.80} is not an id; expected a text or a whole number")
        if not isinstance(text, str):
            raise ValueError(f"{where}: the text of id {name!r} is {text!r:.80}; expected a text")
        if found.setdefault(str(name), text) != text:
            raise ValueError(f"{where}: id {name!r} stands for two different texts; give each an id of its own")
    return found


def _is_id(value: Any) -> bool:
    return (isinstance(value, str) and value != "") or (isinstance(value, int) and not isinstance(value, bool))


def _without_a_tenth(queries: Iterable[str]) -> tuple[list[str], list[str]]:
    """Set a tenth of the queries apart, the same whatever the seed; a single query stays."""
    names = list(queries)
    if len(names) < 2:
        return names, []
    kept = {names[place] for place in np.random.RandomState(0).permutation(len(names))[: -(-len(names) // 10)]}
    return [name for name in names if name not in kept], [name for name in names if name in kept]
