"""Queries and the passages that answer them."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from milkweed.data.base import SPLITS
from milkweed.data.tables import SPLIT_NAMES, Row, read_tables
from milkweed.data.tokenized import TokenizedData
from milkweed.train.seeding import derived_seed

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

NO_QUERY = -1
"""Number of the query in rows that only add a passage to those that are searched."""


class Retrieval(TokenizedData):
    """Queries, each with a passage that answers it and, in training, some that do not.

    Two layouts are read. Pairs: tables with the columns `query` and `passage`, one row for every passage that answers;
    a row without a query only adds its passage to those that are searched; a column `negatives`, a list of texts, names
    passages to train against. Or, with `documents`, that of LoCoV1: queries with `query` and `answer_pids`, documents
    with `pid` and `passage`. Rows say with `split` where they belong, or their file does.

    Every split is searched by itself: a query of the test among all passages of the test. Without a split `validation`
    a fixed tenth of the training queries is kept for it.

    Args:
        source: A file or folder of tables, or the name of a data set on the Hugging Face hub: pairs, or LoCo's queries.
        tokenizer: Folder or hub name of the model's tokenizer.
        documents: The same for LoCo's documents.
        vocabulary_size: Tokens that the model knows, at least as many as the tokenizer has.
        negatives: Passages to train against beside every pair: those that its row names, then by chance.
        whole: Pad to `length` instead of the longest of a batch, for models with `padding="legacy"`.
        batch_size: Pairs per optimiser step over all processes together.
        length: L, tokens of a query or passage, frame included; longer ones are cut.
        seed: Decides the order of the training pairs and the negatives that are drawn.
        limit: At most this many pairs per split, for trials.

    Raises:
        ValueError: If a number is out of its range.

    Source:
        Monarch Mixer retrieval models and LoCoV1 (arXiv 2402.07440).
    """

    d_output = None
    """The model gives vectors of its own size."""

    def __init__(
        self,
        source: str,
        tokenizer: str,
        documents: str | None = None,
        vocabulary_size: int = 30528,
        negatives: int = 0,
        whole: bool = False,
        batch_size: int = 32,
        length: int = 128,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(tokenizer, vocabulary_size, batch_size, length, seed, limit)
        if negatives < 0:
            raise ValueError(f"negatives={negatives} must be at least 0")
        self.source, self.documents = source, documents
        self.negatives, self.whole = negatives, whole

    def load(self) -> dict[str, "RetrievalPairs"]:
        """Read the tables and cut the texts into tokens.

        Returns:
            Datasets under the names `train`, `val` and `test`.

        Raises:
            ValueError: If a split is missing, or has no query.
        """
        if self.documents is None:
            tables = _by_split(read_tables(self.source, ("passage",)))
        else:
            queries = _by_split(read_tables(self.source, ("query", "answer_pids")))
            tables = _joined(queries, _by_split(read_tables(self.documents, ("pid", "passage"))))
        for name in ("train", "test"):
            if name not in tables:
                raise ValueError(
                    f"data.source={self.source} has no split {name}, but {', '.join(sorted(tables))}; name a file "
                    f"{name}.jsonl, or say {name} in a column split"
                )
        if "validation" not in tables:
            tables["train"], tables["validation"] = _without_a_tenth(tables["train"])
        rows = {"train": tables["train"], "val": tables["validation"], "test": tables["test"]}
        return {
            name: RetrievalPairs(
                name,
                rows[name],
                self._encode,
                self.tokenizer.pad_token_id,
                self.negatives if name == "train" else 0,
                self.length * self.whole,
            )
            for name in SPLITS
        }

    def train_dataloader(self) -> "DataLoader":
        """Shuffled batches of the training split.

        Returns:
            A loader whose order and negatives depend on (seed, epoch) alone.
        """
        loader = super().train_dataloader()
        batches, seed = self._batches, self.seed
        self.split("train").keys = lambda: (seed, batches.epoch)
        return loader

    def _encode(self, texts: list[str]) -> list[torch.Tensor]:
        if not texts:
            return []
        rows = self.tokenizer(texts, truncation=True, max_length=self.length)["input_ids"]
        return [torch.tensor(row, dtype=torch.int32) for row in rows]

    def _check(self, name: str, split: "RetrievalPairs") -> None:
        if not split.queries:
            raise ValueError(f"data.source={self.source}: the {name} split has no query; fill the column query")
        if name == "train" and self.negatives and split.most_answers >= len(split.passages):
            raise ValueError(
                f"negatives={self.negatives} needs passages that do not answer: a query of the training split is "
                f"answered by all {len(split.passages)} of them; use --data.negatives 0, or more data"
            )


class RetrievalPairs(Dataset):
    """Pairs of a query and a passage.

    A batch has the queries as `inputs` (B, L) with `lengths` (B,), the passages as `passages` (B, 1 + N, L') with
    `passage_lengths` (B, 1 + N), first the one that answers; their numbers, `query_ids` (B,) and `passage_ids`
    (B, 1 + N); and as `targets` (B, B (1 + N)) which passages of the batch answer which query, 1 or 0.

    Args:
        name: Name of the split, for messages.
        rows: With `passage`, and as far as they have them `query` and `negatives`.
        encode: Cuts texts into tokens.
        padding: Number of the token that fills up.
        negatives: N, passages beside the one that answers.
        length: Steps to pad to; 0 for the longest of a batch.

    Raises:
        ValueError: If a row's passage is empty.
    """

    def __init__(
        self,
        name: str,
        rows: list[Row],
        encode: Callable[[list[str]], list[torch.Tensor]],
        padding: int,
        negatives: int,
        length: int,
    ) -> None:
        self.padding, self.count, self.length = padding, negatives, length
        self.keys: Callable[[], tuple[int, ...]] = lambda: (SPLITS.index(name),)
        queries: dict[str, int] = {}
        passages: dict[str, int] = {}
        pairs, named = [], []
        rows = sorted(rows, key=lambda row: not row.get("query"))  # that a limit leaves queries
        for number, row in enumerate(rows, 1):
            if not str(row["passage"]).strip():
                raise ValueError(f"the {name} split's row {number} has an empty passage; drop it")
            query = str(row.get("query") or "")
            query_id = queries.setdefault(query, len(queries)) if query.strip() else NO_QUERY
            pairs.append((query_id, passages.setdefault(str(row["passage"]), len(passages))))
            named.append([passages.setdefault(text, len(passages)) for text in _texts(row.get("negatives"))])
        self.queries, self.passages = encode(list(queries)), encode(list(passages))
        (self.empty,) = encode([""])
        self.pairs, self.named = np.array(pairs).reshape(-1, 2), named
        if name == "train":  # rows without a query have nothing to teach; their passages are drawn as negatives
            kept = [number for number, (query_id, _) in enumerate(pairs) if query_id != NO_QUERY]
            self.pairs, self.named = self.pairs[kept], [named[number] for number in kept]
        asked = self.pairs[self.pairs[:, 0] != NO_QUERY]
        self._relevant = np.unique(self._codes(asked[:, 0], asked[:, 1]))
        self.most_answers = max(Counter((self._relevant // max(1, len(passages))).tolist()).values(), default=0)
        self.rows = len(self.pairs)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        keys = self.keys()
        query_ids = self.pairs[indices, 0]
        passage_ids = np.stack([self._candidates(index, derived_seed(*keys, index)) for index in indices])
        inputs, lengths = self._padded([self.queries[i] if i != NO_QUERY else self.empty for i in query_ids])
        passages, passage_lengths = self._padded([self.passages[i] for i in passage_ids.flatten()])
        targets = np.isin(self._codes(query_ids[:, None], passage_ids.reshape(1, -1)), self._relevant)
        shape = passage_ids.shape
        return {
            "inputs": inputs,
            "lengths": lengths,
            "passages": passages.reshape(*shape, -1),
            "passage_lengths": passage_lengths.reshape(shape),
            "query_ids": torch.from_numpy(query_ids),
            "passage_ids": torch.from_numpy(passage_ids),
            "targets": torch.from_numpy(targets).float(),
        }

    def head(self, count: int) -> "RetrievalPairs":
        """The first pairs only, of which then all is searched.

        Args:
            count: How many.

        Returns:
            A dataset of at most `count` pairs.
        """
        short = copy.copy(self)
        short.rows = min(self.rows, count)
        return short

    def _codes(self, query_ids: np.ndarray, passage_ids: np.ndarray) -> np.ndarray:
        """One number for a query and a passage."""
        return query_ids * len(self.passages) + passage_ids

    def _candidates(self, index: int, seed: int) -> np.ndarray:
        """The passage that answers, and those to train against."""
        query_id, answer = self.pairs[index]
        chosen = [int(answer), *self.named[index][: self.count]]
        random = np.random.RandomState(seed)
        while len(chosen) <= self.count:
            drawn = random.randint(len(self.passages), size=1 + self.count)
            wrong = drawn[~np.isin(self._codes(query_id, drawn), self._relevant)]
            chosen += wrong[: 1 + self.count - len(chosen)].tolist()
        return np.array(chosen)

    def _padded(self, texts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.tensor([len(text) for text in texts])
        tokens = pad_sequence(texts, batch_first=True, padding_value=self.padding).long()
        missing = max(0, self.length - tokens.shape[1])
        return torch.nn.functional.pad(tokens, (0, missing), value=self.padding), lengths


def _texts(value: str | list[str] | None) -> list[str]:
    """What the column of negatives holds: a list, in tables of text one of them, or nothing."""
    return [value] if isinstance(value, str) and value else list(value or [])


def _by_split(tables: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Rows under the split that they name, or else that of their file."""
    found: dict[str, list[Row]] = {}
    for name, rows in tables.items():
        for row in rows:
            split = row.get("split") or name
            found.setdefault(SPLIT_NAMES.get(split, split), []).append(row)
    return found


def _joined(queries: dict[str, list[Row]], documents: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """LoCo's two tables as pairs, and as passages that answer nothing."""
    tables: dict[str, list[Row]] = {}
    for split, rows in queries.items():
        texts = {str(row["pid"]): row["passage"] for row in documents.get(split, [])}
        unasked, pairs = dict(texts), []
        for row in rows:
            for pid in row["answer_pids"]:
                if str(pid) not in texts:
                    raise ValueError(
                        f"the {split} query {row['query']!r:.80} is answered by pid {pid!r}, which none of the "
                        f"{len(texts)} documents of that split has; check data.documents"
                    )
                unasked.pop(str(pid), None)
                pairs.append({"query": row["query"], "passage": texts[str(pid)]})
        tables[split] = pairs + [{"passage": text} for text in unasked.values()]
    return tables


def _without_a_tenth(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Part the rows by their queries; rows without one stay."""
    queries = list(dict.fromkeys(row["query"] for row in rows if row.get("query")))
    kept = {queries[place] for place in np.random.RandomState(0).permutation(len(queries))[: -(-len(queries) // 10)]}
    left = [row for row in rows if row.get("query") not in kept]
    return left, [row for row in rows if row.get("query") in kept]
