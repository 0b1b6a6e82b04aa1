"""The models' contract: plain values in, one file out and back, and the promised shapes."""

import inspect
import json

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.checkpoint import checkpoint

import milkweed as mw
from milkweed.models import LinearMemory, MlpMixer, SequenceModel, build_model
from milkweed.nn import MonarchLinear

# Every option away from its default, so that one that is not kept would show.
CASES = {
    "s4d": (
        SequenceModel,
        {
            "d_input": 2,
            "d_output": 3,
            "d_model": 8,
            "depth": 2,
            "layer": {"name": "s4d", "d_state": 6, "init": "lin", "bidirectional": True},
            "norm": "batch",
            "prenorm": False,
            "dropout": 0.1,
            "pooling": "last",
            "encoder": "linear",
        },
    ),
    "memory": (
        LinearMemory,
        {
            "d_input": 2,
            "d_output": 3,
            "d_model": 4,
            "layer": {"activation": "none", "output": "none", "name": "s4", "d_state": 6, "frozen": ["C", "D"]},
            "readout": "state",
        },
    ),
    "mixer": (
        MlpMixer,
        {
            "d_input": 2,
            "d_output": 3,
            "length": 16,
            "d_model": 16,
            "depth": 1,
            "token_dim": 32,
            "channel_dim": 48,
            "linear": {"name": "monarch", "nblocks": 4},
            "dropout": 0.1,
            "token_linear": {"name": "dense"},
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
class TestContract:
    def test_every_option_is_in_the_config(self, case):
        cls, options = CASES[case]
        assert set(options) == set(inspect.signature(cls).parameters)
        config = cls(**options).config
        assert json.loads(json.dumps(config)) == {"name": cls.__name__, "options": options}

    def test_save_and_load(self, case, tmp_path):
        cls, options = CASES[case]
        model = cls(**options)
        model(torch.randn(4, 16, 2))  # batch norm now has statistics of its own
        file = mw.save_pretrained(model, tmp_path / "model")
        for path in (file, tmp_path / "model"):
            loaded = mw.load_pretrained(path)
            assert type(loaded) is cls
            assert not loaded.training
            x = torch.randn(4, 16, 2)
            assert torch.equal(loaded(x), model.eval()(x))
        assert [f.name for f in (tmp_path / "model").iterdir()] == ["model.safetensors"]

    def test_shapes_and_gradients(self, case):
        cls, options = CASES[case]
        model = cls(**options)
        y = model(torch.randn(4, 16, 2), lengths=torch.tensor([16, 16, 3, 1]))
        assert y.shape == (4, 3)
        y.square().sum().backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)

    def test_gradient_checkpointing(self, case):
        cls, options = CASES[case]
        model = cls(**options | ({"dropout": 0.0} if "dropout" in options else {})).eval()
        x = torch.randn(4, 16, 2)
        checkpoint(model, x, use_reentrant=False).sum().backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        saved = [p.grad.clone() for p in trained]
        model.zero_grad()
        model(x).sum().backward()
        for a, p in zip(saved, trained, strict=True):
            torch.testing.assert_close(a, p.grad)

    def test_meta_device(self, case):
        cls, options = CASES[case]
        with torch.device("meta"):
            model = cls(**options)
        assert model.eval()(torch.empty(2, 16, 2, device="meta")).shape == (2, 3)

    def test_wrong_inputs(self, case):
        cls, options = CASES[case]
        model = cls(**options)
        for shape in [(4, 16, 3), (16, 2), (4, 0, 2)]:
            with pytest.raises(ValueError, match="d_input=2"):
                model(torch.randn(*shape))


def test_one_training_step_through_the_compiler():
    model = SequenceModel(1, 3, 8, 1, {"name": "s4d", "d_state": 4})
    compiled = torch.compile(model, fullgraph=True)  # inductor, as users call it
    x = torch.randn(4, 20, 1)
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model(x).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last", "none"])
def test_pooling_ignores_padding(pooling):
    model = SequenceModel(2, 3, 8, 2, {"name": "s4d", "d_state": 4, "bidirectional": True}, pooling=pooling).double()
    x = torch.randn(2, 12, 2, dtype=torch.float64)
    padded = x.clone()
    padded[1, 5:] = float("nan")
    y = model(padded, lengths=torch.tensor([12, 5]))
    alone = model(x[1:, :5])
    torch.testing.assert_close(y[1, :5] if pooling == "none" else y[1], alone[0])


@pytest.mark.parametrize("readout", ["outputs", "state"])
@pytest.mark.parametrize("name", ["s4", "s4d"])
def test_memory_is_linear_and_ignores_padding(name, readout):
    model = LinearMemory(1, 3, 4, {"name": name, "d_state": 6}, readout).double()
    x, other = torch.randn(2, 2, 12, 1, dtype=torch.float64)
    rest = model(torch.zeros_like(x))
    torch.testing.assert_close(model(x + 2 * other) - rest, model(x) + 2 * model(other) - 3 * rest)
    padded = x.clone()
    padded[1, 5:] = float("nan")
    y, alone = model(padded, lengths=torch.tensor([12, 5])), model(x[1:, :5])
    torch.testing.assert_close(y[1, :5] if readout == "outputs" else y[1], alone[0])


def test_memory_reads_the_state_the_layer_is_left_with():
    model = LinearMemory(1, 6, 1, {"name": "s4", "d_state": 6}, "state")
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(6))
        model.head.bias.zero_()
    x = torch.randn(2, 12, 1)
    stepper = model.layer.stepper()
    state = stepper.initial_state(2)
    for step in range(12):
        _, state = stepper(x[:, step], state)
    torch.testing.assert_close(model(x), state.flatten(1))


def test_mixer_has_one_length():
    model = MlpMixer(1, 3, length=16)
    with pytest.raises(ValueError, match="built for length=16"):
        model(torch.randn(2, 15, 1))


def test_monarch_mixer_is_smaller():
    dense, monarch = (
        sum(p.numel() for p in MlpMixer(1, 10, 64, linear={"name": name}).parameters()) for name in ("dense", "monarch")
    )
    assert monarch < 0.45 * dense


def test_mixer_has_its_own_layers_along_the_sequence():
    monarch, dense = {"name": "monarch", "nblocks": 4}, {"name": "dense"}
    with pytest.raises(ValueError, match="nblocks=4 needs in_features >= 13; got in_features=8"):
        MlpMixer(1, 3, 8, d_model=32, depth=1, linear=monarch)
    (block,) = MlpMixer(1, 3, 8, d_model=32, depth=1, linear=monarch, token_linear=dense).blocks
    assert isinstance(block.channels.up, MonarchLinear)
    assert isinstance(block.tokens.up, torch.nn.Linear)
    with pytest.raises(TypeError, match="token_linear must be a mapping"):
        MlpMixer(1, 3, 8, token_linear="dense")
    with pytest.raises(ValueError, match="token_linear must be a mapping with a name"):
        MlpMixer(1, 3, 8, token_linear={"nblocks": 4})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SequenceModel(1, 2, layer={"name": "s5d"}), "layer.name='s5d' is unknown; did you mean 's4d'"),
        (lambda: SequenceModel(1, 2, layer={"name": "s4d", "d_stat": 4}), "did you mean 'd_state'"),
        (lambda: SequenceModel(1, 2, layer={"d_state": 4}), "layer must be a mapping with a name"),
        (lambda: SequenceModel(1, 2, layer="s4d"), "layer must be a mapping with a name"),
        (lambda: SequenceModel(1, 2, layer={"name": "s4d", "d_state": "8"}), "layer.d_state must be int; got '8'"),
        (lambda: SequenceModel(1, 2, layer={"name": "s4d", "device": "cpu"}), "option='device' is unknown"),
        (lambda: SequenceModel(1, 2, pooling="max"), "pooling='max' is unknown"),
        (lambda: SequenceModel(1, 2, norm="group"), "norm='group' is unknown"),
        (lambda: SequenceModel(1, 2, depth=0), "depth must be at least 1"),
        (lambda: LinearMemory(1, 0), "d_output must be at least 1"),
        (lambda: LinearMemory(1, 2, layer="s4"), "layer must be a mapping with a name"),
        (lambda: LinearMemory(1, 2, readout="sate"), "did you mean 'state'"),
        (lambda: LinearMemory(1, 2, 1, {"name": "s4", "bidirectional": True}, "state"), "only looks back"),
        (lambda: MlpMixer(1, 2, 8, linear={"name": "monarch", "blocks": 2}), "did you mean 'nblocks'"),
        (lambda: MlpMixer(1, 2, 0), "length must be at least 1"),
        (lambda: build_model({"name": "SequenceModle"}), "did you mean 'SequenceModel'"),
        (lambda: build_model({"name": "MlpMixer", "options": {"d_inptu": 1}}), "did you mean 'd_input'"),
    ],
)
def test_bad_options(build, message):
    with pytest.raises(ValueError, match=message):
        build()


