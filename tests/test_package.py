"""What the package promises as a whole: a light import, and a README whose code runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]


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


def test_readme_code_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(block, {})
    assert "fft_conv: eager" in capsys.readouterr().out


def test_the_guide_to_monarch_mixer_runs(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "monarch_mixer.md").read_text(), re.DOTALL)
    assert len(blocks) > 4
    monkeypatch.chdir(tmp_path)
    golden = load_file(ROOT / "tests" / "golden" / "m2_bert_tiny.safetensors")
    Path("published").mkdir()
    state = {name: tensor for name, tensor in golden.items() if not name.startswith("__")}
    torch.save(state, "published/pytorch_model.bin")
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["model"].options["length"] == 2048


def test_readme_names_commands_and_recipes_that_exist(capsys):
    from milkweed.cli import main

    text = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"^milkweed (\w+)", text, re.MULTILINE))
    assert commands
    for command in commands:
        done = subprocess.run([sys.executable, "-m", "milkweed", command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0
        assert "milkweed" in done.stdout
    main(["recipes"])
    known = capsys.readouterr().out
    for recipe in re.findall(r"^milkweed (?:train|inspect) ([\w-]+)", text, re.MULTILINE):
        assert f"{recipe} " in known
