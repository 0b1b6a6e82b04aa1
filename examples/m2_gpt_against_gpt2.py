# %% [markdown]
# # M2-GPT against GPT-2: tokens per second by context
#
# Two language models of equal size, one of gated long convolutions alone, one of attention and MLPs: how many tokens do
# they train on, and how many do they write, per second of one processor core?
#
#     OMP_NUM_THREADS=1 python examples/m2_gpt_against_gpt2.py
#
# Which of them learns more in as many steps is what `milkweed train m2-gpt` tells, with and without `--model Gpt2`; see
# docs/results/m2-gpt.

# %%
import argparse
import statistics
import time

import torch
from torch.nn import functional as F

from milkweed.models import Gpt2, M2Gpt, stream

TOKENS = 65


def options():
    parser = argparse.ArgumentParser(description="M2-GPT against GPT-2: tokens per second by context.")
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--batch", type=int, default=4096, help="tokens in a training batch, or one context if longer")
    parser.add_argument("--steps", type=int, default=64, help="tokens to write, the last ones of the context")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, in each of which both models have their turn")
    return parser.parse_args()


# %% [markdown]
# ## The models
#
# GPT-2 spends 12 d² weights on a block, M2-GPT 8 d² on a mixer of twice the width: 4 blocks against 6. GPT-2 has a
# position embedding beside that, which grows with the context; M2-GPT has a few features per lag.


# %%
def models(context):
    torch.manual_seed(0)
    m2 = M2Gpt(TOKENS, TOKENS, context, d_model=128, depth=6, heads=8, mixer_options={"width": 16})
    gpt2 = Gpt2(TOKENS, TOKENS, context, d_model=128, depth=4, heads=4)
    return m2.eval(), gpt2.eval()


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


# %% [markdown]
# ## Writing, token by token
#
# M2-GPT steps: every convolution is computed online, O(log² L) a token on average. GPT-2 attends to the keys and values
# that it kept, O(L) a token, in transformers' own loop. Both read the prompt at once.


# %%
def write_m2(model, prompt, steps):
    return torch.stack(list(stream(model, prompt, steps, temperature=0)), 1)


def write_gpt2(model, prompt, steps):
    return model.gpt2.generate(prompt, max_new_tokens=steps, do_sample=False)[:, prompt.shape[1] :]


# %% [markdown]
# What is timed has to be right first: each token written is what the model finds likeliest when it reads the whole text
# at once. (Where two are equally likely up to rounding, either will do.)


# %%
@torch.no_grad()
def check(model, write, prompt, steps):
    written = write(model, prompt, steps)
    logits = model(torch.cat([prompt, written], 1)[:, :-1])[:, -steps:]
    missed = logits.amax(-1) - logits.gather(-1, written[..., None])[..., 0]
    assert missed.max() <= 1e-4, f"{type(model).__name__} writes what it does not find likeliest"


# %% [markdown]
# ## The clock
#
# Processor time of this process, so that other work on the machine does not count, and the models alternate.


# %%
def train(model, tokens):
    model.zero_grad()
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()


def timed(call, *arguments):
    start = time.process_time()
    call(*arguments)
    return time.process_time() - start


def seconds(pair, tasks, repeats):
    """What each model needs for each task: the median of alternating rounds after one to warm up."""
    taken = {name: ([], []) for name in tasks}
    for repeat in range(repeats + 1):
        for name, calls in tasks.items():
            for call, model, kept in zip(calls, pair, taken[name], strict=True):
                spent = timed(call[0], model, *call[1:])
                if repeat:
                    kept.append(spent)
    return {name: [statistics.median(kept) for kept in both] for name, both in taken.items()}


# %%
def main():
    chosen = options()
    torch.set_num_threads(1)
    print(f"{'context':>8} {'':28} {'M2-GPT':>10} {'GPT-2':>10} {'ratio':>7}")
    for context in chosen.contexts:
        m2, gpt2 = models(context)
        steps = min(chosen.steps, context - 1)
        text = torch.randint(TOKENS, (max(chosen.batch // context, 1), context))
        prompt = text[:1, : context - steps]
        for model, write in ((m2, write_m2), (gpt2, write_gpt2)):
            check(model, write, prompt, steps)
        tasks = {
            "train": ((train, text), (train, text)),
            "read": ((write_m2, prompt, 1), (write_gpt2, prompt, 1)),
            "write": ((write_m2, prompt, steps), (write_gpt2, prompt, steps)),
        }
        spent = seconds((m2, gpt2), tasks, chosen.repeats)
        found = {
            "trained": [text.numel() / each for each in spent["train"]],
            "of the prompt read": [prompt.numel() / each for each in spent["read"]],
            "written after it": [
                (steps - 1) / (whole - part) for whole, part in zip(spent["write"], spent["read"], strict=True)
            ],
        }
        print(f"{context:8} {'parameters':28} {size(m2):10,} {size(gpt2):10,}")
        for name, (ours, theirs) in found.items():
            print(f"{'':8} {'tokens/s ' + name:28} {ours:10,.0f} {theirs:10,.0f} {ours / theirs:6.2f}x")


if __name__ == "__main__":
    main()
