"""Normalised discounted cumulative gain of a search, in bounded memory, and fair to equal scores."""

import torch

TOP = 10
# Scores that are held at a time, 64 MiB of them; at least those of one query.
_SCORES = 2**24


def ndcg(
    scores: torch.Tensor, rows: torch.Tensor, places: torch.Tensor, gains: torch.Tensor, top: int = TOP
) -> torch.Tensor:
    """Normalised discounted cumulative gain among the best, (Q,), between 0 and 1; 0 for a query without judgements.

    Scores are (Q, P); judgements j pair the query ``rows[j]`` with the passage ``places[j]``, at most once, at a gain
    above 0. Of passages with equal scores none comes first: a gain counts as much as it does on average over their
    orders, so that a model that gives equal scores gets what chance would give, whatever the order of the files.

    Source:
        Järvelin and Kekäläinen (2002), with linear gains and discounts 1 / log2(1 + rank), as BEIR and LoCo have it;
        McSherry and Najork (2008) for equal scores.
    """
    discounts = 1 / torch.arange(2, top + 2, device=scores.device, dtype=scores.dtype).log2()
    reached = torch.cat([discounts.new_zeros(1), discounts.cumsum(0)])
    gains = gains.to(scores.dtype)
    weights = [
        _mean_discounts(scores, part, there, reached)
        for part, there in zip(
            *(each.split(max(1, _SCORES // scores.shape[1])) for each in (rows, places)), strict=True
        )
    ]
    found = scores.new_zeros(len(scores))
    found.index_add_(0, rows, gains * torch.cat([gains.new_zeros(0), *weights]))
    order = gains.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    counts = torch.bincount(rows, minlength=len(scores))
    ranks = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows[order]]
    counted = ranks < top
    ideal = scores.new_zeros(len(scores))
    ideal.index_add_(0, rows[order][counted], gains[order][counted] * discounts[ranks[counted]])
    return torch.where(counts > 0, found / ideal, 0)


def _mean_discounts(
    scores: torch.Tensor, rows: torch.Tensor, places: torch.Tensor, reached: torch.Tensor
) -> torch.Tensor:
    """Of every judgement, the mean discount over the ranks that its passage shares with those of equal score."""
    own = scores[rows, places][:, None]
    above, level = (scores[rows] > own).sum(1), (scores[rows] == own).sum(1)
    top = len(reached) - 1
    return (reached[(above + level).clamp(max=top)] - reached[above.clamp(max=top)]) / level


def search_ndcg(
    queries: torch.Tensor,
    passages: torch.Tensor,
    rows: torch.Tensor,
    places: torch.Tensor,
    gains: torch.Tensor,
    own: torch.Tensor,
    top: int = TOP,
) -> torch.Tensor:
    """`ndcg` of queries (Q, D) that are compared with all passages (P, D), some queries at a time.

    ``own`` (Q,) names a passage that is not searched for each query, -1 for none.
    """
    order = rows.argsort(stable=True)
    rows, places, gains = rows[order], places[order], gains[order]
    size = max(1, _SCORES // len(passages))
    found = []
    for first in range(0, len(queries), size):
        scores = queries[first : first + size] @ passages.T
        hidden = (own[first : first + size] >= 0).nonzero().flatten()
        scores[hidden, own[first + hidden]] = -torch.inf
        start, stop = torch.searchsorted(rows, torch.tensor([first, first + size], device=rows.device)).tolist()
        found.append(ndcg(scores, rows[start:stop] - first, places[start:stop], gains[start:stop], top))
    return torch.cat(found)
