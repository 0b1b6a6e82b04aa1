"""Reordering the hidden units of feed-forward layers: the dense model stays the same, its projection gets nearer.

Between two linear layers with an elementwise activation the units in the middle may stand in any order. Structures made
of blocks take units in groups by their places, so that the order counts for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from milkweed.convert.hidden_order import best_order
from milkweed.convert.input_moments import Calibration, InputMoments, evaluating, run_batch
from milkweed.convert.passes.base import Draft, Pass, ProgressCallback
from milkweed.convert.passes.layer import project_site, weight_and_output_error
from milkweed.convert.sites import LinearSite, replace
from milkweed.nn.structured_linear import LayerConfig

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
    (("gate_linear", "up_linear"), "down_linear"),
    (("up_linear",), "down_linear"),
    (("up",), "down"),
    (("gate_up_proj",), "down_proj"),
    (("Wi",), "Wo"),
    (("wi_0", "wi_1"), "wo"),
    (("wi",), "wo"),
)


@dataclasses.dataclass(frozen=True)
class FeedForward:
    """Layers that share hidden units."""

    makers: tuple[str, ...]  # names of the layers whose outputs they are: one, or gate and up
    reader: str  # the name of the layer that they are the inputs of

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
    progress: ProgressCallback = lambda *_: None,
) -> dict[FeedForward, Tensor]:
    """Find the hidden units that may be reordered, and the order that serves the conversion best.

    Layers are taken only if all of them are converted, to structures whose use of the order is known, and if the dense
    model gives the same with the units shuffled, tried on the first batch. Layers for which no order has less squared
    relative output error than the present one are left out.
    """
    feed_forwards, found = find_feed_forwards(sites, choices), {}
    for done, feed_forward in enumerate(feed_forwards, 1):
        if is_free(model, feed_forward, sites, batches):
            order = _order(feed_forward, sites, choices, moments)
            if order is not None:
                found[feed_forward] = order
        progress("ordering hidden units", done, len(feed_forwards))
    return found


def check_feed_forwards(sites: Mapping[str, LinearSite], choices: Mapping[str, LayerConfig]) -> None:
    """Refuse a conversion in which there are no hidden units to reorder."""
    if not find_feed_forwards(sites, choices):
        known = ", ".join(f"{' and '.join(makers)} before {reader}" for makers, reader in _FAMILIES)
        raise ValueError(
            f"permute=True found no hidden units among the {len(choices)} layers to convert: the layers before and "
            f"after them must be converted both, and be called {known}; leave permute out"
        )


def find_feed_forwards(sites: Mapping[str, LinearSite], choices: Mapping[str, LayerConfig]) -> list[FeedForward]:
    """Find layers that share hidden units, by names and sizes: no layer twice, none that has several names."""
    feed_forwards: list[FeedForward] = []
    used: set[str] = set()
    for makers, reader in _FAMILIES:
        for name in choices:
            prefix = name.removesuffix(reader)
            if name != prefix + reader or (prefix and not prefix.endswith(".")):
                continue
            feed_forward = FeedForward(tuple(prefix + maker for maker in makers), name)
            if used.isdisjoint(feed_forward.names) and _fits(feed_forward, sites, choices):
                feed_forwards.append(feed_forward)
                used.update(feed_forward.names)
    places = {name: place for place, name in enumerate(choices)}
    return sorted(feed_forwards, key=lambda feed_forward: places[feed_forward.reader])


def _fits(feed_forward: FeedForward, sites: Mapping[str, LinearSite], choices: Mapping[str, LayerConfig]) -> bool:
    if not all(name in choices and len(sites[name].names) == 1 for name in feed_forward.names):
        return False
    made = {size for name in feed_forward.makers for size in sites[name].sizes or (sites[name].out_features,)}
    return made == {sites[feed_forward.reader].in_features} and sites[feed_forward.reader].parts == 1


def _order(
    feed_forward: FeedForward, sites: Mapping[str, LinearSite], choices: Mapping[str, LayerConfig], moments: Calibration
) -> Tensor | None:
    """The order found, or None if it is no better than the present one, or makes no known difference."""
    read = {name: moments[name] for name in feed_forward.names}
    if not read[feed_forward.reader].count:
        return None
    before = sum(_squared_error(sites[name], choices[name], read[name]) for name in feed_forward.names)
    layers = []
    for name in feed_forward.names:
        covariance = read[name].covariance(centred=sites[name].module.bias is not None)
        for linear in sites[name].linears():
            weight = linear.weight.detach().double()
            energy = read[name].energy(weight, centred=False)
            units = choices[name].hidden_units(weight, covariance, energy, rows=name != feed_forward.reader)
            if units is None:
                return None
            layers.append(units)
    order = best_order(layers)
    there = reordered_sites(sites, {feed_forward: order})
    read[feed_forward.reader] = read[feed_forward.reader].reordered(order)
    after = sum(_squared_error(there[name], choices[name], read[name]) for name in feed_forward.names)
    return order if after < before else None


def _squared_error(site: LinearSite, config: LayerConfig, moments: InputMoments) -> float:
    _, error = weight_and_output_error(site, project_site(site, config, moments), moments)
    assert error is not None
    return error**2


def reordered_sites(sites: Mapping[str, LinearSite], orders: Mapping[FeedForward, Tensor]) -> dict[str, LinearSite]:
    """Reorder hidden units in dense copies: rows and biases of the layers before, columns of the one after."""
    found = {}
    for feed_forward, order in orders.items():
        for name in feed_forward.makers:
            found[name] = _copy(sites[name], rows=order)
        found[feed_forward.reader] = _copy(sites[feed_forward.reader], columns=order)
    return found


def _copy(site: LinearSite, rows: Tensor | None = None, columns: Tensor | None = None) -> LinearSite:
    (linear,) = dataclasses.replace(site, sizes=()).linears()
    weight, bias = linear.weight.detach(), linear.bias
    if rows is not None:  # the same order in every matrix that the layer holds
        rows = torch.cat([rows + part * len(rows) for part in range(site.parts)])
    weight = weight[:, columns] if rows is None else weight[rows]
    linear.weight = nn.Parameter(weight, linear.weight.requires_grad)
    if bias is not None and rows is not None:
        linear.bias = nn.Parameter(bias.detach()[rows], bias.requires_grad)
    return dataclasses.replace(site, module=linear)


@contextmanager
def reordered(
    model: nn.Module, sites: Mapping[str, LinearSite], orders: Mapping[FeedForward, Tensor]
) -> Iterator[dict[str, LinearSite]]:
    """Let a model have its hidden units in another order, and its own layers back afterwards."""
    changed = reordered_sites(sites, orders)
    try:
        for site in changed.values():
            replace(model, site.names, site.module)
        yield {**sites, **changed}
    finally:
        for name in changed:
            replace(model, sites[name].names, sites[name].module)


def is_free(
    model: nn.Module, feed_forward: FeedForward, sites: Mapping[str, LinearSite], batches: Sequence[Any]
) -> bool:
    """Try whether a model gives the same with the hidden units of some layers shuffled, on the first batch for them.

    The units themselves must be the same ones, shuffled, and the outputs the same, both up to rounding. It is False
    where no batch reaches the layers.
    """
    reader = sites[feed_forward.reader]
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(reader.in_features, generator=generator).to(reader.weight.device)
    batch: Any = None
    hidden: list[Tensor] = []
    for batch in batches:
        hidden, outputs = _run(model, reader, batch)
        if hidden:
            break
    if not hidden:
        return False
    with reordered(model, sites, {feed_forward: order}) as there:
        shuffled, found = _run(model, there[feed_forward.reader], batch)
    expected = [each[..., order] for each in hidden]
    return _all_same(shuffled, expected) and _all_same(found, outputs)


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
    return len(found) == len(expected) and all(_same(*each) for each in zip(found, expected, strict=True))


def _same(found: Tensor, expected: Tensor) -> bool:
    """Equal to half the digits: rounding changes few of them, units that do not fit change nearly all."""
    if found.shape != expected.shape or not expected.is_floating_point():
        return torch.equal(found, expected)
    wide = torch.promote_types(expected.dtype, torch.float32)
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    return bool((found.to(wide) - expected.to(wide)).norm() <= tolerance * expected.to(wide).norm())


class Order(Pass):
    """Puts hidden units into the order in which least is lost, after calibration."""

    def check(self, draft: Draft) -> None:
        """Refuse a model without hidden units to reorder."""
        check_feed_forwards(draft.sites, draft.choices)

    def run(self, draft: Draft) -> None:
        """Find the orders."""
        if draft.moments is None:
            raise ValueError("an order of hidden units needs calibration before it")
        found = hidden_orders(
            draft.model, draft.sites, draft.choices, draft.moments, list(draft.batches), draft.progress
        )
        draft.orders = {feed_forward.names: order for feed_forward, order in found.items()}


def orders_by_feed_forward(orders: Mapping[tuple[str, ...], Tensor]) -> dict[FeedForward, Tensor]:
    """The orders of a draft, which are by names of layers, makers first, by feed-forward layers."""
    return {FeedForward(names[:-1], names[-1]): order for names, order in orders.items()}