class TestBadFiles:
    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="does not exist; give the folder or file"):
            mw.load_pretrained(tmp_path)

    def test_truncated(self, tmp_path):
        file = mw.save_pretrained(MlpMixer(1, 2, 8), tmp_path)
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match="corrupt or truncated"):
            mw.load_pretrained(file)

    def test_foreign(self, tmp_path):
        save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match="no milkweed config"):
            mw.load_pretrained(tmp_path / "other.safetensors")

    def test_parameters_do_not_fit(self, tmp_path):
        config = json.dumps({"name": "MlpMixer", "options": {"d_input": 1, "d_output": 2, "length": 8}})
        save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors", {"config": config})
        with pytest.raises(ValueError, match="do not fit its config"):
            mw.load_pretrained(tmp_path)

    def test_config_is_no_config(self, tmp_path):
        for text, message in (
            ("{", "config .* not"),
            ("[1]", "config"),
            ('{"name": 3}', "a mapping with name, options"),
        ):
            save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors", {"config": text})
            with pytest.raises(ValueError, match=message):
                mw.load_pretrained(tmp_path)

    def test_not_a_model(self, tmp_path):
        with pytest.raises(TypeError, match=r"must be a torch.nn.Module; got dict"):
            mw.save_pretrained({"weight": torch.zeros(2)}, tmp_path)

    def test_failed_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        from milkweed.convert import pretrained

        file = mw.save_pretrained(MlpMixer(1, 2, 8), tmp_path)
        before = file.read_bytes()

        def broken(tensors, path, metadata):
            path.write_bytes(b"half")
            raise OSError("disk full")

        monkeypatch.setattr(pretrained, "write_tensors", broken)
        with pytest.raises(OSError, match="disk full"):
            mw.save_pretrained(MlpMixer(1, 2, 8), tmp_path)
        assert file.read_bytes() == before
        assert list(tmp_path.iterdir()) == [file]
