"""Queries and the passages that answer them."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from milkweed._arguments import checked
from milkweed._batches import NO_PASSAGE, NO_QUERY
from milkweed._files import path_text
from milkweed._seeding import derived_seed
from milkweed.data.base import SPLITS
from milkweed.data.preprocessing.texts import Sentences
from milkweed.data.retrieval_sets import RetrievalSet, read_sets
from milkweed.data.tokenized import TokenizedData

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


_SPLIT_NAMES = {"val": "validation"}


class Retrieval(TokenizedData):
    """Queries, each with the passages that answer it and, in training, some that do not; of one data set or several.

    Three layouts are read.

    - Pairs: tables with the columns `query` and `passage`, one row for every passage that answers; a row without a
      query only adds its passage to those that are searched; a column `negatives`, a list of texts, names passages to
      train against. Rows say with `split` where they belong, or their file does. A query of the test is compared with
      all passages of the test.
    - With `documents`, that of LoCoV1: queries with `query` and `answer_pids`, a list of ids or a single one, documents
      with `pid` and `passage`, and both with `split`, as above.
    - That of BEIR: a folder with `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`, `text`) and
      `qrels/test.tsv` (`query-id`, `corpus-id`, `score`), besides `train.tsv` and `dev.tsv`. Every query is compared
      with the whole corpus, except for the document of its own id. Scores above 0 are gains, others name passages to
      train against.

    Several data sets are a folder of such folders, or tables with a column `dataset`. Each is searched by itself; one
    batch of training may mix them.

    A set may lack the split `validation`: a fixed tenth of its training queries, if there are two or more, is kept for
    it. Others may be missing where they are not used, as in data that a finished run is only evaluated on.

    Args:
        source: A file or folder of tables, the name of a data set on the Hugging Face hub, or a folder in BEIR's
            layout; or a folder of folders.
        tokenizer: Folder or hub name of the model's tokenizer.
        documents: Documents in the layout of LoCo, whose queries `source` then are; None for pairs or the layout of
            BEIR.
        vocabulary_size: Tokens that the model knows, at least as many as the tokenizer has.
        negatives: Passages to train against beside every pair: those that are named, then others of the set by chance.
        whole: Pad to `length` instead of the longest of a batch, for models with `padding="legacy"`.
        batch_size: Pairs per optimiser step over all processes together.
        length: L, tokens of a query or passage, frame included; longer ones are cut.
        seed: Decides the order of the training pairs and the negatives that are drawn.
        limit: At most this many pairs per split, for trials.

    Source:
        Monarch Mixer retrieval models and LoCoV1 (arXiv 2402.07440); BEIR (arXiv 2104.08663).
    """

    d_output = None
    """The model gives vectors of its own size."""

    @checked(but=("source", "tokenizer", "documents"))
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
        source = path_text("source", source)
        documents = documents if documents is None else path_text("documents", documents)
        super().__init__(tokenizer, vocabulary_size, batch_size, length, seed, limit)
        if negatives < 0:
            raise ValueError(f"negatives={negatives} must be at least 0")
        self.source, self.documents = source, documents
        self.negatives, self.whole = negatives, whole

    def load(self) -> dict[str, "RetrievalPairs"]:
        """Read the texts and cut them into tokens; a split that the data lack has no queries."""
        found = read_sets(self.source, self.documents)
        encode = _Encoder(self)
        padding, length = self.tokenizer.pad_token_id, self.length * self.whole
        datasets = {}
        for name in SPLITS:
            sets = found.get(_SPLIT_NAMES.get(name, name), [])
            if name == "train":
                datasets[name] = TrainingPairs(sets, encode, padding, self.negatives, length)
            else:
                datasets[name] = SearchedPairs(sets, encode, padding, length)
        self._found = ", ".join(sorted(found))
        return datasets

    def preprocessing(self) -> Sentences:
        """Texts, as queries and passages alike."""
        return Sentences(self.length, ["query"], self.whole)

    def split(self, name: str) -> "RetrievalPairs":
        """One loaded split; a ValueError if the data have no such split."""
        split = super().split(name)
        if not split.names:
            file = "validation" if name == "val" else name
            raise ValueError(
                f"data.source={self.source} has no split {file}, but {self._found}; name a file {file}.jsonl or "
                f"qrels/{file}.tsv, or say {file} in a column split"
            )
        return split

    def check_processes(self, world_size: int) -> None:
        """Refuse batches without a wrong passage: trained on answers alone, all vectors become one."""
        pairs = len(self.split("train"))
        if not self.negatives and min(self.batch_size // world_size, pairs) == 1:
            few = pairs == 1
            raise ValueError(
                f"data.source={self.source}: "
                + ("the train split has one pair" if few else f"batch_size={self.batch_size} is one pair per process")
                + " and negatives=0, so that no query is compared with a passage that does not answer it; use "
                + ("more pairs" if few else f"data.batch_size={2 * world_size} or more")
                + ", or data.negatives=1 with passages to choose from"
            )
        super().check_processes(world_size)

    def train_dataloader(self) -> "DataLoader":
        """Shuffled training batches, whose order and negatives depend on (seed, epoch) alone."""
        loader = super().train_dataloader()
        batches, seed = self._batches, self.seed
        self.split("train").keys = lambda: (seed, batches.epoch)
        return loader

    def _check(self, name: str, split: "RetrievalPairs") -> None:
        for number, set_name in enumerate(split.names):
            where = f"data.source={self.source}: the {name} split" + (f" of {set_name}" if set_name else "")
            first, last = split.bounds[number]
            asked = split.pairs[(split.pairs[:, 0] != NO_QUERY) & (split.set_ids == number), 0]
            if not len(asked):
                raise ValueError(f"{where} has no query; fill the column query, or qrels/{name}.tsv")
            most = int(np.bincount(asked - asked.min()).max())
            if name == "train" and self.negatives and most >= last - first:
                raise ValueError(
                    f"negatives={self.negatives} needs passages that do not answer: a query of the training split is "
                    f"answered by all {last - first} of them; use "
                    + ("data.negatives=0, or more data" if len(split) > 1 else "more data")
                )


class _Encoder:
    """Texts as tokens; a corpus that several splits search is cut once."""

    def __init__(self, data: Retrieval) -> None:
        self.data = data
        self.done: list[tuple[dict[str, str], list[torch.Tensor]]] = []

    def __call__(self, texts: dict[str, str]) -> list[torch.Tensor]:
        for corpus, tokens in self.done:
            if corpus is texts:
                return tokens
        found: list[torch.Tensor] = []
        values = list(texts.values())
        # In parts, because the tokenizer gives lists of Python's integers.
        for first in range(0, len(values), 1000):
            rows = self.data.tokenizer(values[first : first + 1000], truncation=True, max_length=self.data.length)
            found += [torch.tensor(row, dtype=torch.int32) for row in rows["input_ids"]]
        self.done.append((texts, found))
        return found


class RetrievalPairs(Dataset):
    """Rows of a query and a passage, of which one may be missing; what the two kinds below share.

    Args:
        sets: The data sets of one split.
        encode: Cuts texts into tokens.
        padding: Number of the token that fills up.
        length: Steps to pad to; 0 for the longest of a batch.
    """

    def __init__(
        self,
        sets: list[RetrievalSet],
        encode: Callable[[dict[str, str]], list[torch.Tensor]],
        padding: int,
        length: int,
    ) -> None:
        self.padding, self.length = padding, length
        self.names = [each.name for each in sets]
        self.queries: list[torch.Tensor] = []
        self.passages: list[torch.Tensor] = []
        self.bounds: list[tuple[int, int]] = []
        self.answers: list[dict[int, float]] = []
        self.own: list[int] = []
        self.named: list[list[int]] = []
        for each in sets:
            self._add(each, encode)
        codes = [self._codes(np.int64(query), np.array(list(known))) for query, known in enumerate(self.answers)]
        self._relevant = np.sort(np.concatenate([*codes, np.zeros(0, np.int64)]).astype(np.int64))
        (self.empty,) = encode({"": ""})
        self.pairs = np.array(self._rows(), np.int64).reshape(-1, 2)
        sizes = [last for _, last in self.bounds]
        queries = np.repeat(np.arange(len(sets)), [len(each.gains) for each in sets])
        of_passages = np.searchsorted(sizes, self.pairs[:, 1], side="right")
        asked = self.pairs[:, 0] != NO_QUERY
        self.set_ids = np.where(asked, queries[self.pairs[:, 0]] if len(queries) else 0, of_passages)
        self.rows = len(self.pairs)

    def _add(self, each: RetrievalSet, encode: Callable[[dict[str, str]], list[torch.Tensor]]) -> None:
        first = len(self.passages)
        numbers = {name: first + place for place, name in enumerate(each.passages)}
        self.passages += encode(each.passages)
        self.bounds.append((first, len(self.passages)))
        self.queries += encode({name: each.queries[name] for name in each.gains})
        # Where ids are the texts themselves, an equal passage is no document of the query's own.
        numbered = each.passages.keys() != set(each.passages.values())
        for query, gains in each.gains.items():
            own = numbers.get(query, NO_PASSAGE) if numbered else NO_PASSAGE
            self.own.append(own)
            self.answers.append({numbers[name]: gain for name, gain in gains.items() if numbers[name] != own})
            wrong = [numbers[name] for name in each.negatives.get(query, [])]
            self.named.append([number for number in wrong if number not in self.answers[-1]])

    def _rows(self) -> list[tuple[int, int]]:
        raise NotImplementedError

    def _candidates(self, index: int) -> np.ndarray:
        """Passages of a row: that of the pair, and those to train against."""
        return self.pairs[index, 1:]

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        query_ids = self.pairs[indices, 0]
        passage_ids = np.stack([self._candidates(index) for index in indices])
        inputs, lengths = self._padded([self.queries[i] if i != NO_QUERY else self.empty for i in query_ids])
        flat = passage_ids.flatten()
        passages, passage_lengths = self._padded([self.passages[i] if i != NO_PASSAGE else self.empty for i in flat])
        shape = passage_ids.shape
        return {
            "inputs": inputs,
            "lengths": lengths,
            "passages": passages.reshape(*shape, -1),
            "passage_lengths": passage_lengths.reshape(shape),
            "query_ids": torch.from_numpy(query_ids),
            "passage_ids": torch.from_numpy(passage_ids),
            "targets": torch.from_numpy(self._answer(query_ids[:, None], flat[None])).float(),
        }

    def head(self, count: int) -> "RetrievalPairs":
        """The first pairs only; then nothing else is searched."""
        short = copy.copy(self)
        short.rows = min(self.rows, count)
        return short

    def _codes(self, query_ids: np.ndarray, passage_ids: np.ndarray) -> np.ndarray:
        """One number for a query and a passage."""
        return query_ids * len(self.passages) + passage_ids

    def _answer(self, query_ids: np.ndarray, passage_ids: np.ndarray) -> np.ndarray:
        """Whether passages answer queries."""
        codes = self._codes(query_ids, passage_ids)
        places = np.searchsorted(self._relevant, codes)
        found = np.append(self._relevant, -1)[places] == codes
        return found & (query_ids != NO_QUERY) & (passage_ids != NO_PASSAGE)

    def _padded(self, texts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = torch.tensor([len(text) for text in texts])
        tokens = pad_sequence(texts, batch_first=True, padding_value=self.padding).long()
        missing = max(0, self.length - tokens.shape[1])
        return torch.nn.functional.pad(tokens, (0, missing), value=self.padding), lengths


class TrainingPairs(RetrievalPairs):
    """Every query with every passage that answers it, and with N = `negatives` that do not."""

    def __init__(
        self,
        sets: list[RetrievalSet],
        encode: Callable[[dict[str, str]], list[torch.Tensor]],
        padding: int,
        negatives: int,
        length: int,
    ) -> None:
        super().__init__(sets, encode, padding, length)
        self.count = negatives
        self.keys: Callable[[], tuple[int, ...]] = lambda: (0,)

    def _rows(self) -> list[tuple[int, int]]:
        return [(query, passage) for query, known in enumerate(self.answers) for passage in known]

    def _candidates(self, index: int) -> np.ndarray:
        query_id, answer = self.pairs[index]
        chosen = [int(answer), *self.named[query_id][: self.count]]
        first, last = self.bounds[self.set_ids[index]]
        random = np.random.RandomState(derived_seed(*self.keys(), index))
        while len(chosen) <= self.count:
            drawn = random.randint(first, last, size=1 + self.count)
            wrong = drawn[~self._answer(query_id, drawn)]
            chosen += wrong[: 1 + self.count - len(chosen)].tolist()
        return np.array(chosen)


class SearchedPairs(RetrievalPairs):
    """Every query and every passage once: a query beside a passage that answers it, as long as there is one left.

    Batches name, besides, the set of every row (`set_ids`), all passages that answer its query (`answers`) with their
    gains, filled up by `NO_PASSAGE`, and the one that is not searched for it (`own_ids`).

    Pairs come first, short passages before long ones, so that a limit leaves queries and batches need little padding.
    """

    def _rows(self) -> list[tuple[int, int]]:
        free = set(range(len(self.passages)))
        pairs, alone = [], []
        for query, known in enumerate(self.answers):
            partner = next((passage for passage in known if passage in free), NO_PASSAGE)
            free.discard(partner)
            (alone if partner == NO_PASSAGE else pairs).append((query, partner))
        pairs.sort(key=lambda pair: len(self.passages[pair[1]]))
        unasked = sorted(free, key=lambda passage: (len(self.passages[passage]), passage))
        return pairs + alone + [(NO_QUERY, passage) for passage in unasked]

    def __getitem__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        batch = super().__getitem__(indices)
        known = [self.answers[query] if query != NO_QUERY else {} for query in batch["query_ids"].tolist()]
        own = [self.own[query] if query != NO_QUERY else NO_PASSAGE for query in batch["query_ids"].tolist()]
        answers = [torch.tensor(list(each), dtype=torch.long) for each in known]
        gains = [torch.tensor(list(each.values()), dtype=torch.float) for each in known]
        return batch | {
            "set_ids": torch.from_numpy(self.set_ids[indices]),
            "own_ids": torch.tensor(own),
            "answers": pad_sequence(answers, batch_first=True, padding_value=NO_PASSAGE),
            "gains": pad_sequence(gains, batch_first=True),
        }
