"""The measurement of a whole model before and after its conversion."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from milkweed.convert.evaluation import scores
from milkweed.convert.evaluation.comparisons import Comparison
from milkweed.convert.evaluation.data import Table, is_number, read_data
from milkweed.convert.evaluation.held_out import HeldOut
from milkweed.convert.evaluation.metrics import (
    ON_TABLES,
    ChangedModelError,
    Metric,
    comparison,
    own_figures,
    own_values,
    usual_comparisons,
)
from milkweed.convert.evaluation.outputs import KINDS, Asked, ask, kind_of
from milkweed.convert.evaluation.pair import Pair
from milkweed.convert.evaluation.results import EndToEnd, Figure
from milkweed.convert.evaluation.sentence_pooling import pooling_of
from milkweed.convert.hub.conversion_progress import FolderError, Progress
from milkweed.convert.hub.inputs import failure, first_line, known_tokens
from milkweed.convert.hub.memory import without_cache
from milkweed.convert.hub.source import Source
from milkweed.convert.hub.text_batches import padded, ready_tokenizer, tokenised
from milkweed.convert.input_moments import evaluating, run_batch

SEED = 0
# Logits over a whole vocabulary are kept to so many numbers at a time.
_MOST_LOGITS = 2**24
MORE = "give more of them, or data of your own with metric_data"
HOW = "give texts, of which a share is held back, or data of your own with metric_data"


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure, and on what; the fields are arguments of `convert_folder`."""

    metric: str | Metric | None = None
    metric_data: str | os.PathLike[str] | Sequence[object] | None = None
    texts: Sequence[str] = ()  # held back
    calibration: Sequence[str] = ()  # what must not be measured on
    max_length: int = 128
    batch_size: int = 32


Score = tuple[str, str, Callable[[Any], float]]


