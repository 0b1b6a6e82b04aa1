"""What the command line wants to become of the layers."""

import argparse
import dataclasses
from typing import TYPE_CHECKING

from milkweed._registry import find
from milkweed.cli.errors import UsageError
from milkweed.convert import LayerConfig, MonarchConfig, default_rules
from milkweed.convert.rules import Choice, Rule, match_rules
from milkweed.convert.sites import find_sites

if TYPE_CHECKING:
    from milkweed.convert.hub.source import Source

CANDIDATES = (2, 3, 4, 6, 8)


@dataclasses.dataclass(frozen=True)
class Choices:
    """Rules for `milkweed.plan_conversion`, and where they come from.

    Attributes:
        rules: What becomes what.
        parameters: The budget, if there is one.
        candidates: What layers may become under it.
        patterns: Each pattern that was typed, with its option.
    """

    rules: list[tuple[Rule, Choice]]
    parameters: float | None
    candidates: tuple[Choice, ...]
    patterns: list[tuple[str, str]]

    def check(self, source: "Source") -> None:
        """Refuse patterns that match nothing, by the option with which they were typed.

        Args:
            source: The model.

        Raises:
            UsageError: A pattern matches nothing.
        """
        if not self.patterns:
            return
        sites = find_sites(source.skeleton())
        for option, pattern in self.patterns:
            try:
                match_rules([(pattern, MonarchConfig())], sites)
            except ValueError as error:
                raise UsageError(f"{option}: {error}") from error


def make_choices(options: argparse.Namespace) -> Choices:
    """Make rules of the command line.

    Args:
        options: The command line.

    Returns:
        The rules and candidates.
    """
    config = make_config(options)
    keep, layers = options.keep or [], options.layers or []
    chosen = [(pattern, config) for pattern in layers] or list(default_rules(config).items())
    rules: list[tuple[Rule, Choice]] = [*((pattern, None) for pattern in keep), *chosen]
    candidates: tuple[Choice, ...] = ()
    if options.parameters is not None:
        rounds = options.refine or 0
        candidates = (None, *(MonarchConfig(nblocks, options.rank, rounds) for nblocks in CANDIDATES))
    patterns = [("--keep", pattern) for pattern in keep] + [("--layers", pattern) for pattern in layers]
    return Choices(rules, options.parameters, candidates, patterns)


def make_config(options: argparse.Namespace) -> LayerConfig:
    """Make the configuration of converted layers.

    Args:
        options: The command line.

    Returns:
        The configuration; under a budget one that every layer can have, in place of the candidates.

    Raises:
        UsageError: An option does not belong to the structure, or is missing.
    """
    if options.parameters is not None:
        for option, given in (("--nblocks", options.nblocks), ("--structure", options.structure != "monarch")):
            if given:
                raise UsageError(f"{option} and --parameters exclude each other: under a budget, nblocks is chosen")
        return MonarchConfig(nblocks=1)
    kind = find("config", options.structure, "--structure")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    given = {name: getattr(options, name) for name in options.structure_options if getattr(options, name)}
    for name in given:
        if name not in fields:
            raise UsageError(f"--{name} does not belong to --structure {kind.name}, which has: {', '.join(fields)}")
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in given:
            raise UsageError(f"--structure {kind.name} needs --{name}")
    return kind(**given)
