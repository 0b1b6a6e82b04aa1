"""What a run's config.yaml may have built: nothing is imported because a file names it."""

import copy
import sys
import types

import pytest
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn

from milkweed._suggest import UsageError
from milkweed.cli import main
from milkweed.cli.build import resolve
from milkweed.cli.recipe import find_recipe
from milkweed.models import SequenceModel
from milkweed.train.recipe.build import build
from milkweed.train.run_folder import RunFolder
from milkweed.train.trusted import UntrustedClassError, takes_code

EVIL = "milkweed_test_evil"
CODE = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
from lightning.pytorch import Callback
from milkweed.models import SequenceModel
class Model(SequenceModel): pass
class Call(Callback):
    def __init__(self, hook=None): pass
def function(*_): pass
"""


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that can be imported, and tells if it was."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / f"{EVIL}.py").write_text(CODE)
    (tmp_path / "path" / f"{EVIL}_package").mkdir()
    (tmp_path / "path" / f"{EVIL}_package" / "inner.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "path")
    yield tmp_path / "path" / "imported"
    for name in [name for name in sys.modules if name.startswith(EVIL)]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def plain():
    return resolve(find_recipe("digits").values, [])


def stored(folder, config):
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return RunFolder(folder)


def changed(config, place, value):
    config = copy.deepcopy(config)
    *path, last = place.split("/")
    at = config
    for key in path:
        at = at.setdefault(key, {})
    at[last] = value
    return config


SPEC = {"class_path": f"{EVIL}.Call"}
HOSTILE = {
    "model": ("model/class_path", f"{EVIL}.Model"),
    "data": ("data/class_path", f"{EVIL}.Model"),
    "task": ("task/class_path", f"{EVIL}.Model"),
    "module_as_class": ("model/class_path", f"{EVIL}_package.inner"),
    "module_of_a_package": ("model/class_path", f"{EVIL}_package.inner.Model"),
    "module_of_ours": ("model/class_path", "milkweed.__main__.main"),
    "not_yet_loaded": ("model/class_path", "antigravity.Model"),
    "callback_in_list": ("trainer/callbacks", [SPEC]),
    "callback_alone": ("trainer/callbacks", SPEC),
    "callback_as_text": ("trainer/callbacks", [f"{EVIL}.Call"]),
    "callback_as_text_alone": ("trainer/callbacks", f"{EVIL}.Call"),
    "callback_in_yaml": ("trainer/callbacks", f"[{{class_path: {EVIL}.Call}}]"),
    "callback_in_quotes": ("trainer/callbacks", [f"'{EVIL}.Call'"]),
    "callback_in_quotes_in_yaml": ("trainer/callbacks", f"""['"{EVIL}.Call"']"""),
    "callback_with_comment": ("trainer/callbacks", [f"{EVIL}.Call  # harmless"]),
    "callback_with_tag": ("trainer/callbacks", [f"!!str {EVIL}.Call"]),
    "callback_deep": (
        "trainer/callbacks",
        [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": [{"a": SPEC}]}}],
    ),
    "function_in_callback": (
        "trainer/callbacks",
        [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": f"{EVIL}.function"}}],
    ),
    "loaded_function_in_callback": (
        "trainer/callbacks",
        [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "os.system"}}],
    ),
    "function_by_short_name": (
        "trainer/callbacks",
        [{"class_path": "LambdaCallback", "init_args": {"setup": f"{EVIL}.function"}}],
    ),
    "dict_kwargs": (
        "trainer/callbacks",
        [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "dict_kwargs": {"setup": f"{EVIL}.function"}}],
    ),
    "writes_anywhere": (
        "trainer/callbacks",
        [{"class_path": "milkweed.train.callbacks.MetricsTable", "init_args": {"path": "elsewhere"}}],
    ),
    "removes_anywhere": (
        "trainer/callbacks",
        [{"class_path": "milkweed.train.checkpoints.KeepCheckpoints", "init_args": {"folder": "x", "monitor": "y"}}],
    ),
    "strategy": ("trainer/strategy", SPEC),
    "strategy_option": (
        "trainer/strategy",
        {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"ddp_comm_hook": f"{EVIL}.function"}},
    ),
    "strategy_rest": (
        "trainer/strategy",
        {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"x": f"{EVIL}.function"}},
    ),
    "accelerator": ("trainer/accelerator", f"{EVIL}.Call"),
    "logger": ("trainer/logger", [SPEC]),
    "profiler": ("trainer/profiler", SPEC),
    "densify": ("trainer/densify", SPEC),
    "precision": ("trainer/precision", SPEC),
    "seed": ("seed", SPEC),
    "in_the_layer": ("model/init_args/layer/x", SPEC),
    "in_the_layer_as_text": ("model/init_args/layer/x", f"{{class_path: {EVIL}.Call}}"),
    "loaded_class_of_no_kind": (
        "model/init_args/layer/x",
        {"class_path": "subprocess.Popen", "init_args": {"args": "ls"}},
    ),
    "in_a_number": ("model/init_args/d_model", SPEC),
    "target": ("model/init_args/layer/x", {"class_path": {"class_path": f"{EVIL}.Call"}}),
    "dotted_key": ("trainer/callbacks.class_path", f"{EVIL}.Call"),
    "dotted_key_deep": ("model/init_args/layer.class_path", f"{EVIL}.Call"),
    "dotted_section": ("data.class_path", f"{EVIL}.Call"),
    "beside": ("model/class_path.x", f"{EVIL}.Call"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_run_runs_no_code(tmp_path, evil, plain, case):
    folder = stored(tmp_path / "run", changed(plain, *HOSTILE[case]))
    with pytest.raises(ValueError, match=r"config\.yaml"):
        folder.read_config()
    assert not evil.exists()
    assert not any(name.startswith(EVIL) for name in sys.modules)


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_no_command_runs_code_of_a_run(tmp_path, evil, plain, command, capsys):
    folder = stored(tmp_path / "digits", changed(plain, "trainer/callbacks", [SPEC])).path
    (folder / "model.safetensors").touch()
    arguments = ["evaluate", str(folder)]
    if command == "train":
        arguments = ["train", "digits", "--out", str(tmp_path), "--name", "digits", "--resume", "auto"]
    assert main(arguments) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"trainer.callbacks.0.class_path names {EVIL}.Call, which no program has imported" in error
    assert "allow that with trust, or name the recipe" in error
    assert not evil.exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!python/module:os"]
)
def test_yaml_tags_build_nothing(tmp_path, plain, tag):
    folder = stored(tmp_path / "run", plain)
    folder.config.write_text(folder.config.read_text().replace("callbacks: null", f"callbacks: {tag}"))
    with pytest.raises(ValueError, match="damaged"):
        folder.read_config()
    nested = stored(tmp_path / "run", changed(plain, "trainer/callbacks", tag))
    with pytest.raises(ValueError, match=r"config\.yaml does not fit \(.*trainer\.callbacks"):
        resolve(nested.read_config(), [])


def test_bombs_are_refused_at_once(tmp_path, plain):
    folder = stored(tmp_path / "run", plain)
    levels = "".join(f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    folder.config.write_text(f"x:\n  l0: &l0 [1]\n{levels}")
    with pytest.raises(ValueError, match="more than 100,000 values"):
        folder.read_config()
    folder.config.write_text("x: &a [*a]\n")
    with pytest.raises(ValueError, match="damaged"):
        folder.read_config()
    folder.config.write_text("[" * 100_000 + "\n")
    with pytest.raises(ValueError, match="damaged"):
        folder.read_config()
    inner = "[&l0 [1], " + ", ".join(f"&l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)) + "]"
    with pytest.raises(ValueError, match="unfolds to more"):
        stored(tmp_path / "run", changed(plain, "trainer/callbacks", inner)).read_config()


def test_lightnings_own_and_loaded_classes_are_built(tmp_path, plain, monkeypatch):
    early = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val_loss"}}
    config = resolve(changed(plain, "trainer/callbacks", [early, {"class_path": "RichProgressBar"}]), [])
    config["trainer"]["logger"] = [
        {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "a.b"}}
    ]
    config["trainer"]["strategy"] = {"class_path": "lightning.pytorch.strategies.DDPStrategy"}
    made = stored(tmp_path / "run", resolve(config, [])).read_config()
    assert [type(each).__name__ for each in build(resolve(made, [])).trainer_options["callbacks"]] == [
        "EarlyStopping",
        "RichProgressBar",
    ]

    class Mine(Callback):
        pass

    class Strange:
        pass

    module = types.ModuleType("milkweed_test_mine")
    for kind in (Mine, Strange):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    mine = changed(plain, "trainer/callbacks", [{"class_path": "milkweed_test_mine.Mine"}])
    assert (
        type(build(resolve(stored(tmp_path / "run", mine).read_config(), [])).trainer_options["callbacks"][0]) is Mine
    )
    strange = changed(plain, "trainer/callbacks", [{"class_path": "milkweed_test_mine.Strange"}])
    with pytest.raises(UntrustedClassError, match="which is not a class that milkweed or Lightning ship"):
        stored(tmp_path / "run", strange).read_config()


def test_texts_that_look_like_paths_are_data_where_data_are_expected(tmp_path):
    config = resolve(find_recipe("shakespeare").values, [("data.file", "corpus.txt")])
    assert stored(tmp_path / "run", config).read_config()["data"]["init_args"]["file"] == "corpus.txt"
    assert not takes_code(SequenceModel, "layer")
    assert takes_code(LambdaCallback, "setup")


def test_trust_and_the_recipe_let_a_runs_classes_in(tmp_path, evil, plain, capsys):
    config = changed(plain, "model/class_path", f"{EVIL}.Model")
    folder = stored(tmp_path / "run", config)
    folder.read_config(trust=True)
    folder.read_config(given={f"{EVIL}.Model"})
    assert not evil.exists()  # that it may be imported does not mean that reading does
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    small = [
        *("--model.d_model", "8", "--model.depth", "1", "--model.layer.d_state", "4", "--data.limit", "96"),
        *("--data.batch_size", "32", "--trainer.max_epochs", "1"),
    ]
    train = ["train", str(tmp_path / "mine.yaml"), "--out", str(tmp_path), *small]
    assert main(train) == 0  # a recipe is code
    run = str(tmp_path / "mine")
    for name in [name for name in sys.modules if name.startswith(EVIL)]:
        del sys.modules[name]
    assert main(["evaluate", run]) == 2
    assert "names milkweed_test_evil.Model" in capsys.readouterr().err
    assert main([*train, "--name", "mine", "--resume", "auto", "--trainer.max_epochs", "2"]) == 0


@pytest.mark.parametrize(
    ("section", "name", "base"),
    [
        ("data", "subprocess.Popen", "SequenceData"),
        ("model", "torch.nn.Linear", "Model"),
        ("task", "torch.nn.Linear", "Task"),
    ],
)
def test_a_recipe_names_classes_of_the_right_kind(section, name, base):
    values = changed(find_recipe("digits").values, f"{section}/class_path", name)
    with pytest.raises(UsageError, match=rf"{section}\.class_path={name} is no {base}; make the class a subclass of"):
        resolve(values, [])


def test_a_recipes_callbacks_are_callbacks(monkeypatch):
    made = []

    class NoCallback(nn.Module):
        def __init__(self):
            super().__init__()
            made.append(self)

    module = types.ModuleType("milkweed_test_none")
    module.NoCallback = NoCallback
    NoCallback.__module__, NoCallback.__qualname__ = module.__name__, "NoCallback"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    values = changed(
        find_recipe("digits").values, "trainer/callbacks", [{"class_path": "milkweed_test_none.NoCallback"}]
    )
    with pytest.raises(Exception, match=r"trainer\.callbacks"):
        build(resolve(values, []))
    assert not made
