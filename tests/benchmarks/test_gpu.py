"""The cases of GPUs on a CPU: in Triton's interpreter, at tiny sizes, each time in a process of its own."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.command import main

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
# As both may be missing on the machine with the GPU: the table is then set by hand, and BERT skipped.
BARE = "import sys, runpy; sys.modules['rich'] = sys.modules['transformers'] = None; "
RUN = "runpy.run_module('benchmarks', run_name='__main__', alter_sys=True)"


def run(*arguments, code=None):
    start = ["-m", "benchmarks"] if code is None else ["-c", code + RUN]
    return subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "all.json"
    done = run("--interpret", "--json", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    return done, json.loads(out.read_text())


def test_all_cases_of_the_table_are_right(everything):
    done, document = everything
    names = [record["name"] for record in document["cases"]]
    assert {name.split("-")[0] for name in names} == {"monarch", "conv", "s4d", "s4", "m2"}
    assert len(names) == len(set(names)) == 20
    for record in document["cases"]:
        assert record["failure"] is None
        assert record["skipped"] is None
        assert not record["reduced"]
        assert record["bar"] is None or record["bar"] > 1
        assert record["meets_bar"] is record["meets_floor_bar"] is None
        assert record["value"] == pytest.approx(
            record["sides"]["peer"]["median_s"] / record["sides"]["ours"]["median_s"]
        )
        assert record["sides"]["ours"]["errors"]
        assert record["name"] in done.stdout
    assert document["interpreted"]
    assert document["environment"]["torch"] == torch.__version__


def test_floors_follow_from_sizes(everything):
    by_name = {record["name"]: record for record in everything[1]["cases"]}
    size = by_name["monarch-4-linear"]["size"]
    tokens, n, nblocks = size["tokens"], size["features"], size["nblocks"]
    # Two factors of nblocks blocks of (n / nblocks)² entries; input and output once.
    assert by_name["monarch-4-linear"]["flops"] == 2 * tokens * 2 * n * n // nblocks
    assert by_name["monarch-4-linear"]["bytes"] == 2 * (2 * tokens * n + 2 * n * n // nblocks)
    conv, ceilings = by_name["conv-gated-1024"], everything[1]["environment"]["ceilings"]
    assert conv["floor_s"] == pytest.approx(max(conv["flops"] / ceilings["flops"], conv["bytes"] / ceilings["bytes"]))
    # Three signals are read and one is written; kernel and skip term are float32.
    signal, channels, length = 2 * math.prod(conv["size"].values()), conv["size"]["channels"], conv["size"]["length"]
    assert conv["bytes"] == 4 * signal + 4 * channels * (length + 1)


def test_a_wrong_kernel_gets_no_figure_and_stops_nothing(tmp_path):
    out = tmp_path / "some.json"
    wrong = (
        "import os; os.environ['TRITON_INTERPRET'] = '1'; import milkweed.ops as ops; right = ops.diagonal_ssm_kernel; "
        "ops.diagonal_ssm_kernel = lambda *args, **options: 1.01 * right(*args, **options); "
    )
    arguments = (
        "--interpret",
        "--only",
        "s4d-kernel",
        "--only",
        "monarch-4-formula",
        "--only",
        "m2",
        "--json",
        str(out),
    )
    done = run(*arguments, code=BARE + wrong)
    assert done.returncode == 1, done.stderr
    bert, kernel, monarch = json.loads(out.read_text())["cases"]
    assert kernel["value"] is None
    assert "wrong: " in kernel["failure"]
    assert kernel["sides"]["ours"]["median_s"] is None
    assert monarch["failure"] is bert["failure"] is None
    assert "pip install" in bert["skipped"]
    assert f"s4d-kernel: {kernel['failure']}" in done.stdout

    records = json.loads(out.read_text())
    records["cases"] = [bert, monarch]
    out.write_text(json.dumps(records))
    done = run(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert "monarch-4-formula ..." not in done.stderr
    *kept, kernel = json.loads(out.read_text())["cases"]
    assert kept == [bert, monarch]
    assert kernel["value"] > 0


def test_tiles_are_measured(capsys, tmp_path):
    out = tmp_path / "tiles.json"
    assert main(["--interpret", "--tune", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    best = json.loads(out.read_text())["tiles"]
    for kernel in ("multiply", "sum_outer"):
        assert f'"{kernel}": Tile(' in shown
        assert best[kernel].keys() == {"rows", "outputs", "inputs", "warps", "stages"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("arguments", [["--device", "cuda"], ["--tune"]])
def test_a_gpu_is_needed(capsys, arguments):
    assert main(arguments) == 2
    assert "this needs a GPU" in capsys.readouterr().err


def test_names(capsys):
    assert main(["--device", "cuda", "--only", "monarhc-4"]) == 2
    assert "monarch-4-linear" in capsys.readouterr().err
