# %% [markdown]
# # What a HiPPO basis remembers
#
# Two tasks with nothing to learn but the past (How to Train Your HiPPO, arXiv 2206.12037): repeat white noise a number
# of steps later (`delay`), and write down its last steps after it has ended (`reconstruct`). LegT and FouT keep a
# window of 2/dt steps and nothing else; LegS forgets gradually, by e^(-dt) per step. So the first two should win when
# dt fits the task, and LegS should suffer least when the window is too short.
#
#     python examples/hippo_memory.py delay                        exact optima at a quarter of the published size
#     python examples/hippo_memory.py delay --scale 1              at the published size, minutes
#     python examples/hippo_memory.py delay --train                beside them what training finds
#
# Numbers are root mean squared errors; the signals have variance 1.

# %%
import argparse
import contextlib
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import milkweed as mw
from milkweed.cli import main as milkweed

BASES = {"legs": "LegS", "legt": "LegT", "fout": "FouT"}
FROZEN = "[A,B,C,D,P,dt]"


@dataclass(frozen=True)
class Setting:
    """A task at some size: `asked` is the lag, or how many steps are to be reconstructed."""

    task: str
    length: int
    asked: int
    d_state: int
    band: float
    discretization: str

    def dt(self, window):
        return 2 / (window * self.asked)


def setting(task, scale, discretization):
    d_state, band = {"delay": (1024, 0.25), "reconstruct": (256, 0.1)}[task]
    return Setting(task, round(4000 * scale), round(1000 * scale), 2 * round(d_state * scale / 2), band, discretization)


# %% [markdown]
# ## The best that any readout can do
#
# With A and B frozen everything else is linear, and the best readout of the state is a least squares problem whose
# expectation over all signals has a closed form. The state is x_t = Σ_s K_s u_(t-s), K_s = Ā^s B̄, and the signals have
# the covariance r(s) = mean of cos(2πfs/L) over their frequencies f.


# %%
def state_kernels(basis, place, window):
    dt = place.dt(window)
    options = {"discretization": place.discretization, "dt_min": dt, "dt_max": dt, "output": "none"}
    with torch.no_grad():
        system = mw.nn.S4(1, place.d_state, basis, **options, dtype=torch.float64).filter.system()
    power, kernels = system.a[0], system.b[0][:, None]
    while kernels.shape[1] < place.length:
        kernels, power = torch.cat([kernels, power @ kernels], 1), power @ power
    return kernels[:, : place.length]


def covariance(place):
    steps = torch.arange(place.length, dtype=torch.float64)
    frequencies = torch.arange(1, int(place.band * place.length + 1e-9) + 1, dtype=torch.float64)
    r = torch.cos(2 * torch.pi / place.length * frequencies[:, None] * steps).mean(0)
    index = torch.arange(place.length)
    return r[(index[:, None] - index) % place.length]


