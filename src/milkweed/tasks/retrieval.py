"""Retrieval: vectors of queries and passages that point the same way where one answers the other."""

import warnings
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.utilities import dim_zero_cat

from milkweed._arguments import checked
from milkweed._batches import NO_PASSAGE, NO_QUERY, Batch
from milkweed.models import M2Bert
from milkweed.nn.lengths import mean_of_steps
from milkweed.tasks.search import ndcg, search_ndcg
from milkweed.tasks.tokens import TokenTask


class Retrieval(TokenTask):
    """Train an encoder of texts so that the cosine of a query and a passage is 1 if the one answers the other, else 0.

    The metric is nDCG@10. In validation and test every query is compared with all passages that its data set has; of
    several data sets the metric is the mean, and each one's own is shown beside it, as `ndcg_NAME`. In training a query
    is compared with the passages of its batch only.

    Args:
        pooling: Of vectors per token, the `first` or the `mean` of the valid ones.
        in_batch: Whether a query is trained against the passages of the whole batch, or against its own only. In
            validation and test, which have no negatives of their own, the loss is always over the whole batch.
        pretrained: Where the encoder starts: a run, a folder or file written by `save_pretrained`, or one as M2-BERT's
            authors publish it. None to start afresh.

    Source:
        The orthogonal projection loss of the M2-BERT retrieval encoders (arXiv 2402.07440), which needs no large
        batches. With several processes, the passages of a batch are those of one process.
    """

    metric = "ndcg"
    larger_is_better = True
    optimisation: ClassVar = {"lr": 5e-6, "weight_decay": 0.0, "schedule": "linear"}

    @checked(but=("pretrained",))
    def __init__(
        self,
        pooling: Literal["first", "mean"] = "first",
        in_batch: bool = True,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(pretrained)
        self.pooling, self.in_batch = pooling, in_batch
        self.scores = nn.ModuleDict({"train_ndcg": MeanMetric(), "val_ndcg": SearchNdcg(), "test_ndcg": SearchNdcg()})

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model with a head."""
        if isinstance(model, M2Bert) and model.head is not None:
            kind = "a number for every word" if model.options["head"] == "masked_lm" else "numbers of classes"
            raise ValueError(
                f"retrieval compares vectors of texts, and a model with head={model.options['head']!r} gives {kind}; "
                "use model.head=none"
            )

    def predictions(self, outputs: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Vectors of length 1 of the queries and their passages; texts are near by their products."""
        return {"queries": outputs[:, 0], "passages": outputs[:, 1:]}

    def vectors(self, model: nn.Module, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Vectors of length 1 of texts, (B, D)."""
        return F.normalize(self._vectors(model, tokens, lengths).float(), dim=-1)

    def run_model(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Make vectors of the queries and of their passages."""
        passages = batch["passages"]
        queries = self._vectors(model, batch["inputs"], batch["lengths"])
        found = self._vectors(model, passages.flatten(0, 1), batch["passage_lengths"].flatten())
        vectors = torch.cat([queries[:, None], found.unflatten(0, passages.shape[:2])], 1)
        return F.normalize(vectors.float(), dim=-1)

    def _vectors(self, model: nn.Module, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        outputs = model(tokens, lengths)
        if outputs.ndim == 2:
            return outputs
        if outputs.ndim != 3 or outputs.shape[:2] != tokens.shape:
            raise ValueError(
                f"retrieval needs vectors (B, D), or {(*tokens.shape, 'D')} of every token; the model gave "
                f"{tuple(outputs.shape)}; set model.head=none"
            )
        if self.pooling == "first":
            return outputs[:, 0]
        return mean_of_steps(outputs, lengths)

    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean squared error of the cosines."""
        queries, passages = outputs[:, 0], outputs[:, 1:]
        if stage == "train" and not self.in_batch:
            if passages.shape[1] == 1:
                raise ValueError(
                    "task.in_batch=false compares a query with its own passages only, and no wrong ones are among "
                    "them: everything would become one vector; use data.negatives=1 or more, or task.in_batch=true"
                )
            rows = torch.arange(len(queries), device=queries.device)
            targets = batch["targets"].unflatten(1, passages.shape[:2])[rows, rows]
            return F.mse_loss((queries[:, None] * passages).sum(-1), targets)
        counted = _compared(batch)
        errors = (_cosines(queries, passages.flatten(0, 1)) - batch["targets"]).square()
        return errors.masked_fill(~counted, 0).sum() / counted.sum().clamp(min=1)

    def score(self, stage: str) -> Metric:
        """The nDCG@10 of one stage."""
        return self.scores[f"{stage}_ndcg"]

    def update_averages(self, stage: str, outputs: torch.Tensor, batch: Batch, loss: torch.Tensor) -> None:
        """Update the averages by one batch."""
        self.losses[f"{stage}_loss"].update(loss, weight=_compared(batch).sum())
        queries, passages = outputs[:, 0], outputs[:, 1:]
        if stage == "train":
            rows, places = batch["targets"].nonzero(as_tuple=True)
            found = ndcg(_cosines(queries, passages.flatten(0, 1)), rows, places, torch.ones_like(rows))
            self.score(stage).update(found.mean(), weight=len(found))
        else:
            self.score(stage).update(queries, passages[:, 0], batch)

    def figures(self, stage: str, loader: Any) -> dict[str, torch.Tensor]:
        """The nDCG@10 of each data set, if there are several."""
        names = getattr(getattr(loader, "dataset", None), "names", [])
        if len(names) < 2:
            return {}
        metric = self.score(stage)
        metric.compute()
        of_sets = {f"{stage}_ndcg_{names[number]}": value for number, value in metric.by_set.items()}
        return {name: value for name, value in of_sets.items() if not value.isnan()}


class SearchNdcg(Metric):
    """nDCG@10 of queries that are compared with all passages of their data set; the mean over data sets.

    After `compute`, `by_set` holds the figure of every data set by its number.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        of_queries, of_passages = ("query_ids", "query_sets", "own_ids"), ("passage_ids", "passage_sets")
        for name in ("queries", *of_queries, "passages", *of_passages, "rows", "answers", "gains"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.by_set: dict[int, torch.Tensor] = {}

    def update(self, queries: torch.Tensor, passages: torch.Tensor, batch: Batch) -> None:
        """Take a batch of rows."""
        asked, there = batch["query_ids"] != NO_QUERY, batch["passage_ids"][:, 0] != NO_PASSAGE
        self.queries.append(queries[asked])
        self.query_ids.append(batch["query_ids"][asked])
        self.query_sets.append(batch["set_ids"][asked])
        self.own_ids.append(batch["own_ids"][asked])
        self.passages.append(passages[there])
        self.passage_ids.append(batch["passage_ids"][there, 0])
        self.passage_sets.append(batch["set_ids"][there])
        judged = batch["answers"] != NO_PASSAGE
        self.rows.append(batch["query_ids"][:, None].expand_as(judged)[judged])
        self.answers.append(batch["answers"][judged])
        self.gains.append(batch["gains"][judged])

    def compute(self) -> torch.Tensor:
        """Search every data set and average."""
        query_sets, passage_sets = dim_zero_cat(self.query_sets), dim_zero_cat(self.passage_sets)
        # Outside of autocast, which would round scores until many are equal.
        with torch.autocast(query_sets.device.type, enabled=False):
            self.by_set = {
                number: self._search(query_sets == number, passage_sets == number)
                for number in query_sets.unique().tolist()
            }
        # A set of which nothing asked has an answer, under a limit for example, is left out, rather than NaN.
        known = [value for value in self.by_set.values() if not value.isnan()]
        if len(known) < len(self.by_set) or not known:
            warnings.warn(
                f"nDCG: in {len(self.by_set) - len(known)} of {len(self.by_set)} data sets no query has an answer "
                "among the passages; they are left out, and without any other nDCG is 0; raise data.limit",
                stacklevel=2,
            )
        return torch.stack(known).mean() if known else torch.zeros((), device=query_sets.device)

    def _search(self, of_queries: torch.Tensor, of_passages: torch.Tensor) -> torch.Tensor:
        """The mean of one data set's queries."""
        query_ids, query_order = dim_zero_cat(self.query_ids)[of_queries].sort()
        passage_ids, passage_order = dim_zero_cat(self.passage_ids)[of_passages].sort()
        rows, has_row = _places(query_ids, dim_zero_cat(self.rows))
        places, has_place = _places(passage_ids, dim_zero_cat(self.answers))
        own, has_own = _places(passage_ids, dim_zero_cat(self.own_ids)[of_queries][query_order])
        judged = has_row & has_place  # under a limit, some passages are not there
        found = search_ndcg(
            dim_zero_cat(self.queries)[of_queries][query_order],
            dim_zero_cat(self.passages)[of_passages][passage_order],
            rows[judged],
            places[judged],
            dim_zero_cat(self.gains)[judged],
            own.masked_fill(~has_own, -1),
        )
        return found[rows[judged].unique()].mean()


def _places(known: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where numbers stand among sorted ones, and whether they do."""
    places = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    return places, known[places] == wanted


def _compared(batch: Batch) -> torch.Tensor:
    """Which queries and passages of a batch are compared: those that are there."""
    asked, there = batch["query_ids"] != NO_QUERY, batch["passage_ids"].flatten() != NO_PASSAGE
    return asked[:, None] & there


def _cosines(queries: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
    """Of float32 vectors of length 1; in full precision under autocast as well."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ passages.T
