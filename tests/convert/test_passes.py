"""Passes alone, in other orders, and beside new ones."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import milkweed as mw
from milkweed.convert.input_moments import Calibration
from milkweed.convert.passes.base import Draft, Pass
from milkweed.convert.passes.budget import WithinBudget
from milkweed.convert.passes.calibrate import Calibrate
from milkweed.convert.passes.measure import measured_speedups
from milkweed.convert.passes.order import Order
from milkweed.convert.passes.project import Project, ProjectSequentially
from milkweed.convert.passes.select import Select, keep_useful, select
from milkweed.convert.passes.survey import survey
from milkweed.convert.plan import run_passes
from milkweed.convert.sites import find_sites


class Feedforward(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return self.fc2(self.fc1(x).relu())


def network():
    torch.manual_seed(0)
    return Feedforward().eval()


BATCHES = [torch.randn(60, 32, generator=torch.Generator().manual_seed(i)) for i in range(3)]
RULES = {"re:.*": mw.MonarchConfig(4)}


@pytest.mark.parametrize(
    ("passes", "options"),
    [
        ([Project()], {}),
        ([Calibrate(), Project()], {"calibration": BATCHES}),
        ([ProjectSequentially()], {"calibration": BATCHES, "sequential": True}),
        ([Calibrate(), Order(), Project()], {"calibration": BATCHES, "permute": True}),
        ([Calibrate(), Order(), ProjectSequentially()], {"calibration": BATCHES, "permute": True, "sequential": True}),
    ],
    ids=["plain", "calibrated", "sequential", "permuted", "all"],
)
def test_options_are_passes(passes, options):
    ours, theirs = network(), network()
    mw.convert_(ours, run_passes(ours, Select(RULES), passes, options.get("calibration")))
    mw.convert_(theirs, mw.plan_conversion(theirs, RULES, tokens=None, **options))
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name])


def test_a_new_pass_needs_no_change_of_the_others():
    class DenseWhereBad(Pass):
        """Puts layers back whose error is too large."""

        def run(self, draft):
            for name, (error, _) in list(draft.errors.items()):
                if error > 0.0:
                    del draft.layers[name], draft.choices[name]
                    draft.reasons[name] = "its error is too large"

    report = run_passes(network(), Select({"fc1": mw.MonarchConfig(4)}), [Project(), DenseWhereBad()]).report
    assert report.layers[0].reason == "its error is too large"
    assert not report.converted


def test_functions_of_passes_stand_alone():
    model = network()
    sites = {site.name: site for site in find_sites(model)}
    selection = keep_useful(select(sites, RULES), sites)
    assert list(selection.choices) == ["fc1", "fc2"]
    assert survey(model, sites.values()) == ()
    layers = {"fc1": mw.nn.MonarchLinear.from_linear(model.fc1, 4)}
    assert measured_speedups(sites, layers, 16)["fc1"] > 0
    moments = Calibration(model, {"fc1": model.fc1}, BATCHES)
    draft = Draft(model, sites, dict(selection.choices), batches=BATCHES, moments=moments)
    del draft.choices["fc2"]
    Project().run(draft)
    assert list(draft.errors) == ["fc1"]


def test_refusals_come_before_any_batch_is_read():
    class Untouched(list):
        def __iter__(self):
            raise AssertionError("the batches were read")

    for each, message in (
        (WithinBudget(10, [mw.MonarchConfig(4)]), "is less than the"),
        (WithinBudget(0.5, []), "needs candidates"),
    ):
        with pytest.raises(ValueError, match=message):
            run_passes(network(), Select(RULES), [Calibrate(), each, Project()], Untouched(BATCHES))
    for each in (WithinBudget(0.9, [mw.MonarchConfig(4)]), Order()):
        with pytest.raises(ValueError, match="needs calibration before it"):
            run_passes(network(), Select(RULES), [each, Project()], BATCHES)
    with pytest.raises(NotImplementedError, match=r"Pass must say what it does in run\(draft\)"):
        run_passes(network(), Select(RULES), [Pass()])


def test_modules_of_convert_import_each_other_in_no_circle():
    root = Path(mw.__file__).parent
    graph = {}
    for path in (root / "convert").rglob("*.py"):
        name = ".".join(("milkweed", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("milkweed.convert"):
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        graph[name] = found
    # The package itself re-exports everything; none of its modules may import it.
    exported = graph.pop("milkweed.convert")
    assert not [name for name, found in graph.items() if "milkweed.convert" in found]
    assert exported
    graph = {name: {each for each in found if each in graph and each != name} for name, found in graph.items()}

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        for each in sorted(graph[name]):
            visit(each, [*path, name])

    for name in graph:
        visit(name, [])
