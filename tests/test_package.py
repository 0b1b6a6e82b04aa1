"""What the package promises as a whole: a light import."""

import subprocess
import sys
from importlib.resources import files


def test_import_needs_the_base_install_only():
    code = """
import sys
import torch.utils.flop_counter  # brings what it brings, Triton among it
before = set(sys.modules)
import milkweed
from milkweed import *
added = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(added - set(sys.stdlib_module_names)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(found) <= {"milkweed", "torch", "numpy", "einops", "safetensors"}


def test_type_checkers_may_read_the_annotations():
    assert (files("milkweed") / "py.typed").is_file()
