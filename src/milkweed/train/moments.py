"""AdamW's moments of a dense weight, from those of the factors that it is the product of."""

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from milkweed.nn.structured_linear import StructuredLinear

State = dict[str, Tensor]
ROUNDS, TOLERANCE = 50, 1e-6


def dense_states(layer: nn.Module, states: Mapping[nn.Parameter, State], carry: bool) -> dict[str, State]:
    """AdamW's state of ``weight`` and ``bias`` of the dense layer that a structured one becomes, where there is any.

    The bias is the same parameter as before and keeps its state. That of the factors can be carried over to the weight:
    the gradient G of W and that of a factor θ are tied by the product rule: G_θ = Jᵀ G with J = ∂W/∂θ, for two factors
    W = L R: G_R = Lᵀ G and G_L = G Rᵀ. The moments are averages of such gradients, and are carried to first order, as
    if the factors had stood still:

    - ``exp_avg``: the smallest M with Jᵀ M = m, by conjugate gradients. What the structure could not see of G, its part
      outside the tangent space, is taken to be 0.
    - ``exp_avg_sq``: v = (J ∘ J)ᵀ V if the entries of G are uncorrelated. Each parameter gives the mean V of the
      entries that it touches, weighted by J ∘ J; each entry gets the mean of these, in the same weights. It is at least
      M², as a mean square is no smaller than a squared mean.
    - ``step`` stays as it is.
    """
    parts = [part for part in layer.modules() if isinstance(part, StructuredLinear)]
    biases = [states.get(part.bias) for part in parts if part.bias is not None]
    weights = [weight_state(part, states) for part in parts] if carry else []
    found = {"weight": _stacked(weights), "bias": _stacked(biases)}
    return {name: state for name, state in found.items() if state}


def weight_state(layer: StructuredLinear, states: Mapping[nn.Parameter, State]) -> State | None:
    """Carry the state of one layer's factors over, see `dense_states`; None if no factor has been trained."""
    known = {name: states[p] for name, p in layer.named_parameters() if name != "bias" and states.get(p)}
    if not known:
        return None
    first = smallest_preimage(ProductRule(layer, known), [state["exp_avg"].float() for state in known.values()])
    second = spread(ProductRule(layer, known, squared=True), [state["exp_avg_sq"].float() for state in known.values()])
    dtype = layer.get_parameter(next(iter(known))).dtype
    return {
        "step": next(iter(known.values()))["step"].clone(),
        "exp_avg": first.to(dtype),
        "exp_avg_sq": torch.maximum(second, first.square()).to(dtype),
    }


class ProductRule:
    """The derivative J of a layer's dense weight by the factors that are named, as an operator.

    With ``squared`` it is J ∘ J: no factor enters an entry of W twice, so that it is J at the squared factors.
    """

    def __init__(self, layer: StructuredLinear, names: Iterable[str], squared: bool = False) -> None:
        layer = copy.deepcopy(layer).float()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.requires_grad_(True).copy_(parameter.square() if squared else parameter)
        factors = [layer.get_parameter(name) for name in names]
        with torch.enable_grad():
            self._weight = layer.matrix().to_dense()
            self._probe = torch.zeros_like(self._weight, requires_grad=True)
            self._factors = factors
            # Linear in the probe: its derivative by the probe is J.
            self._pulled = torch.autograd.grad(self._weight, factors, self._probe, create_graph=True)

    def pull(self, dense: Tensor) -> list[Tensor]:
        """Jᵀ G, a tensor for each factor; G has the weight's shape."""
        return list(torch.autograd.grad(self._weight, self._factors, dense, retain_graph=True))

    def push(self, factors: Sequence[Tensor]) -> Tensor:
        """J d, the change of the weight when the factors change by d."""
        return torch.autograd.grad(self._pulled, self._probe, list(factors), retain_graph=True)[0]


def smallest_preimage(rule: ProductRule, moments: Sequence[Tensor]) -> Tensor:
    """The smallest M with Jᵀ M = m, in the sense of least squares where there is none."""
    # Conjugate gradients for least squares: from zero, every step stays in the range of J, where the smallest M lies.
    residual = list(moments)
    slope = rule.push(residual)
    found, direction, norm = torch.zeros_like(slope), slope, slope.square().sum()
    start = norm
    for _ in range(ROUNDS):
        if norm <= TOLERANCE**2 * start:
            break
        pulled = rule.pull(direction)
        length = norm / sum(each.square().sum() for each in pulled)
        found = found + length * direction
        residual = [each - length * other for each, other in zip(residual, pulled, strict=True)]
        slope = rule.push(residual)
        previous, norm = norm, slope.square().sum()
        direction = slope + norm / previous * direction
    return found


def spread(rule: ProductRule, moments: Sequence[Tensor]) -> Tensor:
    """Share mean squares v of the factors' gradients out over the entries of the dense weight."""
    # The mean of V over the entries that each parameter touches; then, for every entry, the mean of these over the
    # parameters that touch it.
    touched = rule.pull(torch.ones_like(rule.push(moments)))
    means = [v / weight.clamp_min(torch.finfo(v.dtype).tiny) for v, weight in zip(moments, touched, strict=True)]
    weights = rule.push([torch.ones_like(v) for v in moments])
    shares = rule.push(means) / weights
    seen = weights > 0
    return torch.where(seen, shares, shares[seen].mean() if seen.any() else torch.zeros(()))


def _stacked(states: Sequence[State | None]) -> State | None:
    """One state of parameters that are stacked along their first dimension; None if one of them has none."""
    known = [state for state in states if state]
    if not known or len(known) < len(states):
        return None
    stacked = {name: torch.cat([state[name] for state in known]) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": known[0]["step"].clone(), **stacked}
