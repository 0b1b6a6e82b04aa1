"""`milkweed sweep`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from milkweed._suggest import UsageError
from milkweed.cli.options import Overrides

if TYPE_CHECKING:
    from milkweed.cli.sweep.grid import Combination

EXAMPLE = """\
  milkweed sweep digits --grid model.layer.init=legs,inv,lin --seeds 3
  milkweed sweep digits --grid lr=0.01,0.003 --grid model.depth=1,2 --trainer.max_epochs 10 --jobs 2
  milkweed sweep digits --grid "model.layer={name: s4d},{name: s4}" --name layers
  milkweed sweep smnist --grid model.d_model=64,128 --data.root DIR --slurm sweep.sh"""


def sweep(
    recipe: str,
    overrides: Overrides,
    *,
    grid: list[str] | None = None,
    seeds: str = "1",
    jobs: int = 1,
    name: str | None = None,
    out: Path = Path("runs"),
    slurm: Path | None = None,
    trust: bool = False,
) -> None:
    """Train every combination of values, each a run of its own, and compare them. Further options apply to all runs.

    The same command again goes on where it was stopped: finished runs are skipped, others continue from their last
    checkpoint.

    Args:
        recipe: a name listed by `milkweed recipes`, or a YAML file
        grid (OPTION=VALUE,…): values of an option; repeat it for every combination with those of another
        seeds (N|LIST): how many seeds each combination is trained with, e.g. 3, or which, e.g. 0,5,7
        jobs (N): how many runs train at a time; they share the cores
        name: name of the sweep; default: the recipe's with -sweep
        out (DIR): folder of all runs; the sweep's are in DIR/NAME
        slurm (FILE): train nothing, but write a script for `sbatch` with one run for each task of an array
        trust: import and run the code that the config.yaml of a run names, wherever it comes from
    """
    from rich.console import Console

    from milkweed.cli import imported
    from milkweed.cli.recipe import find_recipe, is_run
    from milkweed.cli.sweep.grid import combinations
    from milkweed.cli.sweep.slurm import check_script
    from milkweed.train.run_folder import check_name, check_writable

    if jobs < 1:
        raise UsageError(f"--jobs {jobs} must be at least 1")
    found = find_recipe(recipe)
    folder = out / (f"{found.name}-sweep" if name is None else name)
    check_name(folder.name if name is None else name)
    if is_run(folder):
        raise UsageError(f"{folder} is the folder of a run; choose another --name for the sweep")
    check_writable(folder)
    if slurm is not None:
        check_script(slurm)
    runs = combinations(found, overrides, grid or [], seeds, without_data=slurm is not None)
    left = [each for each in runs if not is_finished(folder, each)]
    fixed = [f"--{option}={overrides.texts[option]}" for option, _ in overrides if option != "seed"]
    imports = [each for module in imported for each in ("--import", module)]
    command = ["-m", "milkweed", *imports, "train", found.typed, "--out", str(folder), "--resume", "auto", *fixed]
    command += ["--trust"] if trust else []
    if slurm is not None:
        from milkweed.cli.sweep.slurm import write_script

        if not left:
            raise UsageError(f"all {len(runs)} runs in {folder} are finished; see milkweed compare {folder}")
        write_script(slurm, command, folder, left)
        Console().print(f"{slurm} trains {len(left)} runs: sbatch {slurm}", highlight=False, markup=False)
        return
    failed = train_all(folder, command, runs, left, jobs)
    report(folder, runs)
    if failed:
        raise UsageError(f"{len(failed)} of {len(runs)} runs failed; {folder}/sweep.json says why: {', '.join(failed)}")


def is_finished(folder: Path, run: "Combination") -> bool:
    """Whether a run needs no more training; one with other options is refused."""
    from milkweed.train.finished_run import read_run
    from milkweed.train.run_config import read_config
    from milkweed.train.run_folder import RunFolder

    place = RunFolder(folder / run.name)
    if not place.config.is_file():
        return False
    before = read_config(place.config)
    changed = changed_options(before, run.config)
    most = "trainer.max_epochs"
    longer = most in changed and None not in changed[most] and changed[most][0] < changed[most][1]
    refused = {option: values for option, values in changed.items() if not (option == most and longer)}
    if refused:
        what = ", ".join(f"{option} was {old!r} and is {new!r}" for option, (old, new) in list(refused.items())[:3])
        raise UsageError(f"{place.path} was trained with other options: {what}; give this sweep another --name")
    if longer or not place.results.is_file():
        return False
    try:
        read_run(place.path)
    except ValueError:  # a damaged file is written anew when the run is resumed
        return False
    return True


def changed_options(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options that a run had and that it is to have, where these differ, except where data lie and what computes."""
    from milkweed.train.plan import PLACES
    from milkweed.train.recipe.words import natural_options

    old, new = ({**natural_options(each), **_classes(each)} for each in (before, now))
    names = [name for name in dict.fromkeys([*old, *new]) if name not in PLACES]
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _classes(config: dict[str, Any]) -> dict[str, Any]:
    return {section: config[section].get("class_path") for section in ("data", "model", "task")}


def train_all(
    folder: Path, command: list[str], runs: "list[Combination]", left: "list[Combination]", jobs: int
) -> list[str]:
    """Train those of all runs that are left; the names of runs that failed."""
    import sys

    import torch
    from rich.console import Console

    from milkweed.cli.sweep.display import Display
    from milkweed.cli.sweep.processes import Child, run_all, shares, start_process
    from milkweed.train.run_folder import write_json

    folder.mkdir(parents=True, exist_ok=True)
    states = {each.name: {"state": "waiting" if each in left else "finished"} for each in runs}
    gpus = torch.cuda.device_count()

    def start(run: "Combination", slot: int) -> Child:
        states[run.name] = {"state": "running"}
        whole = [sys.executable, *command, "--name", run.name, *run.arguments]
        return start_process(whole, folder / f"{run.name}.log", shares(jobs, slot, gpus), run, slot)

    def look(running: list[Child], ended: list[Child]) -> None:
        for child in ended:
            good = child.process.returncode == 0
            states[child.combination.name] = {"state": "finished", "seconds": round(child.seconds, 1)}
            if not good:
                states[child.combination.name] |= {"state": "failed", "error": child.error()}
            display.ended(child, "finished" if good else "failed")
        if ended or not written:
            write_json(folder / "sweep.json", {"command": sys.argv, "runs": states})
            written.append(True)
        display.running(running)

    written: list[bool] = []
    try:
        with Display(Console(), len(runs), len(runs) - len(left)) as display:
            run_all(left, jobs, start, look)
    except KeyboardInterrupt:
        for each in states.values():
            each["state"] = "interrupted" if each["state"] == "running" else each["state"]
        write_json(folder / "sweep.json", {"command": sys.argv, "runs": states})
        raise KeyboardInterrupt(f"Stopped. The same command goes on; what is done is in {folder}.") from None
    return [name for name, each in states.items() if each["state"] == "failed"]


def report(folder: Path, runs: "list[Combination]") -> None:
    """Print and write the comparison of what is finished."""
    from milkweed.cli.compare import print_comparison
    from milkweed.train.comparison import compare
    from milkweed.train.comparison_files import save_comparison

    found = compare(folder / each.name for each in runs if (folder / each.name / "results.json").is_file())
    if not found.contests:
        return
    print_comparison(found)
    for name in ("comparison.md", "comparison.csv", "comparison.png"):
        try:
            save_comparison(found, folder / name)
        except ModuleNotFoundError:  # matplotlib is an extra
            continue
