"""A folder that transformers saved becomes one of a converted model: the whole way."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from milkweed._arguments import checked, plain
from milkweed.convert.apply import convert_
from milkweed.convert.conversion_report import ConversionReport
from milkweed.convert.evaluation.held_out import SHARE, split
from milkweed.convert.evaluation.metrics import Metric, check_metric
from milkweed.convert.evaluation.pair import Pair
from milkweed.convert.evaluation.trial import Options as TrialOptions
from milkweed.convert.evaluation.trial import Trial
from milkweed.convert.experts import experts_apart
from milkweed.convert.hub.card import CARD, model_card
from milkweed.convert.hub.conversion_progress import FolderError, Progress
from milkweed.convert.hub.destination import REPORT, check_space, copy_side_files, staged, writing
from milkweed.convert.hub.folder_conversion import (
    FolderConversion,
    Size,
    environment,
    file_name,
    model_bytes,
    stored_bytes,
)
from milkweed.convert.hub.inputs import check_runs
from milkweed.convert.hub.memory import give_back, inner_layers_only
from milkweed.convert.hub.source import Source, check_device, find_source, load_model, quiet_transformers
from milkweed.convert.hub.text_batches import WatchedBatches, make_batches
from milkweed.convert.hub.timing import time_model
from milkweed.convert.passes.budget import Budget
from milkweed.convert.passes.select import select
from milkweed.convert.plan import ConversionPlan, plan_conversion
from milkweed.convert.pretrained import save_pretrained
from milkweed.convert.rules import Rules, default_rules
from milkweed.convert.sites import find_sites
from milkweed.nn.structured_linear import LayerConfig, MonarchConfig

DTYPES = ("float32", "bfloat16", "float16")

Train = Callable[[nn.Module, nn.Module, Sequence[Any]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class _Options:
    """How to plan; the fields are arguments of `convert_folder`."""

    rules: Rules
    texts: Sequence[str]
    max_length: int
    batch_size: int
    sequential: bool
    permute: bool
    parameters: float | None
    candidates: Sequence[LayerConfig | None]


@checked(but=("texts", "max_length", "batch_size", "dtype", "device", "metric_data"))
def convert_folder(
    source: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str] | None,
    rules: Rules | LayerConfig | None = None,
    *,
    texts: Iterable[str] = (),
    max_length: int = 128,
    batch_size: int = 32,
    sequential: bool = False,
    permute: bool = False,
    parameters: float | None = None,
    candidates: Sequence[LayerConfig | None] = (),
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    overwrite: bool = False,
    train: Train | None = None,
    metric: str | Metric | None = None,
    metric_data: str | os.PathLike[str] | Sequence[object] | None = None,
    held_out: float = SHARE,
    also_write: Callable[[Path, FolderConversion], None] | None = None,
    progress: Progress | None = None,
) -> FolderConversion:
    """Convert a model that transformers saved into a folder of its own; ``mw.load_pretrained(out)`` reads it.

    The tokenizer and other side files are copied, no code that comes with a model is run, and `out` holds the whole
    result in the end or nothing. Needs the extra ``hf``.

    Args:
        source: The folder, or a model's name on the hub. Its weights must be safetensors.
        out: The new folder; None only plans.
        rules: As for `milkweed.plan_conversion`.
        texts: To calibrate on, a few hundred or more: layers then keep their outputs for text like it.
        max_length: Tokens kept of each text.
        batch_size: Texts at a time.
        sequential: As for `milkweed.plan_conversion`; needs texts, as do the next two.
        permute: As there.
        parameters: As there.
        candidates: As there.
        dtype: Compute and save in ``"float32"``, ``"bfloat16"`` or ``"float16"``, which torch's own dtypes may name; as
            the model is stored if None.
        device: Where to compute.
        overwrite: Replace `out` if this function wrote it.
        train: Trains the converted model before it is saved: called with it, the dense one and the batches of texts,
            it gives the loss of every step, as ``milkweed.train.distill.distill_`` does.
        metric: What to measure of the whole model, dense and converted: ``"cosine"`` of its outputs, ``"perplexity"``,
            ``"agreement"`` of predictions, relative ``"error"`` of outputs, with a table ``"accuracy"`` or
            ``"spearman"``; by default what says most about the kind of model. Or a function that is called with the
            model, and if it takes two arguments with a [`milkweed.convert.HeldOut`][], and gives a number, or numbers
            by name.
        metric_data: What to measure it on: a ``.txt`` file with a text on each line, or a table (``.csv``, ``.tsv``)
            of a text, or two, and a label or score in each row; a list of the same. A metric of your own gets the
            file's path as ``held_out.file``.
        held_out: Without ``metric_data``, this share of the texts is held back from calibration to measure on. Which
            ones, depends on each text alone, not on their order.
        also_write: Writes more into the folder before it takes its place.
        progress: Told how far it is; without it warnings are Python's.

    Returns:
        The report, and of the whole model before and after: figures end to end, time and size.

    Raises:
        ValueError: The model, the texts or `out` cannot be used, or as for `milkweed.plan_conversion`. Nothing is left.
        TypeError: An argument is of another type.

    Example:
        >>> import milkweed as mw
        >>> mw.convert_folder("my-encoder", "my-encoder-monarch", mw.MonarchConfig(nblocks=4), texts=sentences)
        ... # doctest: +SKIP
    """
    texts = list(texts) if isinstance(texts, Iterator) else cast(Sequence[str], texts)  # which _check finds out
    max_length, batch_size, parameters = plain(max_length), plain(batch_size), plain(parameters)
    dtype = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    _check(texts, max_length, batch_size, dtype, train, out)
    _check_trial(metric, metric_data, held_out, out)
    texts, held = split(texts, held_out) if metric_data is None else (list(texts), [])
    trial_options = TrialOptions(metric, metric_data, held, texts, max_length, batch_size)
    chosen = default_rules(rules) if rules is None or isinstance(rules, LayerConfig) else rules
    options = _Options(chosen, texts, max_length, batch_size, sequential, permute, parameters, candidates)
    place, steps = None if out is None else Path(out), progress or Progress()
    check_device(device)
    with quiet_transformers(), nullcontext() if place is None else staged(place, overwrite) as folder:
        steps.begin(f"reading {source.name if isinstance(source, Source) else source}")
        found = source if isinstance(source, Source) else find_source(os.fspath(source), place)
        preview = plan_without_weights(found, options.rules, parameters, candidates)
        if folder is not None:
            check_space(folder, preview, dtype)
        needed = [f"{line.name}.weight" for line in preview.converted]
        model = load_model(found, needed, dtype, device, steps)
        if train is not None:
            _check_trainable(model)
        trial = Trial(found, trial_options, steps)
        if folder is not None:
            trial.prepare(model)
        plan, batches = _plan(found, model, preview, options, steps)
        if folder is None or place is None:
            return FolderConversion(plan.report, name=file_name(found.name))
        done = _convert(model, plan, batches, train, trial, steps)
        steps.begin("writing")
        with writing(place):
            left_out = copy_side_files(found.folder, folder)
            if left_out:
                steps.warn(f"{', '.join(left_out)} of {found.name}: links that leave the folder, not copied")
            (folder / CARD).write_text(
                model_card(model, found.name, _facts(done), found.folder / CARD), encoding="utf-8"
            )
            save_pretrained(model, folder)
            done.save(folder / REPORT)
            if also_write is not None:
                also_write(folder, done)
    return done


def _facts(done: FolderConversion) -> list[str]:
    figures = [f"{name}: {value}" + f" ({detail})" * bool(detail) for name, value, detail in done.headline()]
    measured = done.end_to_end is not None and done.end_to_end.figures
    return [*(figures if measured else figures[1:]), done.report.summary()]


def plan_without_weights(
    source: Source, rules: Rules, parameters: float | None = None, candidates: Sequence[LayerConfig | None] = ()
) -> ConversionReport:
    """Plan without numbers, which finds what does not fit, or no budget allows, before weights are read."""
    model = source.skeleton()
    if parameters is not None:
        with experts_apart(model):
            sites = {site.name: site for site in find_sites(model)}
        selection = select(sites, rules)
        chosen_from = {name: sites[name] for name in selection.choices}
        Budget(chosen_from, parameters, candidates, selection.named)
        # Which candidate each layer gets is not known yet; this one fits all.
        rules = {name: MonarchConfig(nblocks=1) for name in chosen_from}
    return plan_conversion(model, rules, tokens=None).report


def _plan(
    source: Source, model: nn.Module, preview: ConversionReport, options: _Options, steps: Progress
) -> tuple[ConversionPlan, WatchedBatches | None]:
    def follow(text: str, done: int, total: int) -> None:
        steps.count(text, done, total)
        give_back()

    batches = None
    # A budget and an order of units are judged by the model's outputs.
    with inner_layers_only(model, preview, whole_outputs=options.permute or options.parameters is not None):
        if options.texts:
            steps.begin(f"tokenising {len(options.texts):,} texts")
            batches = make_batches(source, model, list(options.texts), options.max_length, options.batch_size, steps)
            give_back()
        steps.begin("calibrating" if options.texts else "projecting")
        plan = plan_conversion(
            model,
            options.rules,
            batches,
            sequential=options.sequential,
            permute=options.permute,
            parameters=options.parameters,
            candidates=options.candidates,
            progress=follow,
        )
    return plan, batches


def _convert(
    model: nn.Module,
    plan: ConversionPlan,
    batches: WatchedBatches | None,
    train: Train | None,
    trial: Trial,
    steps: Progress,
) -> FolderConversion:
    """Measure the model before and after, convert it, and train it if that is asked for."""
    steps.begin("timing the whole model, dense and converted")
    check_runs(model, plan, batches)
    timing = time_model(model, plan)
    give_back()
    if train is None or batches is None:
        end_to_end = trial.measure(Pair(model, plan))
        report = convert_(model, plan)
    else:
        dense = copy.deepcopy(model)
        report = convert_(model, plan)
        report = dataclasses.replace(report, distillation_losses=tuple(train(model, dense, batches)))
        end_to_end = trial.measure(Pair(dense, converted_model=model))
    size = Size(stored_bytes(trial.source.stored), model_bytes(model))
    return FolderConversion(report, timing, end_to_end, size, file_name(trial.source.name), environment())


def _check_trial(metric: object, metric_data: object, held_out: float, out: object) -> None:
    check_metric(cast("str | Metric | None", metric))
    if isinstance(metric_data, bytes) or not isinstance(metric_data, str | os.PathLike | Sequence | None):
        raise TypeError(f"metric_data must be a file, or a list of texts or rows; got {type(metric_data).__name__}")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must be a share from 0 to below 1; got {held_out}")
    if out is None and (metric is not None or metric_data is not None):
        raise ValueError("out=None only plans, which measures no model end to end; leave metric out, or give a folder")


def _check(texts: object, max_length: object, batch_size: object, dtype: object, train: object, out: object) -> None:
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(each, str) for each in texts):
        raise TypeError(f"texts must be a list of strings; got {type(texts).__name__}")
    for name, value in (("max_length", max_length), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1 on; got {value!r}")
    if not (dtype is None or (isinstance(dtype, str) and dtype in DTYPES)):
        raise ValueError(f"dtype must be None or one of {', '.join(map(repr, DTYPES))}; got {dtype!r}")
    if train is not None and not texts:
        raise ValueError("train needs texts to learn from; labels are not needed")
    if train is not None and out is None:
        raise ValueError("out=None only plans, which trains nothing; leave train out, or give a folder")


def _check_trainable(model: nn.Module) -> None:
    """Refuse to train weights of half precision: small steps would be lost in their rounding."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if dtype != "float32":
        raise FolderError(f"training is done in float32, and this model is {dtype}; add dtype='float32'")
