"""benchmarks/gpu.py on a CPU: in Triton's interpreter, at tiny sizes, each time in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
# As both may be missing on the machine with the GPU: the table is then set by hand, and BERT skipped.
BARE = "import sys, runpy; sys.modules['rich'] = sys.modules['transformers'] = None; sys.argv = sys.argv[1:]; "
RUN = f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"


def run(*arguments, code=None):
    start = [str(SCRIPT)] if code is None else ["-c", code + RUN, str(SCRIPT)]
    return subprocess.run([sys.executable, *start, *arguments], capture_output=True, text=True, env=dict(os.environ))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "all.json"
    done = run("--interpret", "--out", str(out))
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
        assert record["goal"] is None or record["goal"] > 1
        assert record["ratio"] == pytest.approx(
            record["sides"]["baseline"]["median_s"] / record["sides"]["triton"]["median_s"]
        )
        assert record["sides"]["triton"]["errors"]
        assert record["name"] in done.stdout
    assert document["interpreted"]
    assert document["environment"]["torch"] == torch.__version__


def test_floors_follow_from_sizes(everything):
    by_name = {record["name"]: record for record in everything[1]["cases"]}
    size = by_name["monarch-4-linear"]["size"]
    tokens, n, nblocks = size["tokens"], size["features"], size["nblocks"]
    # Two factors of nblocks blocks of (n / nblocks)² entries; input and output once.
    assert by_name["monarch-4-linear"]["operations"] == 2 * tokens * 2 * n * n // nblocks
    assert by_name["monarch-4-linear"]["bytes"] == 2 * (2 * tokens * n + 2 * n * n // nblocks)
    assert by_name["conv-gated-1024"]["floor_s"] == by_name["conv-gated-1024"]["bytes"] / 1e10


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
        "--out",
        str(out),
    )
    done = run(*arguments, code=BARE + wrong)
    assert done.returncode == 1, done.stderr
    monarch, kernel, bert = json.loads(out.read_text())["cases"]
    assert kernel["ratio"] is None
    assert "wrong: " in kernel["failure"]
    assert kernel["sides"]["triton"]["median_s"] is None
    assert monarch["failure"] is bert["failure"] is None
    assert "pip install" in bert["skipped"]
    assert f"s4d-kernel: {kernel['failure']}" in done.stdout

    records = json.loads(out.read_text())
    records["cases"] = [monarch, bert]
    out.write_text(json.dumps(records))
    done = run(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert "monarch-4-formula ..." not in done.stderr
    *kept, kernel = json.loads(out.read_text())["cases"]
    assert kept == [monarch, bert]
    assert kernel["ratio"] > 0


def test_what_the_time_does_not_suffice_for_is_skipped(tmp_path):
    out = tmp_path / "none.json"
    done = run("--interpret", "--seconds", "0.001", "--only", "monarch", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert all(record["skipped"] for record in json.loads(out.read_text())["cases"])
    assert done.stdout.count("skipped") == 5


def test_tiles_are_measured():
    done = run("--interpret", "--tune")
    assert done.returncode == 0, done.stderr
    assert '"multiply": Tile(' in done.stdout
    assert '"sum_outer": Tile(' in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_is_needed():
    done = run()
    assert done.returncode == 2
    assert "this needs a GPU" in done.stderr


def test_names():
    done = run("--only", "monarhc-4")
    assert done.returncode == 2
    assert "monarch-4-linear" in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no results of this script"),
        ('{"cases": [', "holds no results of this script"),
        ("[]", "holds no results of this script"),
        ('{"cases": [{"name": "a"}], "format": 1, "interpreted": true, "environment": {}}', "holds no results"),
        ('{"cases": [], "format": 1, "interpreted": false, "environment": {"gpu": "A"}}', "measured in another way"),
    ],
)
def test_only_a_file_of_its_own_is_resumed(tmp_path, content, message):
    out = tmp_path / "old.json"
    out.write_text(content)
    done = run("--interpret", "--only", "s4d-kernel", "--out", str(out), "--resume")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_text() == content
