"""The page about a conversion: one file of HTML that needs nothing else."""

import base64
from html import escape
from pathlib import Path
from typing import Any

from milkweed._files import atomic_write
from milkweed.convert import ConversionReport
from milkweed.convert.conversion_report import HEADINGS
from milkweed.convert.hub.timing import Timing
from milkweed.plots.conversion import draw_costs, draw_errors, draw_losses, draw_speed

STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2.2rem } img { width: 100% }
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid #e5e7eb; vertical-align: top }
.scroll { overflow-x: auto } .warning { color: #b45309 } .note { color: #6b7280; font-size: 13px }"""


def write_page(
    report: ConversionReport, timing: Timing | None, name: str, command: str, environment: dict[str, Any], path: Path
) -> None:
    """Write figures and the table of all layers; `environment` is the machine's and versions, as runs have them."""
    title = f"{name}, converted by milkweed"
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(report.summary())}.</p>"]
    body += [f'<p class="warning">{escape(warning)}</p>' for warning in report.warnings]
    body += _errors(report)
    body += ["<h2>Parameters and operations</h2>", _image(draw_costs(report), "parameters and FLOPs by kind of layer")]
    if report.distillation_losses:
        body += [
            "<h2>Distillation</h2>",
            '<p class="note">Mean squared error of hidden states and outputs relative to the variance of the dense '
            "model's, at every step. Errors of layers, above, are those before.</p>",
            _image(draw_losses(report.distillation_losses), "loss of distillation"),
        ]
    body += _speed(timing, environment)
    body += ["<h2>Every linear layer</h2>", _table(report)]
    body.append(f'<p class="note">Made by: <code>{escape(command)}</code></p>')
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


def _errors(report: ConversionReport) -> list[str]:
    measured = any(line.output_error is not None for line in report.converted)
    outputs = "Of the outputs: √(E‖y − ŷ‖² / E‖y‖²) on the calibration texts. " if measured else ""
    return [
        "<h2>Error of each layer</h2>",
        f'<p class="note">{outputs}Of the weights: ‖W − M‖ / ‖W‖. 0 is no error, 1 is as bad as zeros.</p>',
        _image(draw_errors(report), "error of each layer by block"),
    ]


def _speed(timing: Timing | None, environment: dict[str, Any]) -> list[str]:
    if timing is None:
        return []
    machine, shape = environment["machine"], " × ".join(map(str, timing.shape))
    processors = ", ".join([machine["processor"], *machine["gpus"]])
    words = (
        f"Inputs {shape}, on {timing.device}: {1e3 * timing.before:,.1f} ms dense, {1e3 * timing.after:,.1f} ms "
        f"converted, {timing.before / timing.after:.2f}×; medians of {timing.runs} runs by turns, beside whatever else "
        f"ran there. {processors}, {machine['threads']} threads, torch {environment['versions']['torch']}."
    )
    return [
        "<h2>Speed of the whole model</h2>",
        f'<p class="note">{escape(words)}</p>',
        _image(draw_speed(timing.before, timing.after), "time before and after"),
    ]


def _table(report: ConversionReport) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in HEADINGS)
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in report.rows())
    return (
        f'<div class="scroll"><table>\n<tr>{head}</tr>\n'
        + "\n".join(f"<tr>{r}</tr>" for r in rows)
        + "\n</table></div>"
    )


def _image(svg: bytes, words: str) -> str:
    return f'<img alt="{escape(words)}" src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}">'
