"""Reordering the hidden units of feed-forward layers: the dense model stays the same, its projection gets nearer.

Between two linear layers with an elementwise activation the units in the middle may stand in any order. Structures made
of blocks take units in groups by their places, so that the order counts for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from milkweed.convert.calibrate import Calibration, InputMoments, evaluating, run_batch
from milkweed.convert.configs import LayerConfig
from milkweed.convert.hidden_order import best_order, grouped_units
from milkweed.convert.passes.base import Draft, Pass
from milkweed.convert.passes.layer import project_site, weight_and_output_error
from milkweed.convert.sites import LinearSite, replace

# The layers that make hidden units, and the one that reads them, as models call them. Whether the units can be
# reordered is found by trying.
_FAMILIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("intermediate.dense",), "output.dense"),
    (("lin1",), "lin2"),
    (("fc1",), "fc2"),
    (("c_fc",), "c_proj"),
    (("gate_proj", "up_proj"), "down_proj"),
    (("up_proj",), "down_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("up",), "down"),
)


@dataclasses.dataclass(frozen=True)
class HiddenPair:
    """Layers that share hidden units.

    Args:
        makers: Names of the layers whose outputs they are: one, or gate and up.
        reader: The name of the layer that they are the inputs of.
    """

    makers: tuple[str, ...]
    reader: str

    @property
    def names(self) -> tuple[str, ...]:
        """All layers."""
        return (*self.makers, self.reader)


def hidden_orders(
    model: nn.Module,
    sites: Mapping[str, LinearSite],
    choices: Mapping[str, LayerConfig],
    moments: Calibration,
    batches: Sequence[Any],
    tell: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[HiddenPair, Tensor]:
    """Find the hidden units that may be reordered, and the order that serves the conversion best.

    A pair of layers is taken only if both are converted, to structures whose use of the order is known, and if the
    dense model gives the same with the units shuffled, tried on the first batch.

    Args:
        model: The dense model; it is not changed.
        sites: Its linear layers by name.
        choices: What layers become.
        moments: Of their inputs.
        batches: What the model is called with.
        tell: Called with what is done, how many pairs are done and how many there are.

    Returns:
        For each pair the unit at each place. The sum of the squared relative output errors of a pair's layers, each
        projected by itself, is less than in the order as it was; pairs where none was found are left out.

    Raises:
        ValueError: A layer cannot be projected.
    """
    pairs, found = find_pairs(sites, choices), {}
    for done, pair in enumerate(pairs, 1):
        if is_free(model, pair, sites, batches[0]):
            order = _order(pair, sites, choices, moments)
            if order is not None:
                found[pair] = order
        tell("ordering hidden units", done, len(pairs))
    return found


def check_pairs(sites: Mapping[str, LinearSite], choices: Mapping[str, LayerConfig]) -> None:
    """Refuse a conversion in which there are no hidden units to reorder.

    Args:
        sites: The linear layers of a model by name.
        choices: What layers become.

    Raises:
        ValueError: There is no pair of layers.
    """
    if not find_pairs(sites, choices):
        known = ", ".join(f"{' and '.join(makers)} before {reader}" for makers, reader in _FAMILIES)
        raise ValueError(
            f"permute=True found no hidden units among the {len(choices)} layers to convert: the layers before and "
            f"after them must be converted both, and be called {known}; leave permute out"
        )


def find_pairs(sites: Mapping[str, LinearSite], choices: Mapping[str, LayerConfig]) -> list[HiddenPair]:
    """Find layers that share hidden units, by their names and sizes.

    Args:
        sites: The linear layers of a model by name.
        choices: What layers become; only these count.

    Returns:
        The pairs in the model's order, no layer twice; none with a layer that is reached under several names.
    """
    pairs: list[HiddenPair] = []
    used: set[str] = set()
    for makers, reader in _FAMILIES:
        for name in choices:
            prefix = name.removesuffix(reader)
            if name != prefix + reader or (prefix and not prefix.endswith(".")):
                continue
            pair = HiddenPair(tuple(prefix + maker for maker in makers), name)
            if used.isdisjoint(pair.names) and _fits(pair, sites, choices):
                pairs.append(pair)
                used.update(pair.names)
    places = {name: place for place, name in enumerate(choices)}
    return sorted(pairs, key=lambda pair: places[pair.reader])


def _fits(pair: HiddenPair, sites: Mapping[str, LinearSite], choices: Mapping[str, LayerConfig]) -> bool:
    if not all(name in choices and len(sites[name].names) == sites[name].parts == 1 for name in pair.names):
        return False
    return {sites[name].out_features for name in pair.makers} == {sites[pair.reader].in_features}


def _order(
    pair: HiddenPair, sites: Mapping[str, LinearSite], choices: Mapping[str, LayerConfig], moments: Calibration
) -> Tensor | None:
    """The order found, or None if it is no better than the present one, or cannot be told."""
    read = {name: moments[name] for name in pair.names}
    before = sum(_squared_error(sites[name], choices[name], read[name]) for name in pair.names)
    layers = []
    for name in pair.names:
        (linear,) = sites[name].linears()
        weight = linear.weight.detach().double()
        covariance = read[name].covariance(centred=linear.bias is not None)
        energy = read[name].energy(weight, centred=False)
        units = grouped_units(choices[name], weight, covariance, energy, rows=name != pair.reader)
        if units is None:
            return None
        layers.append(units)
    order = best_order(layers)
    there = reordered_sites(sites, {pair: order})
    read[pair.reader] = read[pair.reader].reordered(order)
    after = sum(_squared_error(there[name], choices[name], read[name]) for name in pair.names)
    return order if after < before else None


def _squared_error(site: LinearSite, config: LayerConfig, moments: InputMoments) -> float:
    _, error = weight_and_output_error(site, project_site(site, config, moments), moments)
    assert error is not None
    return error**2


def reordered_sites(sites: Mapping[str, LinearSite], orders: Mapping[HiddenPair, Tensor]) -> dict[str, LinearSite]:
    """Put hidden units into another order: rows and biases of the layers before, columns of the one after.

    Args:
        sites: The layers by name.
        orders: For each pair the unit at each place.

    Returns:
        The layers of the pairs, dense copies as ``torch.nn.Linear``.
    """
    found = {}
    for pair, order in orders.items():
        for name in pair.makers:
            found[name] = _copy(sites[name], rows=order)
        found[pair.reader] = _copy(sites[pair.reader], columns=order)
    return found


def _copy(site: LinearSite, rows: Tensor | None = None, columns: Tensor | None = None) -> LinearSite:
    (linear,) = site.linears()
    weight, bias = linear.weight.detach(), linear.bias
    weight = weight[:, columns] if rows is None else weight[rows]
    linear.weight = nn.Parameter(weight, linear.weight.requires_grad)
    if bias is not None and rows is not None:
        linear.bias = nn.Parameter(bias.detach()[rows], bias.requires_grad)
    return dataclasses.replace(site, module=linear)


@contextmanager
def reordered(
    model: nn.Module, sites: Mapping[str, LinearSite], orders: Mapping[HiddenPair, Tensor]
) -> Iterator[dict[str, LinearSite]]:
    """Let a model have its hidden units in another order, and its own layers back afterwards.

    Args:
        model: The model.
        sites: Its linear layers by name.
        orders: For each pair the unit at each place.

    Yields:
        All linear layers by name, those of the pairs as they are meanwhile.
    """
    changed = reordered_sites(sites, orders)
    try:
        for site in changed.values():
            replace(model, site.names, site.module)
        yield {**sites, **changed}
    finally:
        for name in changed:
            replace(model, sites[name].names, sites[name].module)


def is_free(model: nn.Module, pair: HiddenPair, sites: Mapping[str, LinearSite], batch: Any) -> bool:
    """Try whether a model gives the same with the hidden units of a pair shuffled.

    Args:
        model: The model.
        pair: The layers.
        sites: The model's linear layers by name.
        batch: What the model is called with.

    Returns:
        Whether the units themselves are the same ones, shuffled, and the model's outputs are the same, both up to
        rounding; False where the batch does not reach the pair.
    """
    reader = sites[pair.reader]
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(reader.in_features, generator=generator).to(reader.weight.device)
    hidden, outputs = _run(model, reader, batch)
    with reordered(model, sites, {pair: order}) as there:
        shuffled, found = _run(model, there[pair.reader], batch)
    expected = [each[..., order] for each in hidden]
    return bool(hidden) and _all_same(shuffled, expected) and _all_same(found, outputs)


def _run(model: nn.Module, site: LinearSite, batch: Any) -> tuple[list[Tensor], list[Tensor]]:
    """What a layer reads, and what the model gives."""
    read: list[Tensor] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.append(inputs[0])

    handle = site.module.register_forward_pre_hook(watch)
    try:
        with evaluating(model):
            return read, _tensors(run_batch(model, batch))
    finally:
        handle.remove()


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    return [tensor for each in outputs for tensor in _tensors(each)] if isinstance(outputs, list | tuple) else []


def _all_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return len(found) == len(expected) and all(_same(*pair) for pair in zip(found, expected, strict=True))


def _same(found: Tensor, expected: Tensor) -> bool:
    """Equal to half the digits: rounding spoils few of them, units that do not fit nearly all."""
    if found.shape != expected.shape or not expected.is_floating_point():
        return torch.equal(found, expected)
    wide = torch.promote_types(expected.dtype, torch.float32)
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    return bool((found.to(wide) - expected.to(wide)).norm() <= tolerance * expected.to(wide).norm())


class Order(Pass):
    """Puts hidden units into the order in which least is lost, after calibration."""

    def check(self, draft: Draft) -> None:
        """Refuse a model without hidden units to reorder; see the base class.

        Args:
            draft: The conversion.
        """
        check_pairs(draft.sites, draft.choices)

    def run(self, draft: Draft) -> None:
        """Find the orders; see the base class.

        Args:
            draft: The conversion.

        Raises:
            ValueError: There was no calibration.
        """
        if draft.moments is None:
            raise ValueError("an order of hidden units needs calibration before it")
        found = hidden_orders(draft.model, draft.sites, draft.choices, draft.moments, list(draft.batches), draft.tell)
        draft.orders = {pair.names: order for pair, order in found.items()}


def orders_by_pair(orders: Mapping[tuple[str, ...], Tensor]) -> dict[HiddenPair, Tensor]:
    """Read the orders of a draft.

    Args:
        orders: By the names of layers, makers first.

    Returns:
        The orders by pair.
    """
    return {HiddenPair(names[:-1], names[-1]): order for names, order in orders.items()}
