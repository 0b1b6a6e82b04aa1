"""What the command line wants to become of the layers."""

import dataclasses
from typing import TYPE_CHECKING

from milkweed._registry import find
from milkweed._suggest import UsageError
from milkweed.convert import LayerConfig, MonarchConfig, default_rules
from milkweed.convert.experts import experts_apart
from milkweed.convert.rules import Choice, Rule, match_rules
from milkweed.convert.sites import find_sites

if TYPE_CHECKING:
    from milkweed.convert.hub.source import Source

CANDIDATES = (2, 3, 4, 6, 8)


@dataclasses.dataclass(frozen=True)
class Choices:
    """Rules for `milkweed.plan_conversion`, and where they come from."""

    rules: list[tuple[Rule, Choice]]
    candidates: tuple[Choice, ...]
    patterns: list[tuple[str, str]]

    def check(self, source: "Source") -> None:
        """Refuse patterns that match nothing, by the option with which they were typed."""
        if not self.patterns:
            return
        model = source.skeleton()
        with experts_apart(model):
            sites = find_sites(model)
        for option, pattern in self.patterns:
            try:
                match_rules([(pattern, MonarchConfig())], sites)
            except ValueError as error:
                raise UsageError(f"{option}: {error}") from error


def make_choices(
    structure: str, fields: dict[str, int | None], layers: list[str], keep: list[str], parameters: float | None
) -> Choices:
    """Make rules of what the command line says: the structure, the values of its fields, patterns and a budget."""
    config = make_config(structure, fields, parameters is not None)
    chosen = [(pattern, config) for pattern in layers] or list(default_rules(config).items())
    rules: list[tuple[Rule, Choice]] = [*((pattern, None) for pattern in keep), *chosen]
    candidates: tuple[Choice, ...] = ()
    if parameters is not None:
        rounds = fields["refine"] or 0
        candidates = (None, *(MonarchConfig(nblocks, fields["rank"], rounds) for nblocks in CANDIDATES))
    patterns = [("--keep", pattern) for pattern in keep] + [("--layers", pattern) for pattern in layers]
    return Choices(rules, candidates, patterns)


def make_config(structure: str, fields: dict[str, int | None], chosen: bool) -> LayerConfig:
    """The configuration of converted layers; if `chosen` under a budget, one that all can have, as a placeholder."""
    if chosen:
        for option, given in (("--nblocks", fields["nblocks"]), ("--structure", structure != "monarch")):
            if given:
                raise UsageError(f"{option} and --parameters exclude each other: under a budget, nblocks is chosen")
        return MonarchConfig(nblocks=1)
    kind = find("config", structure, "--structure")
    known = {field.name: field for field in dataclasses.fields(kind)}
    given = {name: value for name, value in fields.items() if value}
    for name in given:
        if name not in known:
            raise UsageError(f"--{name} does not belong to --structure {kind.name}, which has: {', '.join(known)}")
    for name, field in known.items():
        if field.default is dataclasses.MISSING and name not in given:
            raise UsageError(f"--structure {kind.name} needs --{name}")
    return kind(**given)
