"""What was probably meant by a name that is none: words of other programs, and options without their section."""

import difflib
import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path

COMMANDS = {
    **dict.fromkeys(("version", "-v", "-V"), "--version"),
    **dict.fromkeys(("list", "ls", "models", "recipe"), "recipes"),
    **dict.fromkeys(("run", "fit", "start", "resume", "finetune", "fine-tune"), "train"),
    **dict.fromkeys(("test", "eval", "validate", "val", "score"), "evaluate"),
    **dict.fromkeys(("show", "summary", "describe", "info", "params"), "inspect"),
    **dict.fromkeys(("compress", "project"), "convert"),
    **dict.fromkeys(("draw", "figure", "visualize", "visualise"), "plot"),
}
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


def meant_command(given: str) -> str | None:
    """The command that a word of another program stands for; None if there is none."""
    return COMMANDS.get(given.lstrip("-") if given.startswith("--") else given)


def meant_option(given: str, own: Iterable[str], recipe: Iterable[str]) -> str | None:
    """The option that was probably meant.

    Args:
        given: As typed, with its dashes.
        own: The command's own options, with dashes.
        recipe: Options of a recipe by their natural names; none if the command takes no recipe.

    Returns:
        An option with dashes; None if nothing is near.
    """
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


# Options that take objects, and the module of Lightning that holds their classes.
OBJECTS = {"trainer.logger": "loggers", "trainer.callbacks": "callbacks", "trainer.profiler": "profilers"}


def meant_value(name: str, given: str) -> str:
    """How a value of the wrong type would be written, as the end of a sentence; empty if nobody can tell.

    Args:
        name: The option's natural name.
        given: The value.

    Returns:
        `; use …`, or nothing.
    """
    last = name.rpartition(".")[2]
    if last in {"layer", "linear"} and given.replace("_", "").isalnum():
        return f"; use --{name}.name {given}, or in a recipe {last}: {{name: {given}}}"
    if name not in OBJECTS or not given.isalnum():
        return ""
    module = importlib.import_module(f"lightning.pytorch.{OBJECTS[name]}")
    kinds = [each for each in module.__all__ if given.lower() in each.lower()]
    if not kinds:
        return f"; use {{class_path: lightning.pytorch.{OBJECTS[name]}.NAME, init_args: {{…}}}}"
    needed = [
        each.name
        for each in inspect.signature(getattr(module, kinds[0])).parameters.values()
        if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    arguments = "".join(f", init_args: {{{each}: {'logs' if each == 'save_dir' else '…'}}}" for each in needed[:1])
    spec = f"{{class_path: lightning.pytorch.{OBJECTS[name]}.{kinds[0]}{arguments}}}"
    return f'; use --{name} "{f"[{spec}]" if last == "callbacks" else spec}"'


def is_run(path: str | Path) -> bool:
    """Whether a name is the folder of a run."""
    return (Path(path) / "config.yaml").is_file()
