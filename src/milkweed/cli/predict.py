"""`milkweed predict`."""

from pathlib import Path
from typing import Any

from milkweed._suggest import UsageError
from milkweed.cli.recipe import is_run

EXAMPLE = """\
  milkweed predict runs/digits three.png images.npy --out classes.csv
  milkweed predict runs/csv-forecast table.csv --out next.csv --plot next.png
  milkweed predict runs/m2-gpt "ROMEO:" --steps 300 --temperature 0.8
  milkweed predict runs/m2-bert-retrieval "what is a state space" --documents texts.txt --top 5"""
SHOWN = 20


def predict(
    run: Path,
    inputs: list[str],
    *,
    out: Path | None = None,
    plot: Path | None = None,
    rate: float = 1.0,
    batch_size: int = 32,
    trust: bool = False,
    steps: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    documents: str | None = None,
    top: int | None = None,
) -> None:
    """Predict with a finished run, which needs its folder and none of its data.

    Args:
        run: folder of the run, e.g. runs/digits
        inputs (INPUT): files or texts, one or more; what they may be depends on the data of the run
        out (FILE): write predictions as .csv, a row for each input or step, or as .json; else they are shown
        plot (FILE): draw predictions into a .png, .svg or .pdf: forecasts, probabilities of classes, numbers
        rate (K): the inputs were sampled K times less often than the data of the training
        batch_size: inputs that the model reads at a time
        trust: import and run the code that the run's config.yaml names, wherever it comes from

    Texts:
        steps: characters or tokens that a language model adds; default: 200
        temperature: of its draws; 0 takes the likeliest; default: 1
        top_k: it draws among so many likeliest ones
        top_p: it draws among the likeliest ones that together have this probability
        seed: of its draws; default: 0
        documents (FILE): what a retrieval model searches: texts, one per line, or a table with a column passage
        top: documents that are found, default: 10; or words for each mask of a masked text, default: 5
    """
    if not is_run(run) and is_run(Path("runs") / run):
        raise UsageError(f"{run} is no run; did you mean {Path('runs') / run}?")
    if out is not None and out.suffix not in {".csv", ".json"}:
        raise UsageError(f"--out {out} must end in .csv or .json")
    if plot is not None and plot.suffix not in {".png", ".svg", ".pdf"}:
        raise UsageError(f"--plot {plot} must end in .png, .svg or .pdf")
    given = {
        "steps": steps,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "documents": documents,
        "top": top,
    }
    options = {name: value for name, value in given.items() if value is not None}

    from milkweed.train.find_predictor import load_predictor
    from milkweed.train.quiet_lightning import quiet

    quiet()
    predictor = load_predictor(run, trust=trust)
    strange = [f"--{name.replace('_', '-')}" for name in options if name not in predictor.options]
    if strange:
        known = ", ".join(f"--{name.replace('_', '-')}" for name in predictor.options) or "none of these options"
        task = type(predictor.task).__name__
        raise UsageError(f"{strange[0]} does not apply: {run} was trained for {task}, which takes {known}")
    found = predictor(list(inputs), batch_size=batch_size, rate=rate, **options)
    if out is None:
        show(found)
    else:
        write(found, out)
    if plot is not None:
        draw(found, predictor, list(inputs), plot)


def draw(found: list[dict[str, Any]], predictor: Any, inputs: list[str], plot: Path) -> None:
    """Draw predictions into a file."""
    from milkweed.cli.console import echo
    from milkweed.plots import save_predictions

    forecasts = predictor.preprocessing.forecasts
    before = [predictor.preprocessing.before(sample) for _, sample in predictor.samples(inputs)] if forecasts else []
    save_predictions(found, plot, before)
    echo(f"picture written to {plot}")


def write(found: list[dict[str, Any]], out: Path) -> None:
    """Write predictions into a file."""
    import csv

    from milkweed._files import atomic_write
    from milkweed.cli.console import echo
    from milkweed.train.run_folder import write_json

    if out.suffix == ".json":
        write_json(out, found)
    else:
        rows = table_rows(found)
        names = list(dict.fromkeys(name for row in rows for name in row))
        with atomic_write(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    echo(f"{len(found)} prediction{'s' * (len(found) != 1)} written to {out}")


def show(found: list[dict[str, Any]]) -> None:
    """Show predictions: texts as they are, all else as a table."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from milkweed.cli.console import echo

    if all("text" in each for each in found):
        for each in found:
            echo(each["text"])
        return
    rows = table_rows([{name: value for name, value in each.items() if name != "probabilities"} for each in found])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = list(dict.fromkeys(name for row in rows for name in row))
    shown = names if len(names) <= SHOWN else names[:SHOWN]
    for name in shown:
        table.add_column(escape(name), justify="left" if name in {"input", "class", "document", "time"} else "right")
    for row in rows[:SHOWN]:
        table.add_row(*(escape(_cell(row.get(name, ""))) for name in shown))
    Console().print(table)
    if len(rows) > SHOWN or shown is not names:
        echo(f"{len(rows)} rows of {len(names)} columns; --out FILE.csv writes all of them")


def table_rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predictions as rows of a table: one for each step or document, else one for each input; mappings as columns."""
    rows = []
    for each in found:
        inner = next((each[name] for name in ("steps", "documents") if name in each), None)
        if inner is None:
            rows.append(_flat(each))
        else:
            rows += [{"input": each["input"]} | _flat(step) for step in inner]
    return rows


def _flat(prediction: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in prediction.items():
        if isinstance(value, dict):
            row |= {f"{'p' if name == 'probabilities' else name}.{key}": inner for key, inner in value.items()}
        elif isinstance(value, list):
            row |= {f"{name}.{place}": inner for place, inner in enumerate(value)}
        else:
            row[name] = value
    return row


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
