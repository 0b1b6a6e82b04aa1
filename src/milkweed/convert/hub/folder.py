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
from milkweed.convert.hub.card import CARD, model_card
from milkweed.convert.hub.conversion_progress import FolderError, Progress
from milkweed.convert.hub.destination import REPORT, check_space, copy_side_files, staged, writing
from milkweed.convert.hub.inputs import check_runs
from milkweed.convert.hub.memory import give_back, inner_layers_only
from milkweed.convert.hub.source import Source, check_device, find_source, load_model, quiet_transformers
from milkweed.convert.hub.text_batches import WatchedBatches, make_batches
from milkweed.convert.hub.timing import Timing, time_model
from milkweed.convert.passes.budget import Budget
from milkweed.convert.passes.select import select
from milkweed.convert.plan import ConversionPlan, plan_conversion
from milkweed.convert.pretrained import save_pretrained
from milkweed.convert.rules import Rules, default_rules
from milkweed.convert.sites import find_sites
from milkweed.nn.structured_linear import LayerConfig, MonarchConfig

DTYPES = ("float32", "bfloat16", "float16")

Train = Callable[[nn.Module, nn.Module, Sequence[Any]], Sequence[float]]


@dataclasses.dataclass(frozen=True, repr=False)
class FolderConversion:
    """What was done to a folder; prints as a table.

    Args:
        report: What became of each layer.
        timing: Of the whole model before and after, or None if it was not measured.

    Example:
        >>> model = nn.Sequential(nn.Linear(256, 256))
        >>> report = mw.convert_(model, {"0": mw.convert.LowRankConfig(rank=8)})
        >>> mw.convert.FolderConversion(report).timing is None
        True
    """

    report: ConversionReport
    timing: Timing | None = None

    def __repr__(self) -> str:
        return repr(self.report) + ("" if self.timing is None else f"\n{self.timing.summary()}")


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


@checked(but=("texts", "max_length", "batch_size", "dtype", "device"))
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
        also_write: Writes more into the folder before it takes its place.
        progress: Told how far it is; without it warnings are Python's.

    Returns:
        The report, and the time that the whole model takes before and after.

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
        plan, batches = _plan(found, model, preview, options, steps)
        if folder is None or place is None:
            return FolderConversion(plan.report)
        done = _convert(model, plan, batches, train, steps)
        steps.begin("writing")
        with writing(place):
            left_out = copy_side_files(found.folder, folder)
            if left_out:
                steps.warn(f"{', '.join(left_out)} of {found.name}: links that leave the folder, not copied")
            (folder / CARD).write_text(
                model_card(model, found.name, _facts(done), found.folder / CARD), encoding="utf-8"
            )
            save_pretrained(model, folder)
            done.report.save(folder / REPORT, None if done.timing is None else done.timing.as_dict())
            if also_write is not None:
                also_write(folder, done)
    return done


def _facts(done: FolderConversion) -> list[str]:
    return [done.report.summary()] + ([] if done.timing is None else [done.timing.summary()])


def plan_without_weights(
    source: Source, rules: Rules, parameters: float | None = None, candidates: Sequence[LayerConfig | None] = ()
) -> ConversionReport:
    """Plan without numbers, which finds what does not fit, or no budget allows, before weights are read."""
    model = source.skeleton()
    if parameters is not None:
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
    model: nn.Module, plan: ConversionPlan, batches: WatchedBatches | None, train: Train | None, steps: Progress
) -> FolderConversion:
    """Measure the model before and after, convert it, and train it if that is asked for."""
    steps.begin("measuring the whole model, dense and converted")
    check_runs(model, plan, batches)
    timing = time_model(model, plan)
    give_back()
    dense = copy.deepcopy(model) if train is not None else None
    report = convert_(model, plan)
    if train is not None and dense is not None and batches is not None:
        report = dataclasses.replace(report, distillation_losses=tuple(train(model, dense, batches)))
    return FolderConversion(report, timing)


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
