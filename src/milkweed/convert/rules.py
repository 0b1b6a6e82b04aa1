"""Which layer becomes what: ordered rules over module names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from milkweed.convert.configs import LayerConfig, MonarchConfig
from milkweed.convert.sites import LinearSite

Choice = LayerConfig | None
Rule = str | Callable[[str, nn.Module], bool]
Rules = Mapping[Rule, Choice] | Sequence[tuple[Rule, Choice]]

# Heads and embeddings stay dense, as in the Monarch paper: they decide the outputs and are a small share of the work.
HEADS = r"re:(.*\.)?(lm_head|classifier|score|head|heads|pooler|cls|qa_outputs|decoder_head|embed\w*)(\..*)?"


def default_rules(config: LayerConfig | None = None) -> dict[Rule, Choice]:
    """Convert every linear layer save the output heads.

    Args:
        config: What layers become; ``MonarchConfig()`` by default.

    Returns:
        Rules.
    """
    return {HEADS: None, "re:.*": config or MonarchConfig()}


def match_rules(rules: Rules, sites: Sequence[LinearSite]) -> dict[str, tuple[Choice, Rule] | None]:
    """Find the first rule that matches each layer.

    Args:
        rules: Exact module names, ``"re:"`` patterns that must match the whole name, or functions of name and module;
            each to a configuration, or to None for layers that stay.
        sites: The linear layers of a model.

    Returns:
        By layer name: the configuration and its rule, or None where no rule matches.

    Raises:
        TypeError: Rules are no mapping, or something that is neither a configuration nor None stands for one.
        ValueError: A pattern is malformed, or a name or pattern matches no linear layer.
    """
    pairs = _checked(rules)
    used: set[int] = set()
    found: dict[str, tuple[Choice, Rule] | None] = {}
    for site in sites:
        matching = [i for i, (rule, _) in enumerate(pairs) if any(_matches(rule, n, site.module) for n in site.names)]
        used.update(matching)
        found[site.name] = (pairs[matching[0]][1], pairs[matching[0]][0]) if matching else None
    # Rules that skip may cover parts that a model happens not to have.
    for i, (rule, choice) in enumerate(pairs):
        if i not in used and choice is not None:
            raise ValueError(_nothing_matched(rule, [name for site in sites for name in site.names]))
    return found


def _checked(rules: Rules) -> list[tuple[Rule, Choice]]:
    if not isinstance(rules, Mapping) and (isinstance(rules, str) or not isinstance(rules, Sequence)):
        raise TypeError(
            f"rules must map names, 're:' patterns or functions to configurations, e.g. "
            f"{{'re:.*mlp.*': MonarchConfig(nblocks=4)}}; got {type(rules).__name__}"
        )
    pairs = list(rules.items() if isinstance(rules, Mapping) else rules)
    if not pairs:
        raise ValueError("rules are empty; use default_rules() for all layers save the heads")
    for rule, choice in pairs:
        if not (isinstance(rule, str) or callable(rule)):
            raise TypeError(f"a rule must be a name, a 're:' pattern or a function; got {rule!r}")
        if not (choice is None or isinstance(choice, LayerConfig)):
            raise TypeError(
                f"rule {rule!r} must stand for a configuration such as MonarchConfig(nblocks=4), or None to keep "
                f"layers dense; got {choice!r}"
            )
        if isinstance(rule, str) and rule.startswith("re:"):
            try:
                re.compile(rule[3:])
            except re.error as error:
                raise ValueError(f"the pattern of rule {rule!r} is malformed: {error}") from error
    return pairs


def _matches(rule: Rule, name: str, module: nn.Module) -> bool:
    if not isinstance(rule, str):
        return bool(rule(name, module))
    return re.fullmatch(rule[3:], name) is not None if rule.startswith("re:") else rule == name


def _nothing_matched(rule: Rule, names: Iterable[str]) -> str:
    names = sorted(names)
    if not names:
        return "the model has no linear layers"
    if not isinstance(rule, str):
        return f"rule {getattr(rule, '__name__', rule)!r} matches none of the {len(names)} linear layers"
    near = difflib.get_close_matches(rule.removeprefix("re:").replace(".*", ""), names, n=3, cutoff=0.3) or names[:3]
    return f"rule {rule!r} matches none of the {len(names)} linear layers; near names: {', '.join(near)}" + (
        "" if rule.startswith("re:") else ". A pattern begins with 're:' and must match the whole name"
    )
