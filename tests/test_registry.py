"""Classes of a user's own, by name: saved, read in another process, named in recipes and on the command line."""

import dataclasses
import doctest
import inspect
import json
import os
import subprocess
import sys
import threading
from typing import ClassVar

import pytest
import torch
from torch import nn

import milkweed as mw
from milkweed import _registry
from milkweed._registry import KINDS, NameTakenError, registered
from milkweed.cli import main
from milkweed.nn.structured_linear.config import LayerConfig

# What a user would write: one class of each kind.
PARTS = '''
import dataclasses
from typing import ClassVar

import torch
from torch import nn

import milkweed as mw


@mw.register("structure")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Reflection(mw.structures.StructuredMatrix):
    """1 - 2 v v*, and fields of every kind that a file holds."""

    vector: torch.Tensor
    label: str = "a"
    inner: tuple = ()

    @property
    def _full_shape(self):
        return len(self.vector), len(self.vector)

    def _apply(self, x):
        return x - 2 * (x @ self.vector.conj())[..., None] * self.vector

    def _transpose(self):
        return Reflection(self.vector.conj(), self.label, self.inner)

    def _flops(self):
        return 4 * len(self.vector)


@mw.register("linear", "toeplitz")
class ToeplitzLinear(mw.nn.StructuredLinear):
    def __init__(self, in_features, out_features, bias=True, reverse=False, gain=1.0, device=None, dtype=None):
        super().__init__(in_features, out_features, bias, device, dtype)
        self.reverse, self.gain = reverse, gain
        self.column = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.row = nn.Parameter(torch.empty(in_features - 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self):
        for factor in (self.column, self.row):
            nn.init.normal_(factor, std=self.in_features**-0.5)
        self._reset_bias()

    def matrix(self):
        found = mw.structures.Toeplitz(self.gain * self.column, self.gain * self.row)
        if not self.reverse:
            return found
        return found @ mw.structures.Permutation(torch.arange(self.in_features - 1, -1, -1, device=self.row.device))

    @classmethod
    def from_linear(cls, linear, reverse=False, gain=1.0, *, input_covariance=None):
        weight = linear.weight.detach().flip(1) if reverse else linear.weight.detach()
        found = mw.structures.project_toeplitz(weight / gain).matrix
        return cls._from(linear, {"column": found.column, "row": found.row}, reverse=reverse, gain=gain)


@mw.register("config")
@dataclasses.dataclass(frozen=True)
class ToeplitzConfig(mw.convert.LayerConfig):
    reverse: bool = False
    gain: float = 1.0
    device: int = 3
    steps: int = 2
    name: ClassVar[str] = "toeplitz"
    fitting: ClassVar[tuple[str, ...]] = ("device", "steps")

    def project(self, linear, input_covariance):
        return ToeplitzLinear.from_linear(linear, self.reverse, self.gain)


@mw.register("layer", "mine.average")
class Average(nn.Module):
    def __init__(self, d_model, decay=0.5, **more):
        super().__init__()
        self.weight = nn.Parameter(torch.full((d_model,), float(decay)))
        self.more = more

    def forward(self, u, lengths=None):
        return u.cumsum(1) * self.weight


class DelayStepper(mw.nn.Stepper):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)

    def initial_state(self, batch_size):
        return self.weight.new_zeros(batch_size, len(self.weight))

    def forward(self, u, state):
        return self.weight * state, u

    def read(self, u, state):
        return self.weight * torch.cat([state[:, None], u[:, :-1]], 1), u[:, -1]


@mw.register("layer", "delay")
class Delay(mw.nn.filters.Filter):
    def __init__(self, d_model, scale=1.0):
        super().__init__()
        self.d_model, self.scale = d_model, scale
        self.weight = nn.Parameter(torch.empty(d_model))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.constant_(self.weight, self.scale)

    def forward(self, u, state=None, *, lengths=None, rate=1.0, return_state=False):
        state = torch.zeros_like(u[..., 0, :]) if state is None else state
        y = self.weight * torch.cat([state[..., None, :], u[..., :-1, :]], -2)
        return (y, u[..., -1, :]) if return_state else y

    def stepper(self, rate=1.0):
        return DelayStepper(self.weight)


@mw.register("model", "mine.net")
class Net(mw.models.Model):
    """A network.

    Args:
        d_input: Features.
        d_output: Outputs.
        width: Channels inside.
    """

    def __init__(self, d_input: int, d_output: int, width: int = 4):
        super().__init__(d_input=d_input, d_output=d_output, width=width)
        self.layer = mw.nn.build_sequence_layer({"name": "delay"}, d_input)
        self.inner, self.head = nn.Linear(d_input, width), nn.Linear(width, d_output)

    def forward(self, inputs, lengths=None):
        return self.head(self.inner(self.layer(inputs)).relu().mean(1))
'''
SAVE = """
import torch, milkweed as mw, my_parts
from my_parts import Reflection, ToeplitzConfig
v = torch.nn.functional.normalize(torch.randn(6, dtype=torch.complex128), dim=0)
other = Reflection(torch.ones(1, dtype=torch.float64), "b", ((torch.arange(2.0), 1.5), None))
matrix = mw.structures.Product((Reflection(v, "x", (other, True)), Reflection(v)))
mw.structures.save(matrix, "matrix.safetensors")
spec = {"name": "toeplitz", "reverse": True, "gain": 0.5}
nets = {
    "average": mw.models.SequenceModel(3, 2, 4, 1, layer={"name": "mine.average", "decay": 0.25, "other": 1}),
    "delay": mw.models.SequenceModel(3, 2, 4, 1, layer={"name": "delay", "scale": 0.5, "activation": "relu"}),
    "mixer": mw.models.MlpMixer(3, 2, 5, 4, 1, linear=spec),
    "net": my_parts.Net(3, 2, 6),
    "converted": my_parts.Net(3, 2, 6),
}
plan = mw.plan_conversion(nets["converted"], {"inner": ToeplitzConfig(True, 0.5)})
assert "toeplitz" in str(plan), plan
report = mw.convert_(nets["converted"], plan)
assert report.converted[0].layer == {"name": "toeplitz", "reverse": True, "gain": 0.5}, report.converted
x, found = torch.randn(2, 5, 3), {}
for name, net in nets.items():
    mw.save_pretrained(net, name)
    found[name] = net.eval()(x).detach()
torch.save({"x": x, "dense": matrix.to_dense(), **found}, "outputs.pt")
"""
LOAD = """
import torch, milkweed as mw, my_parts
stored = torch.load("outputs.pt")
x, dense = stored.pop("x"), stored.pop("dense")
matrix = mw.structures.load("matrix.safetensors")
assert torch.equal(matrix.to_dense(), dense)
first = matrix.factors[0]
assert type(first) is my_parts.Reflection and first.label == "x" and first.inner[1] is True
assert first.inner[0].inner[0][1] == 1.5 and first.inner[0].inner[1] is None
assert torch.equal(first.inner[0].inner[0][0], torch.arange(2.0))
for name, y in stored.items():
    assert torch.equal(mw.load_pretrained(name)(x), y), name
assert type(mw.load_pretrained("converted").inner) is my_parts.ToeplitzLinear
layer = mw.load_pretrained("delay").blocks[0].layer
assert type(layer) is mw.nn.SequenceLayer and type(layer.filter) is my_parts.Delay
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def python(folder, code):
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the user's module, and what a process wrote that had imported it."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "my_parts.py").write_text(PARTS)
    done = python(folder, SAVE)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_kind_is_read_in_another_process(saved):
    done = python(saved, LOAD)
    assert done.returncode == 0, done.stderr


def test_a_file_imports_nothing(saved, monkeypatch):
    monkeypatch.chdir(saved)
    monkeypatch.syspath_prepend(saved)
    names = {
        "average": "mine.average",
        "delay": "delay",
        "mixer": "toeplitz",
        "net": "mine.net",
        "converted": "mine.net",
    }
    for folder, name in names.items():
        with pytest.raises(ValueError, match=rf"{name!r} is unknown.*milkweed\.register\("):
            mw.load_pretrained(folder)
    with pytest.raises(ValueError, match=r"'Reflection' is unknown.*milkweed\.register\("):
        mw.structures.load("matrix.safetensors")
    assert "my_parts" not in sys.modules


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, table):
    """A working folder with the user's module, which this process has not imported, neither before nor afterwards."""
    (tmp_path / "my_parts.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_parts", None)


