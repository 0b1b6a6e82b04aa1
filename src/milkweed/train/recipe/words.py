"""Names of options: those of a configuration, words of other programs, and what was meant by a name that is none."""

import difflib
from collections.abc import Iterable
from typing import Any

SECTIONS = ("data", "model", "task", "trainer")
# Names of options elsewhere, with underscores, and what a recipe calls them.
OPTIONS = {
    **dict.fromkeys(("lr", "learning_rate", "rate"), "task.lr"),
    **dict.fromkeys(("wd", "decay", "weight_decay"), "task.weight_decay"),
    **dict.fromkeys(("warmup", "warmup_steps", "warm_up"), "task.warmup_steps"),
    **dict.fromkeys(("schedule", "scheduler", "lr_scheduler"), "task.schedule"),
    **dict.fromkeys(("epochs", "epoch", "max_epochs", "num_epochs", "n_epochs"), "trainer.max_epochs"),
    **dict.fromkeys(("steps", "max_steps", "num_steps"), "trainer.limit_train_batches"),
    **dict.fromkeys(("gpus", "gpu", "num_gpus", "devices", "cpus"), "trainer.devices"),
    **dict.fromkeys(("device", "accelerator", "cuda"), "trainer.accelerator"),
    **dict.fromkeys(("nodes", "num_nodes"), "trainer.num_nodes"),
    **dict.fromkeys(("fp16", "bf16", "amp", "precision", "dtype"), "trainer.precision"),
    **dict.fromkeys(("grad_clip", "clip", "gradient_clip_val", "max_grad_norm"), "trainer.gradient_clip_val"),
    **dict.fromkeys(("accumulate", "accumulate_grad_batches"), "trainer.accumulate_grad_batches"),
    **dict.fromkeys(("batch_size", "bs", "batch"), "data.batch_size"),
    **dict.fromkeys(("data_dir", "data_root", "root", "dataset"), "data.root"),
    **dict.fromkeys(("dim", "width", "d_model", "hidden_size", "hidden_dim"), "model.d_model"),
    **dict.fromkeys(("layers", "num_layers", "n_layers", "depth"), "model.depth"),
    **dict.fromkeys(("seeds", "random_seed", "rng"), "seed"),
    **dict.fromkeys(("output", "output_dir", "out_dir", "save_dir", "dir"), "out"),
    **dict.fromkeys(("run_name", "experiment", "exp_name"), "name"),
    **dict.fromkeys(("checkpoint", "ckpt", "continue", "resume_from_checkpoint"), "resume"),
}


FIXED = {
    "model.d_input": "the data decide it",
    "model.d_output": "the data decide it",
    "model.length": "the data decide it",
    "task.num_classes": "the data decide it",
    "task.judged_by": "the data decide it",
    "task.model": "it is the section model",
    "data.seed": "it is --seed",
    "trainer.max_steps": "trainings are bounded by --trainer.max_epochs, and epochs by --trainer.limit_train_batches",
}


def natural_options(config: dict[str, Any]) -> dict[str, Any]:
    """All options of a configuration by their natural names, such as `model.d_model`: without `init_args`."""
    options: dict[str, Any] = {}
    for key, value in config.items():
        if not isinstance(value, dict) or not value:
            options[key] = value
            continue
        inner = value.get("init_args") or {} if "class_path" in value else value
        options |= {f"{key}.{name}": item for name, item in natural_options(inner).items()}
    return options


def spec_kind(option: str) -> str | None:
    """What an option such as `model.token_linear` describes by a mapping with a name: a layer, a linear, or neither."""
    last = option.rpartition(".")[2].rpartition("_")[2]
    return last if last in {"layer", "linear"} else None


def meant_option(given: str, own: Iterable[str], recipe: Iterable[str]) -> str | None:
    """The option nearest to one as typed, among a command's own, with dashes, and those of a recipe by natural name."""
    own, recipe = list(own), list(recipe)
    name = given.partition("=")[0].lstrip("-").replace("-", "_")
    meant = OPTIONS.get(name)
    if meant is not None and (f"--{meant}" in own or meant in recipe):
        return f"--{meant}"
    # A name within one section only, such as --d_state.
    inner = [option for option in recipe if option.endswith(f".{name}")]
    if inner:
        return f"--{min(inner, key=len)}"
    names = {option.rpartition(".")[2]: f"--{option}" for option in reversed(recipe)}
    names |= {option.lstrip("-").replace("-", "_"): option for option in own if option not in {"--help", "--debug"}}
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return names[near[0]] if near else None


def unknown_option(name: str, known: Iterable[str]) -> str:
    """Say which option of a recipe was probably meant by a name, as typed without dashes."""
    known, (section, _, rest) = list(known), name.partition(".")
    meant = OPTIONS.get(rest)
    if meant not in known:
        meant = next((key for key in known if key.endswith(f".{rest}") and "." in name), None)
    if meant is not None:
        return f"unknown option --{name}; did you mean --{meant}?"
    # Compared without the section, which would make everything in it look alike.
    names = [key.removeprefix(f"{section}.") for key in known if key.startswith(f"{section}.")]
    near = difflib.get_close_matches(rest, names, n=1, cutoff=0.5)
    if near:
        return f"unknown option --{name}; did you mean --{section}.{near[0]}?"
    return f"unknown option --{name}; {section} has {', '.join(names)}"