class Trial:
    """Measures a model before its conversion, as far as this takes one model, and both afterwards.

    Args:
        source: The saved model, for its tokenizer.
        options: What to measure.
        steps: Told how far it is.
    """

    def __init__(self, source: Source, options: Options, steps: Progress) -> None:
        self.source, self.options, self.steps = source, options, steps
        self.tokenizer: Any = None
        self.missing = f"no texts were given; {HOW}"
        if options.calibration:
            self.missing = f"none of {len(options.calibration):,} texts was held back; {MORE}"
        self.data = ""
        self.held_out = HeldOut()
        self.asked: list[Asked] = []
        self.comparisons: list[Comparison] = []
        self.scores: list[Score] = []
        self.before: dict[str, float] = {}

    def prepare(self, model: nn.Module) -> None:
        """Find out what can be measured, and measure the dense model: what fails does so before the conversion."""
        if self.options.metric is None and self.options.metric_data is None and not self.options.texts:
            return
        self.steps.begin("measuring the dense model")
        with without_cache(model), evaluating(model):
            if callable(self.options.metric):
                self._prepare_own(model, self.options.metric)
            else:
                self._prepare_known(model, self.options.metric)
                self.before = {name: score(model) for name, _, score in self.scores}

    def measure(self, pair: Pair) -> EndToEnd:
        """Measure both models; what fails now is a warning and no error, as the conversion is done."""
        if self.before or self.comparisons:
            self.steps.begin("measuring the whole model, dense and converted")
        try:
            with without_cache(pair.dense_model):
                figures = self._figures(pair)
        except ChangedModelError:
            raise
        except FolderError as error:
            self.steps.warn(f"not measured: {error}")
            return EndToEnd((), self.data, missing=str(error))
        hides = any(each.labels is not None for each in self.asked) and "hidden" in figures[0].name
        return EndToEnd(figures, self.data, SEED if hides else None, "" if figures else self.missing)

    def _figures(self, pair: Pair) -> tuple[Figure, ...]:
        metric = self.options.metric
        if callable(metric):
            with pair.converted() as model:
                return own_figures(self.before, own_values(metric, model, self.held_out, "converted"))
        found: list[Figure] = []
        if self.scores:
            with pair.converted() as model:
                found += [
                    Figure(name, score(model), self.before[name], "higher", None, detail)
                    for name, detail, score in self.scores
                ]
        if self.comparisons:
            self._compare(pair)
        return (*found, *(figure for each in self.comparisons for figure in each.figures()))

    def _compare(self, pair: Pair) -> None:
        for asked in self.steps.read(self.asked, len(self.asked)):
            with pair.dense() as model:
                dense = run_batch(model, asked.inputs)
            with pair.converted() as model:
                converted = run_batch(model, asked.inputs)
            for each in self.comparisons:
                each.add(dense, converted, asked)

    def _prepare_own(self, model: nn.Module, metric: Metric) -> None:
        data, file = self.options.metric_data, None
        if data is not None:
            if not isinstance(data, str | os.PathLike):
                raise TypeError("metric_data must be a file for a metric of your own, which reads it as held_out.file")
            file = Path(data)
            if not file.exists():
                raise FolderError(f"metric_data={str(file)!r} does not exist")
            self.data = file.name
        batches: list[dict[str, Any]] = []
        if self.options.texts:
            self.tokenizer = ready_tokenizer(self.source)
            batches = self._batches(model, list(self.options.texts), self.options.batch_size)
            self.data = self.data or self._held_back()
        with suppress(FolderError):  # a model that reads no texts has none
            self.tokenizer = self.tokenizer or ready_tokenizer(self.source)
        self.held_out = HeldOut(batches, self.options.texts, self.tokenizer, file)
        self.before = own_values(metric, model, self.held_out, "dense")

    def _prepare_known(self, model: nn.Module, metric: str | None) -> None:
        data = None if self.options.metric_data is None else read_data(self.options.metric_data)
        if metric in ON_TABLES and not isinstance(data, Table):
            raise FolderError(
                f"metric={metric!r} needs metric_data, a table (.csv, .tsv) of "
                f"{'text, label' if metric == 'accuracy' else 'text, text, score'}"
            )
        texts = self._texts(data)
        if not texts:
            if metric is not None:
                raise FolderError(f"metric={metric!r} needs texts that it can be measured on: {HOW}")
            return
        self.tokenizer = ready_tokenizer(self.source)
        (first, *_), pooling = self._batches(model, texts[:1], 1), pooling_of(self.source.folder)
        self._check_runs(model, first)
        kind = kind_of(model, first, run_batch(model, first))
        if isinstance(data, Table) and metric in {None, *ON_TABLES}:
            self.scores = [self._score(model, kind, data, pooling, metric)]
            if metric is not None or kind not in {"encoder", "classes", "labels"}:
                return
        can_hide = self.tokenizer.mask_token_id is not None
        chosen = [comparison(metric, kind, pooling, can_hide)] if metric and metric not in ON_TABLES else None
        self.comparisons = chosen or usual_comparisons(kind, pooling, can_hide)
        rows = self.options.batch_size
        if kind in {"causal", "masked", "seq2seq"}:
            rows = max(1, min(rows, _MOST_LOGITS // ((known_tokens(model) or 1) * self.options.max_length)))
        self.asked = [
            ask(kind, batch, self.tokenizer.mask_token_id, self.tokenizer.all_special_ids, SEED + index)
            for index, batch in enumerate(self._batches(model, texts, rows))
        ]

    def _texts(self, data: list[str] | Table | None) -> list[str]:
        """The texts to compare outputs on, none of which calibration sees."""
        given = self.options.metric_data
        if data is None:
            self.data = self._held_back() if self.options.texts else ""
            return list(self.options.texts)
        name = Path(given).name if isinstance(given, str | os.PathLike) else "metric_data"
        if isinstance(data, Table):
            self.data = f"{name}, {len(data.targets):,} rows"
            return list(dict.fromkeys(text for row in data.texts for text in row))
        seen = {" ".join(text.split()) for text in self.options.calibration}
        texts = [text for text in data if " ".join(text.split()) not in seen]
        if not texts:
            raise FolderError("metric_data holds only texts that calibration sees; give others")
        self.data = f"{name}, {len(texts):,} texts that calibration does not see"
        return texts

    def _held_back(self) -> str:
        total = len(self.options.texts) + len(self.options.calibration)
        return f"{len(self.options.texts):,} texts held back from the {total:,} given"

    def _score(self, model: Any, kind: str, table: Table, pooling: str, metric: str | None) -> Score:
        """What a table says about a model: the right classes, or scores of pairs."""
        count = f"{len(table.targets):,} rows"
        if metric == "accuracy" or (metric is None and kind == "classes"):
            if kind != "classes":
                raise FolderError("metric='accuracy' needs a classifier of texts; this model gives no classes")
            labels, rows = scores.classes(table, model.config), self._rows(model, table.texts, pooling)
            return "accuracy", count, lambda model: scores.accuracy(model, rows, labels)
        if kind not in {"encoder", "numbers"}:
            raise FolderError(f"metric='spearman' needs an encoder or a regression; this model is {KINDS[kind]}")
        numbers = table.numbers
        if numbers is None:
            strange = next(target for target in table.targets if not is_number(target))
            raise FolderError(f"metric='spearman' needs scores that are numbers; metric_data has {strange!r}")
        if len(set(numbers)) < 2:
            raise FolderError(
                f"metric='spearman' needs scores that differ; metric_data has {numbers[0]:g} in every row"
            )
        wanted, pairs = torch.tensor(numbers, dtype=torch.float64), len(table.texts[0]) == 2
        if kind == "numbers":
            rows = self._rows(model, table.texts, pooling)
            return "Spearman correlation", count, lambda model: scores.output_spearman(model, rows, wanted)
        if not pairs:
            raise FolderError("metric='spearman' needs pairs of texts with a score: text, text, score")
        rows = self._rows(model, [(text,) for column in zip(*table.texts, strict=True) for text in column], pooling)
        detail = f"{count}, of cosines with scores"
        return "Spearman correlation", detail, lambda model: scores.pair_spearman(model, rows, wanted)

    def _rows(self, model: nn.Module, texts: Sequence[tuple[str, ...]], pooling: str) -> scores.Rows:
        rows = tokenised(self.source, self.tokenizer, model, texts, self.options.max_length)
        empty = next((index for index, row in enumerate(rows) if not row["input_ids"]), None)
        if empty is not None:
            raise FolderError(f"the tokenizer of {self.source.name} finds no token in {texts[empty]!r} of metric_data")
        return scores.Rows(self.tokenizer, rows, self.options.batch_size, pooling, self.steps)

    def _batches(self, model: nn.Module, texts: Sequence[str], size: int) -> list[dict[str, Any]]:
        rows = tokenised(self.source, self.tokenizer, model, texts, self.options.max_length)
        found = [row for row in rows if row["input_ids"]]
        if not found:
            raise FolderError(f"the tokenizer of {self.source.name} finds no token in the texts to measure on")
        self.tokenizer.padding_side = "right"  # positions count from the left
        return [batch for _, batch in padded(self.tokenizer, model, found, size)]

    def _check_runs(self, model: nn.Module, batch: dict[str, Any]) -> None:
        error = failure(model, batch)
        if error is not None:
            raise FolderError(
                f"{self.source.name}, a {type(model).__name__}, does not run on texts alone "
                f"({type(error).__name__}: {first_line(error)}); convert it without texts"
            ) from error
