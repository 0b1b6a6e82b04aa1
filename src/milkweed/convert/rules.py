"""Which layer becomes what: ordered rules over module names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from torch import nn

from milkweed._arguments import checked
from milkweed.convert.sites import LinearSite
from milkweed.nn.structured_linear import LayerConfig, MonarchConfig

Choice = LayerConfig | None
Rule = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Rules = Mapping[Rule, Choice] | Sequence[tuple[Rule, Choice]]
C = TypeVar("C")

# Heads and embeddings stay dense, as in the Monarch paper: they decide the outputs and are a small share of the work.
HEADS = (
    r"re:(.*\.)?(lm_head|(pre_)?classifier|score|(text|visual)_projection|head|heads|pooler|cls|qa_outputs|"
    r"decoder_head|embed\w*)(\..*)?"
)

# They choose which expert computes.
ROUTERS = r"re:(.*\.)?(router|wg|shared_expert_gate|(mlp|moe|block_sparse_moe|feed_forward|ffn)\.gate)(\..*)?"


@checked
def default_rules(config: LayerConfig | None = None) -> dict[Rule, Choice]:
    """Convert every linear layer except the output heads and the routers of experts.

    Args:
        config: What layers become; ``MonarchConfig()`` by default.

    Returns:
        Rules.

    Example:
        >>> model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
        >>> report = mw.convert_(model, mw.convert.default_rules(mw.MonarchConfig(nblocks=8)))
        >>> len(report.converted)
        2
    """
    return {HEADS: None, ROUTERS: None, "re:.*": config or MonarchConfig()}


def match_rules(rules: Rules, sites: Sequence[LinearSite]) -> dict[str, tuple[Choice, Rule] | None]:
    """Find the first rule that matches each layer: by name the configuration and its rule, or None."""
    return match_configs(rules, sites, LayerConfig, "MonarchConfig(nblocks=4)")


def match_configs(
    rules: Mapping[Rule, C | None] | Sequence[tuple[Rule, C | None]],
    sites: Sequence[LinearSite],
    kind: type,
    example: str,
) -> dict[str, tuple[C | None, Rule] | None]:
    """Find the first rule that matches each layer, as `match_rules`, for configurations of any kind."""
    ordered = _checked(rules, kind, example)
    used: set[int] = set()
    found: dict[str, tuple[C | None, Rule] | None] = {}
    for site in sites:
        matching = [i for i, (rule, _) in enumerate(ordered) if any(matches(rule, n, site.module) for n in site.names)]
        used.update(matching)
        found[site.name] = (ordered[matching[0]][1], ordered[matching[0]][0]) if matching else None
    # Rules that skip may cover parts that a model happens not to have.
    for i, (rule, choice) in enumerate(ordered):
        if i not in used and choice is not None:
            raise ValueError(nothing_matched(rule, [name for site in sites for name in site.names], "linear layers"))
    return found


def _checked(
    rules: Mapping[Rule, C | None] | Sequence[tuple[Rule, C | None]], kind: type, example: str
) -> list[tuple[Rule, C | None]]:
    if not isinstance(rules, Mapping) and (isinstance(rules, str) or not isinstance(rules, Sequence)):
        raise TypeError(
            f"rules must map names, 're:' patterns or functions to configurations, e.g. "
            f"{{'re:.*mlp.*': {example}}}; got {type(rules).__name__}"
        )
    ordered = list(rules.items() if isinstance(rules, Mapping) else rules)
    if not ordered:
        raise ValueError("rules are empty; use default_rules() for all layers except the heads")
    for pair in ordered:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"rules in a list must be pairs, e.g. ('re:.*mlp.*', {example}); got {pair!r}")
    for rule, choice in ordered:
        if not (isinstance(rule, str) or callable(rule)):
            raise TypeError(f"a rule must be a name, a 're:' pattern or a function; got {rule!r}")
        if not (choice is None or isinstance(choice, kind)):
            raise TypeError(
                f"rules: rule {rule!r} must stand for a configuration such as {example}, or None to keep layers as "
                f"they are; got {choice!r}"
            )
        if isinstance(rule, str) and rule.startswith("re:"):
            try:
                re.compile(rule[3:])
            except re.error as error:
                raise ValueError(f"the pattern of rule {rule!r} is malformed: {error}") from error
    return ordered


def matches(rule: Rule, name: str, module: nn.Module) -> bool:
    """Whether a rule matches a name and the module that it names."""
    if isinstance(rule, type):
        return isinstance(module, rule)
    if not isinstance(rule, str):
        return bool(rule(name, module))
    return re.fullmatch(rule[3:], name) is not None if rule.startswith("re:") else rule == name


def nothing_matched(rule: Rule, names: Iterable[str], kind: str) -> str:
    """The message that a rule matches none of the names, and what was probably meant."""
    names = sorted(names)
    if not names:
        return f"the model has no {kind}"
    if not isinstance(rule, str):
        return f"rule {getattr(rule, '__name__', rule)!r} matches none of the {len(names)} {kind}"
    near = difflib.get_close_matches(rule.removeprefix("re:").replace(".*", ""), names, n=3, cutoff=0.3) or names[:3]
    return f"rule {rule!r} matches none of the {len(names)} {kind}; near names: {', '.join(near)}" + (
        "" if rule.startswith("re:") else ". A pattern begins with 're:' and must match the whole name"
    )