def unexplained(gram, cross, energy):
    """What is left of targets with this energy, per target, after the best linear readout."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > values[-1] * 1e-13
    explained = ((vectors[:, kept] / values[kept].sqrt()).T @ cross).square().sum(0)
    return (energy - explained).clamp_min(0).mean().sqrt().item()


def optimum(basis, place, window):
    kernels, r = state_kernels(basis, place, window), covariance(place)
    if place.task == "reconstruct":
        seen = kernels @ r
        return unexplained(seen @ kernels.T, seen[:, : place.asked], r.diagonal()[: place.asked])
    # The skip D reads the present as well. The mean runs over all steps, and step t has seen t + 1 inputs: the pair of
    # inputs s and s' steps ago counts in L - max(s, s') of L steps.
    index = torch.arange(place.length)
    weighted = r * (place.length - torch.maximum(index[:, None], index)) / place.length
    kernels = torch.cat([kernels, torch.eye(1, place.length, dtype=torch.float64)])
    seen, asked = kernels @ weighted, [place.asked]
    return unexplained(seen @ kernels.T, seen[:, asked], weighted.diagonal()[asked])


# %% [markdown]
# ## What training finds
#
# The two recipes, at this size. The delay once with its system frozen, so that only readouts are learned, and once as
# the paper trains it, where A, B and dt may move too.


# %%
def trained(basis, place, window, out, *, epochs, moving):
    asked = "lag" if place.task == "delay" else "memory"
    frozen = "[]" if moving else "[A,B,P,dt]" if place.task == "delay" else FROZEN
    name = f"{place.task}-{basis}-{window:g}{'-moving' if moving else ''}"
    options = {
        "data.length": place.length,
        f"data.{asked}": place.asked,
        "data.eval_size": 256,
        "model.layer.init": basis,
        "model.layer.d_state": place.d_state,
        "model.layer.dt_min": place.dt(window),
        "model.layer.dt_max": place.dt(window),
        "model.layer.discretization": place.discretization,
        "model.layer.frozen": frozen,
        "trainer.max_epochs": epochs,
    }
    if place.task == "delay":
        options |= {"data.batch_size": 16, "data.train_size": 1024}
    command = ["train", place.task, "--name", name, "--out", str(out)]
    for option, value in options.items():
        command += [f"--{option}", str(value)]
    with contextlib.redirect_stdout(io.StringIO()):
        code = milkweed(command)
    if code:
        raise SystemExit(f"milkweed {' '.join(command)} failed")
    return json.loads((out / name / "results.json").read_text())


def train_all(console, place, windows, out, epochs):
    found = {}
    for moving in (False, True) if place.task == "delay" else (False,):
        rows = {}
        for basis in BASES:
            for window in windows:
                results = trained(basis, place, window, out, epochs=epochs, moving=moving)
                rows[basis, window] = results["test"]["rmse"]
                console.print(
                    f"{BASES[basis]}, window {window:g}: {results['test']['rmse']:.4f} "
                    f"after {results['steps']} steps, {results['seconds']:.0f} s"
                )
        found["trained, A, B and dt too" if moving else "trained readout"] = rows
    return found


# %%
def table(title, rows):
    windows = list(dict.fromkeys(window for _, window in rows))
    result = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("basis", *(f"window {window:g}×" for window in windows)):
        result.add_column(heading, justify="right")
    for basis, label in BASES.items():
        result.add_row(label, *(f"{rows[basis, window]:.4f}" for window in windows))
    return result


def draw(path, place, found):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, ScalarFormatter

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    styles = {"optimal readout": "o-", "trained readout": "x", "trained, A, B and dt too": "*:"}
    for (basis, label), colour in zip(BASES.items(), ("#1e4e79", "#c2410c", "#0f766e"), strict=True):
        for kind, rows in found.items():
            points = sorted((window, error) for (name, window), error in rows.items() if name == basis)
            axes.plot(*zip(*points, strict=True), styles[kind], color=colour, label=f"{label}, {kind}")
    axes.set(xscale="log", yscale="log", ylabel="root mean squared error")
    axes.set_xlabel(f"2/dt in units of the {place.asked} steps asked for (LegT and FouT: the window)")
    windows = sorted({window for rows in found.values() for _, window in rows})
    axes.set_xticks(windows, [f"{window:g}×" for window in windows], minor=False)
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_title(f"{place.task}: length {place.length}, N = {place.d_state}", loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)


def options():
    parser = argparse.ArgumentParser(description="What LegS, LegT and FouT remember, by timescale.")
    parser.add_argument("task", choices=("delay", "reconstruct"))
    parser.add_argument("--scale", type=float, default=0.25, help="of the published sizes; default: a quarter")
    parser.add_argument(
        "--windows",
        type=float,
        nargs="+",
        default=[4, 2, 1, 0.5, 0.25],
        help="2/dt, in units of what is asked for; default: 4 2 1 0.5 0.25",
    )
    parser.add_argument("--discretization", choices=("bilinear", "zoh"), default="bilinear")
    parser.add_argument("--train", action="store_true", help="train as well, with windows 2, 1 and 0.5; takes minutes")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, help="keep the runs in this folder; default: they are thrown away")
    parser.add_argument("--figure", type=Path, help="draw the errors into this PNG file")
    return parser.parse_args()


def main():
    chosen = options()
    console = Console()
    place = setting(chosen.task, chosen.scale, chosen.discretization)
    console.print(f"{place.task}: length {place.length}, {place.asked} steps asked for, N = {place.d_state}")
    best = {(basis, window): optimum(basis, place, window) for basis in BASES for window in chosen.windows}
    console.print(table("optimal readout", best))
    # With zoh, frequencies of FouT above half a cycle per step come back as lower ones, which hardly decay: a memory
    # that goes beyond the window, if by accident.
    if {1, 0.5} <= set(chosen.windows) and chosen.discretization == "bilinear":
        assert max(best["legt", 1], best["fout", 1]) < best["legs", 1]
        assert best["legs", 0.5] < min(best["legt", 0.5], best["fout", 0.5])
        console.print("LegT and FouT win when the window fits; LegS loses least when it is too short.")
    found = {"optimal readout": best}
    if chosen.train:
        with tempfile.TemporaryDirectory() as scratch:
            found |= train_all(console, place, [2, 1, 0.5], chosen.out or Path(scratch), chosen.epochs)
        for kind in list(found)[1:]:
            console.print(table(kind, found[kind]))
    if chosen.figure:
        draw(chosen.figure, place, found)
        console.print(f"drawn: {chosen.figure}")


if __name__ == "__main__":
    main()
