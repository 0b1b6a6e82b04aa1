"""The house's imports: no circle among modules, and names that are lazy are the names that type checkers see."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"


def import_graph(source):
    """Module -> modules that it imports, at its head or within a function; not for type checkers alone."""
    files = {
        ".".join(p.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): p for p in source.rglob("*.py")
    }
    return {name: set(imported(ast.parse(path.read_text()), files)) for name, path in files.items()}


def imported(tree, known):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{each.name}" for each in node.names}
            yield from names & known.keys()
            if node.module in known and names - known.keys():
                yield node.module
        elif isinstance(node, ast.Import):
            yield from {each.name for each in node.names} & known.keys()
        yield from imported(node, known)


def test_no_module_imports_itself_on_any_way():
    graph = import_graph(SOURCE)
    assert len(graph) > 200
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(circle.args[1])}")


def test_a_circle_within_functions_is_found(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    from b import g\n")
    (tmp_path / "b.py").write_text("import a\n\ndef g():\n    pass\n")
    with pytest.raises(CycleError):
        TopologicalSorter(import_graph(tmp_path)).prepare()
