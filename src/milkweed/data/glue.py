"""GLUE: nine tasks on sentences and pairs of sentences."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from milkweed._arguments import checked
from milkweed._files import path_text
from milkweed.data.batches import ArrayDataset
from milkweed.data.checks import check_split
from milkweed.data.preprocessing.texts import Sentences
from milkweed.data.tables import Row, read_tables
from milkweed.data.tokenized import TokenizedData, TokenRows, frame


@dataclass(frozen=True)
class GlueTask:
    """One of the nine tasks of GLUE."""

    fields: tuple[str, ...]  # columns of the first sentence and, if there is one, the second
    judged_by: str  # the metric that it is judged by
    classes: tuple[str, ...] = ()  # names of the classes, in the order of their numbers; none for a regression
    most: float = 0.0  # largest target of a regression, whose smallest is 0
    development: str = "validation"  # the split with public labels beside that for training


ENTAILMENT = ("entailment", "not_entailment")
GLUE = {
    "cola": GlueTask(("sentence",), "matthews", ("unacceptable", "acceptable")),
    "sst2": GlueTask(("sentence",), "accuracy", ("negative", "positive")),
    "mrpc": GlueTask(("sentence1", "sentence2"), "f1", ("not_equivalent", "equivalent")),
    "qqp": GlueTask(("question1", "question2"), "f1", ("not_duplicate", "duplicate")),
    "stsb": GlueTask(("sentence1", "sentence2"), "pearson", most=5.0),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        "accuracy",
        ("entailment", "neutral", "contradiction"),
        development="validation_matched",
    ),
    "qnli": GlueTask(("question", "sentence"), "accuracy", ENTAILMENT),
    "rte": GlueTask(("sentence1", "sentence2"), "accuracy", ENTAILMENT),
    "wnli": GlueTask(("sentence1", "sentence2"), "accuracy", ("not_entailment", "entailment")),
}
LABEL = "label"


class Glue(TokenizedData):
    """One task of GLUE, cut into tokens by the tokenizer of the model that is fine-tuned.

    The public test sets have no labels. So the public development set is the test split here, and a fixed tenth of the
    training set is kept for validation, which decides which epoch is best.

    Args:
        task: `cola`, `sst2`, `mrpc`, `qqp`, `stsb`, `mnli`, `qnli`, `rte` or `wnli`.
        source: A folder of tables, `train` and `validation` (or `dev`) with the columns of the public data, or the name
            of a data set on the Hugging Face hub.
        tokenizer: Folder or hub name of the model's tokenizer.
        vocabulary_size: Tokens that the model knows, at least as many as the tokenizer has.
        test_split: Split to test on; None for the development set, which is the matched one with `mnli`.
        whole: Pad to `length` instead of the longest of a batch, for models with `padding="legacy"`.
        batch_size: Samples per optimiser step over all processes together.
        length: L, tokens of a sentence or pair, frame included; longer ones are cut.
        seed: Decides the order of the training samples, nothing else.
        limit: At most this many samples per split, for trials.

    Source:
        GLUE (arXiv 1804.07461). Monarch Mixer (arXiv 2310.12109) reports figures of the development sets.
    """

    @checked(but=("task", "source", "tokenizer"))
    def __init__(
        self,
        task: Literal["cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"],
        tokenizer: str,
        source: str = "nyu-mll/glue",
        vocabulary_size: int = 30528,
        test_split: str | None = None,
        whole: bool = False,
        batch_size: int = 32,
        length: int = 128,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        source = path_text("source", source)
        super().__init__(tokenizer, vocabulary_size, batch_size, length, seed, limit)
        if task not in GLUE:
            raise ValueError(f"task={task!r} is not a task of GLUE: {', '.join(GLUE)}")
        self.task, self.source, self.whole = GLUE[task], source, whole
        self.config, self.test_split = task, test_split or self.task.development
        self.judged_by = self.task.judged_by

    @property
    def d_output(self) -> int:
        """Number of classes; 1 for a regression."""
        return len(self.task.classes) or 1

    def load(self) -> dict[str, ArrayDataset]:
        """Read the tables and cut the sentences into tokens."""
        config = None if Path(self.source).exists() else self.config
        tables = read_tables(self.source, (*self.task.fields, LABEL), config)
        for name in ("train", self.test_split):
            if name not in tables:
                raise ValueError(
                    f"data.source={self.source} has no split {name}, but {', '.join(sorted(tables))}; add a "
                    f"file {name}.csv" + ("" if name == "train" else ", or name another as data.test_split")
                )
        rows = tables["train"]
        if len(rows) < 10:
            raise ValueError(
                f"data.source={self.source}: the split train has {len(rows)} rows; a tenth of them is kept for "
                "validation, so that at least 10 are needed; use more data"
            )
        order = np.random.RandomState(0).permutation(len(rows))
        kept = len(rows) // 10
        parts = {
            "train": [rows[place] for place in sorted(order[kept:])],
            "val": [rows[place] for place in sorted(order[:kept])],
            "test": tables[self.test_split],
        }
        return {name: self._dataset(name, part) for name, part in parts.items()}

    def preprocessing(self) -> Sentences:
        """Sentences or pairs of them."""
        return Sentences(self.length, list(self.task.fields), self.whole, self.task.classes or None)

    def _dataset(self, name: str, rows: list[Row]) -> TokenRows:
        targets = torch.tensor([self._target(name, row) for row in rows])
        texts = [[self._text(name, row, field) for row in rows] for field in self.task.fields]
        tokens, types, lengths = frame(self.tokenizer, texts[0], texts[1] if len(texts) > 1 else None, self.length)
        return TokenRows(tokens, targets, lengths, types, self.whole)

    def _text(self, name: str, row: Row, field: str) -> str:
        value: Any = row[field]
        if not isinstance(value, str | int | float):
            raise ValueError(
                f"data.source={self.source}: the {name} split has {value!r:.80} in the column {field}, expected text"
            )
        return str(value)

    def _target(self, name: str, row: Row) -> float | int:
        label: Any = row[LABEL]
        names = {each: number for number, each in enumerate(self.task.classes)}
        try:
            value = float(names.get(label, label))
        except (TypeError, ValueError):  # a list, say, or a word
            value = float("nan")
        if not names and 0 <= value <= self.task.most:
            return value
        if names and value in names.values():
            return int(value)
        wanted = f"0 … {len(names) - 1} or {', '.join(names)}" if names else f"a number from 0 to {self.task.most:g}"
        fix = "clean it, or use another data.task for these data"
        if value == -1:
            fix = "it has no labels; " + ("use another data.test_split" if name == "test" else "drop such rows")
        raise ValueError(
            f"data.source={self.source}: the {name} split has the label {label!r}, expected {wanted}; {fix}"
        )

    def _check(self, name: str, split: ArrayDataset) -> None:
        check_split(type(self).__name__, name, split)
