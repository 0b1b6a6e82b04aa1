"""The house's imports: no circle among modules, and names that are lazy are the names that type checkers see."""

import ast
import importlib
import subprocess
import sys
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


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


LAZY = ("milkweed", "milkweed.train")


@pytest.mark.parametrize("package", LAZY)
def test_lazy_names_are_those_that_type_checkers_see(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    (branch,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {name.asname or name.name: node.module for node in branch.body for name in node.names}
    assert len(seen) > 4
    for name, home in seen.items():
        expected = getattr(importlib.import_module(home), name)
        assert getattr(module, name) is expected
        assert name in dir(module)
    assert set(module.__all__) - {"__version__"} <= seen.keys()
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Monach'"):
        module.Monach  # noqa: B018
    assert not hasattr(module, "Monach")


def test_nothing_heavy_is_imported_before_it_is_used():
    heavy = "{'torch', 'numpy', 'lightning', 'torchmetrics', 'transformers', 'matplotlib', 'jsonargparse', 'pandas'}"
    shown = f"print(*sorted({heavy} & set(sys.modules)))"
    assert run(f"import sys, milkweed, milkweed.train; dir(milkweed); milkweed.__version__; {shown}") == []
    for command in ("['--help']", "[]", "['--version']", "['trian']", "['recipes']", "['recipes', '--help']"):
        code = f"""
import sys
from milkweed.cli import main
try:
    main({command})
except SystemExit:
    pass
print("|")
{shown}"""
        assert run(code)[-1] == "|", command
    assert "lightning" not in run(f"import sys, milkweed; milkweed.nn, milkweed.Monarch; {shown}")


def test_help_takes_less_than_half_a_second_of_cpu():
    code = "import sys, time; from milkweed.cli import main; main(['--help']); print(time.process_time())"
    assert min(float(run(code)[-1]) for _ in range(3)) < 0.5


def test_a_missing_extra_is_named():
    code = """
import sys
sys.modules["lightning"] = None
import milkweed
try:
    milkweed.data
except ModuleNotFoundError as error:
    print(error)
"""
    expected = 'milkweed.data needs lightning, which is not installed: pip install "milkweed[train]"'
    assert " ".join(run(code)) == expected