def test_a_recipe_and_a_run_name_them(elsewhere, monkeypatch, capsys):
    recipe = """
data: {class_path: Digits, init_args: {batch_size: 64}}
model: {class_path: SequenceModel, init_args: {d_model: 4, depth: 1, layer: {name: delay, scale: 0.5}}}
task: {class_path: Classification, init_args: {}}
trainer: {max_epochs: 1, limit_train_batches: 2, limit_val_batches: 1, limit_test_batches: 1}
"""
    (elsewhere / "mine.yaml").write_text(recipe)
    with monkeypatch.context() as inner:
        inner.setattr(_registry, "_classes", {kind: dict(known) for kind, known in _registry._classes.items()})
        assert main(["--import", "my_parts", "train", "mine.yaml", "--name", "first"]) == 0
    assert "scale: 0.5" in (elsewhere / "runs" / "first" / "config.yaml").read_text()
    sys.modules.pop("my_parts")
    capsys.readouterr()
    assert main(["evaluate", "runs/first"]) == 2
    assert "layer.name='delay' is unknown" in capsys.readouterr().err
    assert main(["--import=my_parts.py", "evaluate", "runs/first"]) == 0


def test_a_recipe_names_a_model(elsewhere, capsys):
    (elsewhere / "net.yaml").write_text(
        "data: {class_path: Digits}\nmodel: {class_path: mine.net}\ntask: {class_path: Classification}\n"
        "trainer: {max_epochs: 1}\n"
    )
    assert main(["--import", "my_parts", "train", "net.yaml", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--model.width" in shown
    assert "Channels inside" in shown
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    shown = capsys.readouterr().out
    assert "toeplitz" in shown
    assert "--steps" in shown
    assert "--device DEVICE" in shown  # the command's own
    assert main(["train", "digits", "--help"]) == 0
    assert "mine.average" in capsys.readouterr().out


def test_a_module_to_import_that_is_not_there(capsys):
    for name in ("no_such_module", "no.such.module", "no/such", ""):
        assert main(["--import", name, "recipes"]) == 2
        assert "there is no such module" in capsys.readouterr().err


def test_taken_names_stay_with_their_classes(table):
    before = registered("model")["SequenceModel"]

    class SequenceModel(mw.models.Model):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 2)

    assert registered("model")["SequenceModel"] is before
    with pytest.raises(TypeError, match=r"'SequenceModel' is milkweed.*milkweed\.register\('model', 'a_name'\)"):
        _ = SequenceModel().config
    for kind, name in (("structure", "Monarch"), ("linear", "monarch"), ("layer", "s4"), ("model", "MlpMixer")):
        with pytest.raises(NameTakenError, match=rf"{kind} {name!r} is .* already; .*'my_{name}'"):
            mw.register(kind, name, type(name, (registered(kind)[name],), {}))
    mw.register("model", "mine", SequenceModel)
    assert SequenceModel().config == {"name": "mine", "options": {}}
    assert type(mw.models.build_model({"name": "mine"})) is SequenceModel


def test_the_same_class_may_come_again(table):
    def define(size):
        @mw.register("linear", "again")
        class Again(mw.nn.LowRankLinear):
            bound = size

        return Again

    first, second = define(1), define(2)
    assert registered("linear")["again"] is second
    for kind in (first, second):
        assert mw.nn.factory.linear_spec(kind(4, 4, 2)) == {"name": "again", "bias": True, "rank": 2}
    mw.register("linear", "newer", second)
    assert mw.nn.factory.linear_spec(second(4, 4, 2))["name"] == "newer"
    assert type(mw.nn.build_linear({"name": "again", "rank": 2}, 4, 4)) is second
    mw.register("linear", "again", second)
    assert mw.nn.factory.linear_spec(second(4, 4, 2))["name"] == "again"


def test_options_that_a_subclass_adds_are_written(table):
    class Gained(mw.nn.MonarchLinear):
        def __init__(self, in_features, out_features, nblocks=4, bias=True, gain=1.0, device=None, dtype=None):
            super().__init__(in_features, out_features, nblocks, bias, device=device, dtype=dtype)
            self.gain = gain

    class Forgetful(mw.nn.MonarchLinear):
        def __init__(self, in_features, out_features, nblocks=4, bias=True, gain=1.0):
            super().__init__(in_features, out_features, nblocks, bias)

    with pytest.raises(TypeError, match=r"Gained has no name .*; register it: milkweed\.register\('linear'"):
        mw.nn.factory.linear_spec(Gained(16, 16))
    mw.register("linear", "gained", Gained)
    mw.register("linear", "forgetful", Forgetful)
    spec = mw.nn.factory.linear_spec(Gained(16, 16, gain=2.0))
    assert spec == {"name": "gained", "bias": True, "nblocks": 4, "gain": 2.0}
    assert mw.nn.build_linear(spec, 16, 16).gain == 2.0
    with pytest.raises(TypeError, match="must keep its option 'gain'"):
        mw.nn.factory.linear_spec(Forgetful(16, 16, gain=2.0))


class Plain(nn.Module):
    def __init__(self, **options):
        super().__init__()


class Gated(mw.nn.LongConv):
    def __init__(self, d_model, gate=1.0):
        super().__init__(d_model, 4)


class Unnamed(LayerConfig):
    pass


class Bare(mw.structures.Diagonal):
    more: int = 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            ("layers", "mine", Plain),
            ValueError,
            r"did you mean 'layer'.*the kind comes first",
        ),
        (("mine",), ValueError, "kind='mine' is unknown"),
        ((Plain,), TypeError, "the kind comes first"),
        ((["layer"], "mine", Plain), TypeError, "the kind comes first"),
        (("layer", 3, Plain), TypeError, "name must be a string, or None for the class's own; got 3"),
        (("layer", "", Plain), ValueError, "name must be letters"),
        (("layer", "a b", Plain), ValueError, "name must be letters"),
        (("layer", "../a", Plain), ValueError, "name must be letters"),
        (("layer", "a\n", Plain), ValueError, "name must be letters"),
        (("layer", "mine", lambda d_model: None), TypeError, "a layer must be a class"),
        (("layer", "mine", Plain), TypeError, "Plain must take d_model first"),
        (("layer", "mine", Gated), TypeError, "'gate' is an option of the SequenceLayer around"),
        (("layer", "mine", int), TypeError, "must be a torch.nn.Module or a milkweed.nn.filters.Filter"),
        (("layer", "mine", mw.nn.filters.Filter), TypeError, "Filter is abstract .* define forward"),
        (("linear", "mine", nn.Bilinear), TypeError, "must be a subclass of milkweed.nn.StructuredLinear"),
        (("linear", "mine", mw.nn.StructuredLinear), TypeError, "is abstract"),
        (("structure", "mine", nn.Linear), TypeError, "must be a subclass of milkweed.structures.StructuredMatrix"),
        (("structure", "mine", Bare), TypeError, "Bare must be a dataclass"),
        (("model", "mine", nn.Linear), TypeError, "must be a subclass of milkweed.models.Model"),
        (("data", "mine", nn.Linear), TypeError, "must be a subclass of milkweed.data.SequenceData"),
        (("data", "mine", mw.data.SequenceData), TypeError, "SequenceData is abstract .* define load"),
        (("task", "mine", nn.Linear), TypeError, "must be a subclass of milkweed.tasks.Task"),
        (("config", "mine", nn.Linear), TypeError, "must be a subclass of milkweed.convert.LayerConfig"),
        (("config", "mine", Unnamed), TypeError, "must be a dataclass"),
        (("config", "mine", mw.MonarchConfig), TypeError, "MonarchConfig.name must be 'mine' too"),
    ],
)
def test_bad_registrations(table, call, error, message):
    before = {kind: registered(kind) for kind in KINDS}
    with pytest.raises(error, match=message):
        mw.register(*call)
    assert {kind: registered(kind) for kind in KINDS} == before


