"""Retrieval: vectors of queries and passages that point the same way where one answers the other."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric

from milkweed.data.retrieval import NO_QUERY
from milkweed.nn.lengths import valid_steps
from milkweed.tasks.base import Batch
from milkweed.tasks.tokens import TokenTask

TOP = 10
# Queries whose scores are held at a time.
_CHUNK = 256


class Retrieval(TokenTask):
    """Train an encoder of texts so that the cosine of a query and a passage is 1 if the one answers the other, else 0.

    The metric is nDCG@10. In validation and test every query is compared with all passages of the split, in training
    with those of its batch only.

    Args:
        model: `model(tokens (B, L), lengths (B,))` gives vectors (B, D), or (B, L, D), which are pooled.
        pooling: Of vectors per token, the `first` or the `mean` of the valid ones.
        in_batch: Whether a query is trained against the passages of the whole batch, or against its own only. In
            validation and test, which have no negatives of their own, the loss is always over the whole batch.
        lr: Learning rate after the warm-up.
        weight_decay: AdamW's decay, for the parameters that are decayed at all.
        ssm_lr: Learning rate of the state space parameters; the layer's own choice if None.
        warmup_steps: Optimiser steps of linear warm-up.
        schedule: What follows the warm-up: `linear` down to 2% at the end of the training, `cosine` down to zero, or
            `constant`.
        pretrained: Where the encoder starts: a run, a folder or file written by `save_pretrained`, or one as M2-BERT's
            authors publish it. None to start afresh.

    Raises:
        ValueError: If a value is out of its range.

    Source:
        The orthogonal projection loss of the M2-BERT retrieval encoders (arXiv 2402.07440), which needs no large
        batches. With several processes, the passages of a batch are those of one process.
    """

    metric = "ndcg"
    larger_is_better = True

    def __init__(
        self,
        model: nn.Module,
        pooling: Literal["first", "mean"] = "first",
        in_batch: bool = True,
        lr: float = 5e-6,
        weight_decay: float = 0.0,
        ssm_lr: float | None = None,
        warmup_steps: int = 0,
        schedule: Literal["linear", "cosine", "constant"] = "linear",
        pretrained: str | None = None,
    ) -> None:
        super().__init__(model, lr, weight_decay, ssm_lr, warmup_steps, schedule, pretrained)
        self.pooling, self.in_batch = pooling, in_batch
        self.scores = nn.ModuleDict({"train_ndcg": MeanMetric(), "val_ndcg": SearchNdcg(), "test_ndcg": SearchNdcg()})
        self.scores["train_ndcg"].persistent(True)

    def run_model(self, batch: Batch) -> torch.Tensor:
        """Make vectors of the queries and of their passages.

        Args:
            batch: What the data module yields.

        Returns:
            (B, 2 + N, D) of length 1, in float32: of the query, of the passage that answers it, and of N others.
        """
        passages = batch["passages"]
        queries = self._vectors(batch["inputs"], batch["lengths"])
        found = self._vectors(passages.flatten(0, 1), batch["passage_lengths"].flatten())
        vectors = torch.cat([queries[:, None], found.unflatten(0, passages.shape[:2])], 1)
        return F.normalize(vectors.float(), dim=-1)

    def _vectors(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        outputs = self(tokens, lengths)
        if outputs.ndim == 2:
            return outputs
        if outputs.ndim != 3 or outputs.shape[:2] != tokens.shape:
            raise ValueError(
                f"retrieval needs vectors (B, D), or {(*tokens.shape, 'D')} of every token; the model gave "
                f"{tuple(outputs.shape)}; set --model.head none"
            )
        if self.pooling == "first":
            return outputs[:, 0]
        valid = valid_steps(lengths, tokens.shape[1])[..., None]
        return outputs.masked_fill(~valid, 0).sum(1) / lengths[:, None]

    def loss(self, stage: str, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean squared error of the cosines.

        Args:
            stage: `train`, `val` or `test`.
            outputs: Vectors, (B, 2 + N, D).
            batch: What the data module yields.

        Returns:
            The scalar loss; 0 for a batch of passages without queries.
        """
        asked = batch["query_ids"] != NO_QUERY
        queries, passages = outputs[:, 0], outputs[:, 1:]
        if stage == "train" and not self.in_batch:
            rows = torch.arange(len(queries), device=queries.device)
            targets = batch["targets"].unflatten(1, passages.shape[:2])[rows, rows]
            cosines = torch.einsum("bd,bnd->bn", queries, passages)
        else:
            targets, cosines = batch["targets"], queries @ passages.flatten(0, 1).T
        errors = (cosines - targets).square()[asked]
        return errors.sum() / max(1, errors.numel())

    def score(self, stage: str) -> Metric:
        """The nDCG@10 of one stage.

        Args:
            stage: `train`, `val` or `test`.

        Returns:
            A torchmetrics metric.
        """
        return self.scores[f"{stage}_ndcg"]

    def measure(self, stage: str, outputs: torch.Tensor, batch: Batch, loss: torch.Tensor) -> None:
        """Update the averages by one batch.

        Args:
            stage: `train`, `val` or `test`.
            outputs: Vectors, (B, 2 + N, D).
            batch: What the data module yields.
            loss: The batch's loss.
        """
        asked = int((batch["query_ids"] != NO_QUERY).sum())
        self.losses[f"{stage}_loss"].update(loss, weight=asked)
        queries, passages = outputs[:, 0], outputs[:, 1:]
        if stage == "train":
            passages = passages.flatten(0, 1)
            self.score(stage).update(ndcg(queries @ passages.T, batch["targets"] > 0).mean(), weight=asked)
        else:
            self.score(stage).update(queries, passages[:, 0], batch["query_ids"], batch["passage_ids"][:, 0])


