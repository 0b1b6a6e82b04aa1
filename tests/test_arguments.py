"""Every public call refuses a wrong argument by its name: no raw error, no wrong type taken, no size that hangs."""

import importlib
import inspect
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from milkweed import _registry, convert, data, models, nn, ops, ssm, structures, tasks
from milkweed._arguments import checked
from tests.argument_calls import CALLS, NOT_CALLED, prepare
from tests.contracts.arguments import WRONG, code_of, faults, takes_arguments

MODULES = ("", ".ops", ".structures", ".ssm", ".nn", ".nn.filters", ".models", ".convert")
# Of every so many wrong values one is tried, unless all cases are asked for.
SAMPLED = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("calls")
    prepare(made)
    return made


@pytest.mark.parametrize(("first", "name"), list(enumerate(CALLS)), ids=list(CALLS))
def test_one_wrong_argument(first, name, folder, monkeypatch, request):
    monkeypatch.chdir(folder)
    every = 1 if request.config.getoption("all_cases", default=False) else SAMPLED
    assert list(faults(CALLS[name], every=every, first=first)) == []


def test_values_are_sampled_evenly():
    tried = []
    for first in range(SAMPLED):

        def call(x: object) -> None:
            tried.append(type(x) if isinstance(x, torch.Tensor) else repr(x))

        list(faults(lambda call=call: (call, {"x": 0}), every=SAMPLED, first=first))
    assert len(tried) == len(WRONG) + SAMPLED


def _public():
    """All that users may call with arguments: functions, constructors, methods, and steppers of what has them."""
    found = {}
    for module in MODULES:
        package = importlib.import_module(f"milkweed{module}")
        for name in package.__all__:
            public = getattr(package, name)
            if callable(public) and not (inspect.isclass(public) and issubclass(public, BaseException)):
                found |= {code: said for said, code in takes_arguments(public)}
    for name, call in CALLS.items():
        if name.endswith(".stepper"):
            stepper = call()[0]()
            methods = {method: code_of(getattr(stepper, method)) for method in ("forward", "read", "initial_state")}
            found |= {code: f"{name}().{method}" for method, code in methods.items()}
    return found


def test_every_public_callable_is_called():
    called = {code_of(call()[0]) for call in CALLS.values()}
    missing = {said for code, said in _public().items() if code not in called}
    assert missing == NOT_CALLED