@pytest.mark.parametrize("name", ["monrach", None, 3, ["monarch"], {"name": 1}])
def test_unknown_names(name):
    hint = "did you mean 'monarch'" if name == "monrach" else "is unknown"
    for build in (
        lambda: mw.nn.build_linear({"name": name}, 4, 4),
        lambda: mw.nn.build_sequence_layer({"name": name}, 4),
        lambda: mw.models.build_model({"name": name}),
    ):
        with pytest.raises(ValueError, match=r"is unknown.*milkweed\.register"):
            build()
    with pytest.raises(ValueError, match=hint):
        mw.nn.build_linear({"name": name}, 4, 4)


def test_a_structure_with_a_field_that_no_file_holds(table, tmp_path):
    @mw.register("structure", "odd")
    @dataclasses.dataclass(frozen=True, eq=False, repr=False)
    class Odd(mw.structures.Diagonal):
        extra: object = None

    entries = torch.ones(3)
    for extra in ([1], {"a": 1}, torch.float32, (None, {1})):
        with pytest.raises(TypeError, match=r"extra.* must be a tensor, a structure, a number"):
            mw.structures.save(Odd(entries, extra=extra), tmp_path / "odd.safetensors")
    assert not list(tmp_path.iterdir())


def test_many_threads_register_at_once(table):
    failed = []

    def work(number):
        try:
            for each in range(50):
                mw.register("linear", f"thread{number}.{each}", mw.nn.LowRankLinear)
                assert registered("linear")[f"thread{number}.{each}"] is mw.nn.LowRankLinear
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert sum(name.startswith("thread") for name in registered("linear")) == 400


