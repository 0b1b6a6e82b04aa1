"""The page about a conversion: one file of HTML that needs nothing else and that a phone can read."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from milkweed._files import atomic_write
from milkweed.convert import ConversionReport, FolderConversion
from milkweed.convert.conversion_report import HEADINGS, describe
from milkweed.convert.groups import LayerGroup, by_outcome, by_reason, depth
from milkweed.convert.layer_report import LayerReport
from milkweed.plots.page_style import STYLE

# Points of a curve; a long training has more steps than a screen has pixels.
_POINTS = 300
_ERRORS = {"output_error": "Error of the outputs", "relative_error": "Error of the weights"}


def write_page(done: FolderConversion, path: Path, command: str) -> None:
    """Write what people open a report for, then what became of each layer, then how it was measured."""
    title = f"{done.name}, converted by milkweed" if done.name else "Converted by milkweed"
    body = [f"<h1>{escape(title)}</h1>", *_lead(done)]
    body += [f'<p class="warning">{escape(warning)}</p>' for warning in done.report.warnings]
    body += _kinds(done.report)
    body += _losses(done.report.distillation_losses)
    body += ["<h2>Every layer</h2>", _every_layer(done.report), *_how(done, command)]
    page = "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _lead(done: FolderConversion) -> list[str]:
    cards = []
    for name, value, detail in done.headline():
        bars = ""
        if name == "speed" and done.timing is not None:
            bars = _two_bars(done.timing.before, done.timing.after)
        elif done.size is not None and name.startswith("size"):
            bars = _two_bars(done.size.bytes_before, done.size.bytes_after)
        cards.append(
            f'<div class="card"><div class="name">{escape(name)}</div><div class="value">{_shown(value)}</div>{bars}'
            f'<div class="note">{_shown(detail)}</div></div>'
        )
    measured = done.end_to_end.data if done.end_to_end is not None and done.end_to_end.figures else ""
    on = f" End to end on {escape(measured)}." if measured else ""
    note = f'<p class="note key"><i></i> dense <i></i> converted.{on}</p>'
    return [note, f'<div class="cards">{"".join(cards)}</div>', f"<p>{_shown(done.report.summary())}.</p>"]


def _kinds(report: ConversionReport) -> list[str]:
    """Layers of a kind together: what they become, how much is left, and the error of each, block by block."""
    field = next((each for each in _ERRORS if any(getattr(line, each) is not None for line in report.converted)), None)
    what = ""
    if field == "output_error":
        what = "Columns: error of the outputs of each layer, √(E‖y − ŷ‖² / E‖y‖²) on the calibration texts, by depth. "
    elif field is not None:
        what = "Columns: error of the weights of each layer, ‖W − M‖ / ‖W‖, by depth. "
    before = " They are those before the distillation." if report.distillation_losses else ""
    scale = "0 is no error, a full column, 1, is as bad as zeros." if field else ""
    cards = [_kind(group, field) for group in by_outcome(report.layers)]
    stay = [
        f'<div class="card dim"><div class="name">{escape(group.name)}</div><div class="note">'
        f"{' × '.join(map(str, group.lines[0].shape))}, {group.total('parameters'):,} parameters, stays: "
        f"{escape(group.lines[0].reason)}</div></div>"
        for group in by_reason(report.kept)
    ]
    return [
        "<h2>Layers</h2>",
        f'<p class="note">{what}{scale}{before}</p>',
        f'<div class="cards">{"".join([*cards, *stay])}</div>',
    ]


def _kind(group: LayerGroup[LayerReport], field: str | None) -> str:
    first = group.lines[0]
    count = f", {len(group.lines)} layers" if len(group.lines) > 1 else ""
    head = f'<div class="name">{escape(group.name)}{count}</div>'
    shape = f"{first.out_features} × {first.in_features}"
    before, after = (group.total(f"parameters_{when}") for when in ("before", "after"))
    if first.layer is None:
        note = f"{shape}, {before:,} parameters, stays: {escape(str(first.reason))}"
        return f'<div class="card dim">{head}<div class="note">{note}</div></div>'
    rows = [f'<div class="note">{shape} → {escape(describe(first.layer, first.parts))}</div>']
    rows.append(
        f'<div class="row"><span>parameters</span><b>{before:,} → {after:,}</b></div>{_two_bars(before, after)}'
    )
    if field is not None:
        lines = sorted(group.lines, key=depth)
        rows.append(f'<div class="row"><span>{_ERRORS[field]}</span><b>{_range(group, field, "{:.3f}")}</b></div>')
        rows.append(_columns([(line.name, getattr(line, field)) for line in lines]))
    flops = group.total("flops_after") / max(1, group.total("flops_before"))
    speed = _range(group, "speedup", "{:.2f}×")
    rows.append(f'<div class="row"><span>FLOPs left</span><b>{flops:.0%}</b></div>')
    if speed:
        rows.append(f'<div class="row"><span>speed of the layer</span><b>{speed}</b></div>')
    return f'<div class="card">{head}{"".join(rows)}</div>'


def _losses(losses: Sequence[float]) -> list[str]:
    if not losses:
        return []
    width = -(-len(losses) // _POINTS)
    means = [sum(losses[i : i + width]) / len(losses[i : i + width]) for i in range(0, len(losses), width)]
    top = max(*means, 1e-30)
    step = 100 / max(1, len(means) - 1)
    points = " ".join(f"{index * step:.2f},{40 * (1 - mean / top):.2f}" for index, mean in enumerate(means))
    return [
        "<h2>Distillation</h2>",
        '<p class="note">Mean squared error of hidden states and outputs relative to the variance of the dense '
        f"model's, over {len(losses):,} steps: from {means[0]:.3g} to {means[-1]:.3g}; the top is {top:.3g}, the "
        "bottom 0.</p>",
        f'<svg class="curve" role="img" aria-label="loss of distillation" viewBox="0 0 100 40" '
        f'preserveAspectRatio="none"><polyline points="{points}"/></svg>',
    ]


def _how(done: FolderConversion, command: str) -> list[str]:
    seed = None if done.end_to_end is None else done.end_to_end.seed
    beside = "; times beside whatever else ran there" if done.timing is not None else ""
    words = [
        f"{done.where()}{beside}" if done.where() else "",
        "Times in milliseconds (1 ms = 0.001 s), sizes in MB (1 MB = 1,000,000 bytes), FLOPs for one token.",
        "End-to-end figures draw nothing at random." if seed is None else f"Hidden tokens are drawn with seed {seed}.",
        "Distillation shuffles its batches with seed 0, if not told otherwise." * bool(done.report.distillation_losses),
    ]
    notes = "".join(f'<p class="note">{_shown(each)}</p>' for each in words if each)
    return ["<h2>How it was measured</h2>", notes, f'<p class="note">Made by: <code>{escape(command)}</code></p>']


def _every_layer(report: ConversionReport) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    rows = "\n".join(f"<tr>{_cells(row)}</tr>" for row in report.rows())
    count = f"{len(report.layers)} linear layers and {len(report.kept)} matrices beside them"
    return f"<details><summary>{count}</summary><table>\n<tr>{head}</tr>\n{rows}\n</table></details>"


def _cells(row: Iterable[str]) -> str:
    """Cells with their headings, which stand beside them where the table is too wide for the screen."""
    return "".join(
        f'<td data-name="{escape(heading)}">{_shown(cell)}</td>' if cell else '<td class="none"></td>'
        for heading, cell in zip(HEADINGS, row, strict=True)
    )


def _two_bars(before: float, after: float) -> str:
    top = max(before, after) or 1
    widths = (100 * before / top, 100 * after / top)
    return f'<div class="bars"><i style="width:{widths[0]:.1f}%"></i><i style="width:{widths[1]:.1f}%"></i></div>'


def _columns(values: Iterable[tuple[str, float | None]]) -> str:
    columns = "".join(
        f'<i title="{escape(name)}: {value:.3f}" style="height:{100 * min(1.0, value):.1f}%"></i>'
        for name, value in values
        if value is not None
    )
    return f'<div class="columns">{columns}</div>'


def _range(group: LayerGroup[LayerReport], field: str, form: str) -> str:
    found = group.extremes(field)
    return "" if found is None else "–".join(dict.fromkeys(form.format(value) for value in found))


def _shown(text: str) -> str:
    return escape(text).replace("-&gt;", "→")