class SearchNdcg(Metric):
    """Mean nDCG@10 of queries that are compared with all passages seen, each counted once however often it came."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("queries", "passages", "query_ids", "passage_ids"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self, queries: torch.Tensor, passages: torch.Tensor, query_ids: torch.Tensor, passage_ids: torch.Tensor
    ) -> None:
        """Take a batch of pairs.

        Args:
            queries: Vectors, (B, D).
            passages: Vectors of the passages that answer them, (B, D).
            query_ids: Numbers of the queries, (B,); `NO_QUERY` where a passage only is to be searched.
            passage_ids: Numbers of the passages, (B,).
        """
        self.queries.append(queries)
        self.passages.append(passages)
        self.query_ids.append(query_ids)
        self.passage_ids.append(passage_ids)

    def compute(self) -> torch.Tensor:
        """Search.

        Returns:
            A scalar.
        """
        parts = (self.queries, self.passages, self.query_ids, self.passage_ids)
        queries, passages, query_ids, passage_ids = (
            torch.cat(part) if isinstance(part, list) else part for part in parts
        )
        asked = query_ids != NO_QUERY
        passages, places = _once(passages, passage_ids)
        queries, rows = _once(queries[asked], query_ids[asked])
        relevant = torch.zeros(len(queries), len(passages), dtype=torch.bool, device=queries.device)
        relevant[rows, places[asked]] = True
        chunks = zip(queries.split(_CHUNK), relevant.split(_CHUNK), strict=True)
        return torch.cat([ndcg(part @ passages.T, answers) for part, answers in chunks]).mean()


def _once(vectors: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One vector of every number, and where each row's is."""
    kinds, places = ids.unique(return_inverse=True)
    kept = vectors.new_empty(len(kinds), vectors.shape[1])
    kept[places] = vectors
    return kept, places


def ndcg(scores: torch.Tensor, relevant: torch.Tensor, top: int = TOP) -> torch.Tensor:
    """Normalised discounted cumulative gain among the best, a passage being relevant or not.

    Args:
        scores: (Q, P).
        relevant: (Q, P), booleans, at least one in every row.
        top: How many of the best count.

    Returns:
        (Q,), between 0 and 1.

    Source:
        Järvelin and Kekäläinen (2002), with the discounts 1 / log2(1 + rank) that LoCo and BEIR use.
    """
    top = min(top, scores.shape[1])
    discounts = 1 / torch.arange(2, top + 2, device=scores.device, dtype=scores.dtype).log2()
    gains = relevant.gather(1, scores.topk(top, 1).indices) * discounts
    ideal = discounts.cumsum(0)[relevant.sum(1).clamp(max=top) - 1]
    return gains.sum(1) / ideal
