"""Correlations that are 0, instead of undefined, where one side is constant."""

import torch
from torchmetrics import PearsonCorrCoef
from torchmetrics.classification import MulticlassMatthewsCorrCoef


class Pearson(PearsonCorrCoef):
    """Pearson's correlation; 0 if predictions or targets are constant, where torchmetrics gives NaN.

    torchmetrics gives NaN also for few numbers far from many others, whose correlation is well defined.
    """

    def compute(self) -> torch.Tensor:
        """The correlation."""
        # Of each process, if several have been gathered: counts, means, and sums of squares and products around them.
        n, mean_x, mean_y = (state.reshape(-1).cpu().double() for state in (self.n_total, self.mean_x, self.mean_y))
        var_x, var_y, cov = (state.reshape(-1).cpu().double() for state in (self.var_x, self.var_y, self.corr_xy))
        total = n.sum().clamp(min=1)
        off_x, off_y = mean_x - (n * mean_x).sum() / total, mean_y - (n * mean_y).sum() / total
        var_x, var_y = var_x.sum() + (n * off_x.square()).sum(), var_y.sum() + (n * off_y.square()).sum()
        cov = cov.sum() + (n * off_x * off_y).sum()
        constant = _is_rounding(var_x / total, mean_x, self.max_abs_dev_x, self.mean_x.dtype)
        constant |= _is_rounding(var_y / total, mean_y, self.max_abs_dev_y, self.mean_y.dtype)
        found = torch.zeros_like(cov) if constant else (cov / (var_x * var_y).sqrt()).clamp(-1, 1)
        return found.to(self.mean_x)


def _is_rounding(variance: torch.Tensor, means: torch.Tensor, deviations: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a variance is that of the rounding of means of equal numbers."""
    size = float(means.abs().max()) + float(deviations.max())
    return float(variance) <= (4 * torch.finfo(dtype).eps * size) ** 2


class Matthews(MulticlassMatthewsCorrCoef):
    """Matthews' correlation; 0 if all predictions or all targets are of one class, as in scikit-learn.

    torchmetrics gives for two classes values up to 1 there, and counts squares of samples in float32.
    """

    def compute(self) -> torch.Tensor:
        """The correlation."""
        table = self.confmat.cpu().double()
        targets, predictions, count = table.sum(1), table.sum(0), table.sum()
        spread = (count**2 - predictions.square().sum()) * (count**2 - targets.square().sum())
        covariance = table.trace() * count - (targets * predictions).sum()
        found = covariance / spread.sqrt() if spread > 0 else torch.zeros_like(spread)
        return found.float().to(self.confmat.device)
