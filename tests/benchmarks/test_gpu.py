"""The cases of GPUs on a CPU: in Triton's interpreter, at tiny sizes."""

import contextlib
import io
import json
import math
import sys

import pytest
import torch

from benchmarks.case import all_cases
from benchmarks.command import main
from milkweed import ops

pytest.importorskip("triton")


NAMES = [case.name for case in all_cases() if case.device == "cuda"]


@pytest.fixture(scope="module")
def everything(tmp_path_factory, pytestconfig):
    """What the command shows and writes of all cases, in a plain run of one for each name without its size."""
    out = tmp_path_factory.mktemp("gpu") / "all.json"
    first = {name.rstrip("0123456789"): name for name in reversed(NAMES)}.values()
    names = NAMES if pytestconfig.getoption("all_cases") else [name for name in NAMES if name in first]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main(["--interpret", "--json", str(out), *(part for name in names for part in ("--only", name))]) == 0
    return shown.getvalue(), json.loads(out.read_text()), names


def test_all_cases_of_the_table_are_right(everything):
    shown, document, expected = everything
    names = [record["name"] for record in document["cases"]]
    assert {name.split("-")[0] for name in names} == {"monarch", "conv", "s4d", "s4", "m2"}
    assert sorted(names) == sorted(expected)
    assert len(NAMES) == len(set(NAMES)) == 20
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
        assert record["name"] in shown
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


def test_a_wrong_kernel_gets_no_figure_and_stops_nothing(tmp_path, capsys, monkeypatch):
    out = tmp_path / "some.json"
    cases = ("--only", "s4d-kernel", "--only", "monarch-4-formula", "--only", "m2")
    arguments = ["--interpret", *cases, "--json", str(out)]
    right = ops.diagonal_ssm_kernel
    with monkeypatch.context() as patch:
        # As both may be missing on the machine with the GPU: the table is then set by hand, and BERT skipped.
        for name in ("rich", "rich.console", "transformers"):
            patch.setitem(sys.modules, name, None)
        patch.setattr(ops, "diagonal_ssm_kernel", lambda *args, **options: 1.01 * right(*args, **options))
        assert main(arguments) == 1
    by_name = {case["name"]: case for case in json.loads(out.read_text())["cases"]}
    bert, kernel, monarch = (by_name[name] for name in ("m2-bert-4096", "s4d-kernel", "monarch-4-formula"))
    assert kernel["value"] is None
    assert "wrong: " in kernel["failure"]
    assert kernel["sides"]["ours"]["median_s"] is None
    assert monarch["failure"] is bert["failure"] is None
    assert "pip install" in bert["skipped"]
    assert f"s4d-kernel: {kernel['failure']}" in capsys.readouterr().out

    records = json.loads(out.read_text())
    records["cases"] = [bert, monarch]
    out.write_text(json.dumps(records))
    assert main([*arguments, "--resume"]) == 0
    assert "monarch-4-formula ..." not in capsys.readouterr().err
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