def test_the_example_in_the_docstring(table):
    (example,) = doctest.DocTestFinder(recurse=False).find(mw.register, "register", globs={})
    assert doctest.DocTestRunner().run(example).failed == 0
    assert "doubled_low_rank" in registered("linear")


@dataclasses.dataclass(frozen=True)
class Mixed(LayerConfig):
    width: int
    depth: int | None = None
    share: float = 0.5
    kind: str = "a"
    sizes: tuple[int, ...] = (1, 2)
    name: ClassVar[str] = "mixed"


def test_fields_of_configurations_that_are_no_whole_numbers(table):
    mw.register("config", None, Mixed)
    assert Mixed(2).spec() == {"name": "mixed", "width": 2, "share": 0.5, "kind": "a", "sizes": (1, 2)}
    for options in ({"width": 0}, {"width": 2, "depth": 0}):
        with pytest.raises(ValueError, match="must be at least 1; got 0"):
            Mixed(**options)
    for options in ({"width": 1.0}, {"width": None}, {"width": 2, "depth": "3"}, {"width": True}):
        with pytest.raises(TypeError, match="must be an integer"):
            Mixed(**options)
    model = nn.Sequential(nn.Linear(4, 4)).to("meta")
    with pytest.raises(ValueError, match=r"Mixed\.name='mixed' is unknown.*milkweed\.register\('linear'"):
        mw.plan_conversion(model, {"0": Mixed(2)})