def test_absurd_sizes_are_refused(folder):
    """In a process with 6 GB and 20 seconds for each call: what is not refused is found out, and harms nothing."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.contracts.arguments", str(folder), str(6 << 30), "20"],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


def test_sizes_beyond_the_memory_are_named():
    @checked
    def make(rows: int, columns: int) -> torch.Tensor:
        return torch.empty(rows, columns, dtype=torch.float64)

    with pytest.raises(ValueError, match=r"^not enough memory for rows=2000000000, columns=2000000000; use smaller"):
        make(2_000_000_000, 2_000_000_000)


@pytest.mark.usefixtures("table")
def test_registering_refuses_by_name():
    def call():
        return _registry.register, {"kind": "linear", "name": "walked", "cls": type("Walked", (nn.LowRankLinear,), {})}

    assert list(faults(call)) == []


@pytest.mark.parametrize("size", [np.int64(8), np.int32(8), np.uint8(8)])
def test_sizes_may_be_numpy_integers(size):
    layer = nn.MonarchLinear(size, size, 2)
    assert type(layer.in_features) is int
    assert ssm.hippo("legs", size)[0].shape == (8, 8)
    assert structures.monarch_dct(size).shape == (8, 8)
    assert ops.diagonal_ssm_kernel(torch.randn(3, 2), -torch.rand(3, 2), size).shape == (8,)
    assert nn.S4D(4, size, dt_min=np.float32(1e-3))(torch.randn(1, size, 4)).shape == (1, 8, 4)
    assert type(models.M2Bert(d_input=size, d_model=8, depth=1).options["d_input"]) is int


NUMBERS = {
    "a tensor": torch.tensor,
    "an array": np.array,
    "a numpy number": lambda value: np.array([value])[0],
}


@pytest.mark.parametrize("made", NUMBERS.values(), ids=NUMBERS)
def test_single_numbers_are_taken_from_tensors_and_arrays(made):
    x = torch.eye(3), torch.ones(3)
    torch.testing.assert_close(ssm.discretize(*x, dt=made(0.5)), ssm.discretize(*x, dt=0.5))
    assert torch.equal(ssm.hippo("glagt", 8, alpha=made(0.5))[0], ssm.hippo("glagt", 8, alpha=0.5)[0])
    assert ssm.log_timescale(8, dt_min=made(0.25), dt_max=made(0.5)).shape == (8,)
    assert ssm.Reconstruction("legs", 8, dt=made(0.125)).dt == 0.125
    assert nn.parameter_groups(nn.S4D(4, 8), lr=made(0.5), weight_decay=0)[0]["lr"] == 0.5
    assert type(nn.MonarchLinear(8, 8, made(2)).nblocks) is int
    assert nn.MonarchLinear(8, 8, 2, bias=made(False)).bias is None
    with pytest.raises(TypeError, match=r"^nblocks must be an integer; got "):
        nn.MonarchLinear(8, 8, made(2.0))
    with pytest.raises(TypeError, match=r"^bias must be True or False; got "):
        nn.MonarchLinear(8, 8, 2, bias=made(1))


def test_lists_of_numbers_may_be_arrays():
    assert nn.S4ND(8, dims=2, d_state=4, dt_min=np.array([0.01, 0.02])).filter.axes[1].dt_min == 0.02
    assert models.Sashimi(4, 4, d_model=8, depth=1, pool=np.array([2])).options["pool"] == [2]
    assert nn.ButterflyLinear(8, 8, digits=np.array([2, 4])).digits == (2, 4)
    assert models.M2Vit(3, 10, size=np.array([8, 8]), patch=4, d_model=8, depth=1).options["size"] == [8, 8]
    with pytest.raises(TypeError, match=r"^digits must be a list of integers, or None; got ndarray$"):
        nn.ButterflyLinear(8, 8, digits=np.ones((2, 2), int))


def test_names_may_be_a_set_and_pairs_a_list():
    for frozen in ({"dt", "A"}, frozenset({"dt", "A"}), {"A": 1, "dt": 1}.keys()):
        assert nn.S4D(4, 8, frozen=frozen).filter.frozen == ("A", "dt")
    with pytest.raises(TypeError, match=r"^frozen must be a list of names; got set$"):
        nn.S4D(4, 8, frozen={1})
    assert structures.project_monarch(torch.randn(12, 12), [3, 2]).matrix.right.shape[0] == 3


def test_plain_values_may_be_those_of_numpy():
    config = convert.MonarchConfig(nblocks=np.int64(4), rank=np.int64(2))
    assert config == convert.MonarchConfig(nblocks=4, rank=2)
    assert type(config.nblocks) is int
    spec = {"name": np.str_("monarch"), "nblocks": np.int64(4)}
    layer = nn.build_linear(spec, 16, 16)
    assert json.dumps(layer.options)
    model = models.SequenceModel(1, 2, d_model=8, depth=1, layer={"name": "s4d", "dt_min": np.float32(0.01)})
    assert json.loads(json.dumps(model.config)) == model.config
    mixer = models.M2Bert(8, d_model=8, depth=1, kernel_options=types.MappingProxyType({"squash": np.float64(0.5)}))
    assert json.loads(json.dumps(mixer.config)) == mixer.config
    dense = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    budget = {"calibration": [torch.randn(4, 64)], "candidates": [convert.MonarchConfig(4)]}
    plan = convert.plan_conversion(dense, {"re:.*": convert.MonarchConfig(4)}, parameters=np.float32(1), **budget)
    assert list(plan.layers) == ["0", "1"]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: nn.S4D(4, 8, dropout=p),
        lambda p: nn.Mlp(4, 8, dropout=p),
        lambda p: nn.ResidualBlock(nn.S4D(4, 8), 4, dropout=p),
        lambda p: models.SequenceModel(1, 2, d_model=4, depth=1, dropout=p),
        lambda p: models.MlpMixer(1, 2, 4, d_model=4, depth=1, dropout=p),
        lambda p: models.Sashimi(4, 4, d_model=4, depth=1, dropout=p),
    ],
)
def test_dropout_is_refused_by_name(make):
    assert _said(make, 2) == "dropout must be in 0 <= p <= 1; got 2"


WRONG_OPTIONS = [
    (data.Digits, {"rows": "no"}, "rows must be True or False; got 'no'"),
    (data.Digits, {"limit": True}, "limit must be an integer, or None; got True"),
    (data.Digits, {"seed": "x"}, "seed must be an integer; got 'x'"),
    (data.Digits, {"batch_size": "3"}, "batch_size must be an integer; got '3'"),
    (data.Mnist, {"root": 3}, "root must be a path; got int"),
    (data.Delay, {"band": "wide"}, "band must be a number; got 'wide'"),
    (data.Text, {"file": None}, "file must be a path; got NoneType"),
    (data.MaskedText, {"source": "s", "tokenizer": 3}, "tokenizer must be a path; got int"),
    (data.Glue, {"task": "cola", "tokenizer": "t", "whole": 1}, "whole must be True or False; got 1"),
    (data.Retrieval, {"source": "s", "tokenizer": "t", "negatives": 1.5}, "negatives must be an integer; got 1.5"),
    (tasks.Classification, {"num_classes": "2"}, "num_classes must be an integer; got '2'"),
    (tasks.Glue, {"num_classes": True}, "num_classes must be an integer; got True"),
    (tasks.Retrieval, {"in_batch": "no"}, "in_batch must be True or False; got 'no'"),
    (tasks.MaskedLanguage, {"pretrained": 3}, "pretrained must be a path; got int"),
]


@pytest.mark.parametrize(("cls", "options", "message"), WRONG_OPTIONS)
def test_data_and_tasks_refuse_options_of_other_types(cls, options, message):
    assert _said(cls, **options) == message
    written = inspect.signature(inspect.unwrap(cls.__init__)).parameters
    assert ["self", *inspect.signature(cls).parameters] == list(written)


def test_data_take_paths_and_numbers_of_numpy(tmp_path):
    assert data.Mnist(root=tmp_path, batch_size=np.int64(4)).root == tmp_path
    assert data.Text(tmp_path / "a.txt", length=np.int64(8)).file == tmp_path / "a.txt"


def test_signals_of_another_dtype_are_refused_by_name():
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    own = "must be torch.float32 as the parameters are; got torch.float64; use"
    mixers = models.SequenceModel(3, 2, d_model=4, depth=1), models.MlpMixer(3, 2, 4, d_model=4, depth=1)
    for model in mixers:
        assert _said(model, x) == f"inputs {own} inputs.to(torch.float32)"
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x.float()).shape == (2, 2)
    assert _said(nn.Mlp(3, 4), x) == f"x {own} x.to(torch.float32)"


def test_specs_are_called_by_their_argument():
    def mixer(spec):
        return models.MlpMixer(1, 2, 4, d_model=4, depth=1, token_linear=spec)

    assert _said(mixer, {"name": "nope"}).startswith("token_linear.name='nope' is unknown")
    assert _said(mixer, {"name": "monarch", "nblocks": 2.0}) == "token_linear.nblocks must be int; got 2.0"
    assert _said(mixer, {"name": "monarch", "no": 1}).startswith("token_linear monarch: option='no' is unknown")
    said = "token_linear must be a mapping with a name (a spec), e.g. {'name': 'monarch', 'nblocks': 4}; got {}"
    assert _said(mixer, {}) == said


def test_steps_over_which_the_state_overflows_are_refused():
    assert _said(ssm.discretize, torch.eye(3), torch.ones(3), 2**30).startswith("dt=1.07374e+09 is too long a step")
    for dt in (1e-3, 100.0):
        assert ssm.discretize(-torch.eye(3), torch.ones(3), dt)[0].isfinite().all()


def test_structures_refuse_arrays_and_what_is_no_file(tmp_path):
    matrix = structures.monarch_dct(16)
    for product in (lambda: matrix @ np.ones(16), lambda: np.ones(16) @ matrix):
        assert _said(product) == "x must be a tensor; got ndarray; use torch.as_tensor(x)"
    for path in ("", tmp_path):
        assert _said(structures.save, matrix, path).startswith("path must be a file, e.g. 'matrix.safetensors'; got ")
    said = "linear has no weight yet; run the LazyLinear on an input before"
    assert _said(nn.MonarchLinear.from_linear, torch.nn.LazyLinear(4)) == said


def test_hints_lead_to_the_right_layer_and_folder(tmp_path):
    assert _said(nn.S4D, 8, init="legt").startswith("init='legt' has no diagonal form; use S4 for it")
    convert.save_pretrained(models.SequenceModel(1, 2, d_model=4, depth=1), tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 0")
    assert _said(convert.load_pretrained, tmp_path / "config.yaml").endswith(
        f"no parameters; give its folder {tmp_path}"
    )


def test_messages_say_what_to_do():
    with pytest.raises(TypeError, match=r"^x must be a tensor; got ndarray; use torch\.as_tensor\(x\)$"):
        nn.MonarchLinear(8, 8, 2)(np.ones(8))
    with pytest.raises(TypeError, match=r"^A must be a tensor; got list; use torch\.as_tensor\(A\)$"):
        ssm.discretize([[1.0]], torch.ones(1), 0.1)
    with pytest.raises(TypeError, match=r"^bias must be True or False; got 'no'$"):
        nn.MonarchLinear(8, 8, 2, bias="no")
    with pytest.raises(ValueError, match=r"^n must be below 2\*\*31; got 1099511627776$"):
        structures.monarch_dft(2**40)
    with pytest.raises(TypeError, match=r"^dtype must be a torch.dtype, or None; got 'float32'; use e.g."):
        structures.monarch_dct(4, dtype="float32")
    with pytest.raises(ValueError, match=r"^device must be a device such as 'cpu' or 'cuda'; got 'gpu'$"):
        nn.LowRankLinear(8, 8, 2, device="gpu")
    with pytest.raises(TypeError, match=r"^digits must be a list of integers, or None; got 8$"):
        nn.ButterflyLinear(8, 8, digits=8)


def _said(call, *args, **options):
    with pytest.raises((TypeError, ValueError)) as error:
        call(*args, **options)
    return str(error.value)


LAYERS = {
    "S4D": lambda: nn.S4D(4, 8),
    "S4": lambda: nn.S4(4, 8),
    "LongConv": lambda: nn.LongConv(4, 9),
    "CausalMonarchMixer": lambda: nn.CausalMonarchMixer(4, 9),
    "GatedMixer": lambda: nn.GatedMixer(4, 9),
    "ResidualBlock": lambda: nn.ResidualBlock(nn.S4D(4, 8), 4),
    "Mlp": lambda: nn.Mlp(4, 8),
}


@pytest.mark.parametrize("wrong", [None, [1.0], np.ones((2, 4)), "u"], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_steppers_use_the_same_words(name, wrong):
    layer = LAYERS[name]()
    stepper = layer.stepper()
    state = stepper.initial_state(2)
    said = {_said(layer, wrong), _said(stepper, wrong, state), _said(stepper.read, wrong, state)}
    # Blocks and feed-forward layers call their input x.
    assert {words.replace("x must", "u must").replace("as_tensor(x)", "as_tensor(u)") for words in said} == {
        f"u must be a tensor; got {type(wrong).__name__}; use torch.as_tensor(u)"
    }


@pytest.mark.parametrize("rate", [None, 0, -1.0, float("nan"), float("inf"), "1", True])
@pytest.mark.parametrize("name", ["S4D", "S4", "LongConv", "CausalMonarchMixer"])
def test_layers_and_their_steppers_refuse_the_same_rates(name, rate):
    layer = LAYERS[name]()
    assert _said(layer, torch.randn(1, 4, 4), rate=rate) == _said(layer.stepper, rate)


@pytest.mark.parametrize("lengths", [[3], torch.tensor([0]), torch.tensor([9]), torch.tensor([1.0])])
def test_layers_norms_and_pooling_refuse_the_same_lengths(lengths):
    u = torch.randn(1, 8, 4)
    norm = nn.SequenceNorm("batch", 4)
    pooled = models.SequenceModel(4, 2, d_model=4, depth=1, pooling="mean")
    said = {
        _said(call, u, lengths=lengths) for call in (nn.S4D(4, 8), nn.LongConv(4, 9), nn.GatedMixer(4, 9), norm, pooled)
    }
    assert len(said) == 1


def test_checks_leave_compiled_graphs_whole():
    layer = nn.S4D(4, 8).eval()
    u = torch.randn(1, 9, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(u), layer(u))
    length = torch.export.Dim("length", min=2)
    exported = torch.export.export(layer, (u,), dynamic_shapes={"u": {1: length}}).module()
    longer = torch.randn(1, 30, 4)
    torch.testing.assert_close(exported(longer), layer(longer))


def test_gates_are_traced_through():
    @checked
    def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
        return x * factor

    x = torch.randn(3)
    assert torch.equal(torch.compile(scaled, fullgraph=True, backend="eager")(x, 2.0), 2 * x)