def test_what_the_library_registers():
    public = {"structure": mw.structures, "linear": mw.nn, "layer": mw.nn, "config": mw.nn, "model": mw.models}
    public |= {"data": mw.data, "task": mw.tasks}
    for kind, room in public.items():
        own = {cls for cls in registered(kind).values() if cls.__module__.startswith("milkweed.")}
        assert own
        for cls in own:
            assert getattr(room, cls.__name__) is cls
    bases = {"structure": mw.structures.StructuredMatrix, "linear": mw.nn.StructuredLinear, "config": LayerConfig}
    for kind, base in bases.items():
        for cls in vars(public[kind]).values():
            if isinstance(cls, type) and issubclass(cls, base) and not inspect.isabstract(cls) and cls is not base:
                assert _registry.name_of(kind, cls)


def test_config_of_records(saved):
    """The names in the files are those that were registered."""
    from safetensors import safe_open

    with safe_open(saved / "converted" / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["config"])["name"] == "mine.net"
    layers = json.loads(metadata["conversion"])[0]["layers"]
    assert layers == [{"name": "toeplitz", "bias": True, "reverse": True, "gain": 0.5}]


def test_data_modules_and_tasks_have_the_names_of_their_classes(table):
    class Waves(mw.data.Digits):
        pass

    class Guess(mw.tasks.Regression):
        pass

    class Unfinished(mw.data.SequenceData):
        pass

    class Digits(mw.data.Mnist):
        pass

    assert registered("data")["Waves"] is Waves
    assert registered("task")["Guess"] is Guess
    assert "Unfinished" not in registered("data")
    assert registered("data")["Digits"] is mw.data.Digits
    assert mw.register("data", "mine.digits", Digits) is registered("data")["mine.digits"]


class TinyDigits(mw.data.Digits):
    """Digits by another name."""


class Judged(mw.tasks.Classification):
    """A classification by another name."""


@pytest.mark.usefixtures("table")
def test_recipes_name_data_models_and_tasks_by_any_registered_name():
    from milkweed.cli.build import resolve
    from milkweed.cli.recipe import find_recipe

    mw.register("data", "tiny", TinyDigits)
    mw.register("task", "judged", Judged)
    mw.register("model", "network", mw.models.SequenceModel)
    values = find_recipe("digits").values
    names = {"data": "tiny", "task": "judged", "model": "network"}
    found = resolve(values | {key: values[key] | {"class_path": name} for key, name in names.items()}, [])
    assert {key: found[key]["class_path"] for key in names} == {
        "data": f"{__name__}.TinyDigits",
        "task": f"{__name__}.Judged",
        "model": "milkweed.models.SequenceModel",
    }
    assert found["data"]["init_args"]["batch_size"] == values["data"]["init_args"]["batch_size"]
