"""Small files that ask for much, or for code: refused before anything large is made and anything runs."""

import inspect
import io
import json
import resource
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import milkweed as mw
from milkweed import ssm
from milkweed._registry import registered
from milkweed.convert.bounds import limited
from milkweed.nn.factory import maker

SMALL = {
    "Gpt2": {"d_input": 3, "d_output": 3, "length": 16, "d_model": 16, "depth": 1},
    "LinearMemory": {"d_input": 1, "d_output": 3, "d_model": 8},
    "M2Bert": {"d_input": 3, "d_output": 3, "length": 16, "d_model": 16, "depth": 1},
    "M2Gpt": {"d_input": 3, "d_output": 3, "length": 16, "d_model": 16, "depth": 1},
    "M2Vit": {"d_input": 3, "d_output": 3, "size": [8, 8], "patch": 2, "d_model": 16, "depth": 1},
    "MlpMixer": {"d_input": 3, "d_output": 3, "length": 16, "d_model": 8, "depth": 1},
    "Forecaster": {"d_input": 3, "d_output": 1, "horizon": 4, "d_model": 8, "depth": 1},
    "Sashimi": {"d_input": 3, "d_output": 3, "d_model": 8, "depth": 1},
    "SequenceModel": {"d_input": 1, "d_output": 3, "d_model": 8, "depth": 1},
}
NEEDED = {
    "causal_monarch": {"seq_len": 16},
    "gated_mixer": {"l_max": 16},
    "long_conv": {"l_max": 16},
    "low_rank": {"rank": 2},
    "monarch_mixer": {"seq_len": 16},
}
ABSURD = [10**6, 2**31, 2**62, [1] * 10**4, [10**9] * 3, {"a": 1}, -1]


def options_of(kind, sizes):
    return [name for name in list(inspect.signature(kind).parameters)[sizes:] if name not in {"device", "dtype"}]


def configs():
    """Every model with each of its options absurd, and every layer in it with each of its own."""
    for name, small in SMALL.items():
        for option in options_of(registered("model")[name], 0):
            yield from ({"name": name, "options": small | {option: value}} for value in ABSURD)
    for layer, kind in registered("layer").items():
        for host, inits in (("SequenceModel", ("legs", "hippo", "rand", "diag")), ("Sashimi", ("legs",))):
            for option in options_of(maker(kind), 1):
                for value in ABSURD:
                    spec = {"name": layer, **NEEDED.get(layer, {}), option: value}
                    yield {"name": host, "options": SMALL[host] | {"layer": spec}}
            for init in inits if layer.startswith("s4") else ():
                spec = {"name": layer, "init": init, "d_state": 10**5}
                yield {"name": host, "options": SMALL[host] | {"d_model": 2**30, "layer": spec}}
    for layer, kind in registered("linear").items():
        for option in options_of(kind, 2):
            for value in ABSURD:
                spec = {"name": layer, **NEEDED.get(layer, {}), option: value}
                yield {"name": "MlpMixer", "options": SMALL["MlpMixer"] | {"linear": spec}}
    for option in ("d_state", "dims", "kernel_rank", "channels", "init", "bidirectional", "frozen", "axis_options"):
        for value in ABSURD:
            yield {"name": "M2Vit", "options": SMALL["M2Vit"] | {"mixer": "s4nd", "mixer_options": {option: value}}}
    for option in ("order", "filter", "construction"):
        for value in ABSURD:
            mixer = {"mixer": "causal_monarch", "mixer_options": {option: value}}
            yield {"name": "M2Gpt", "options": SMALL["M2Gpt"] | mixer}


class Largest(TorchDispatchMode):
    """Notes the largest tensor with numbers that any operation has met."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        found = [
            each.numel() for each in tree_leaves((args, out)) if isinstance(each, torch.Tensor) and not each.is_meta
        ]
        self.numel = max([self.numel, *found])
        return out


def test_every_registered_model_is_tried():
    assert {name for name, kind in registered("model").items() if kind.__module__.startswith("milkweed.")} == set(SMALL)


def test_sizes_that_a_small_file_cannot_hold(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    costly = ssm.nplr

    def small_only(name, d_state, *arguments, **options):
        assert d_state <= 64 or torch.empty(0).is_meta, "an initial system of the asked size is computed"
        return costly(name, d_state, *arguments, **options)

    monkeypatch.setattr(ssm, "nplr", small_only)
    before, tried = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    with Largest() as largest:
        for config in configs():
            metadata = {"milkweed": "1", "config": json.dumps(config)}
            save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors", metadata)
            with pytest.raises(ValueError, match=r"model\.safetensors"):
                mw.load_pretrained(tmp_path)
            tried += 1
    assert tried > 1000
    assert largest.numel <= 2**16
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 2**10


@pytest.mark.parametrize("init", ["legs", "hippo", "foud", "legt"])
def test_no_initial_system_is_computed_without_numbers(init):
    for device in ("argument", "context"):
        with Largest() as largest:
            if device == "argument":
                layer = mw.nn.S4(8, 1000, init=init, device="meta")
            else:
                with torch.device("meta"):
                    layer = mw.nn.S4(8, 1000, init=init)
        assert largest.numel <= 16
        real = mw.nn.S4(8, 10, init=init)
        assert layer.filter.rank == real.filter.rank
        assert {k: v.dim() for k, v in layer.state_dict().items()} == {k: v.dim() for k, v in real.state_dict().items()}


def test_meta_models_can_still_be_given_their_start():
    layer = mw.nn.S4(8, 16, init="hippo", device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    expected = mw.nn.S4(8, 16, init="hippo")
    for name in ("A_real", "A_imag", "B", "P"):
        assert torch.equal(getattr(layer.filter, name), getattr(expected.filter, name))


ENTRY = {"names": ["0"], "in_features": 16, "out_features": [24]}


@pytest.mark.parametrize(
    "layers",
    [
        [{"name": "butterfly", "digits": [1] * 10**5 + [32]}],
        [{"name": "monarch", "nblocks": 2**31}],
        [{"name": "monarch"}] * 10**4,
        [{"name": "low_rank", "rank": 2**31}],
        [{"name": "pixelfly", "nblocks": 2**30}],
    ],
)
def test_conversions_that_a_small_file_cannot_hold(tmp_path, layers):
    entry = ENTRY | {"layers": layers, "out_features": [24] * len(layers)}
    metadata = {"milkweed": "1", "conversion": json.dumps([entry])}
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors", metadata)
    model = torch.nn.Sequential(torch.nn.Linear(16, 24))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="do not fit its config"):
        mw.load_pretrained(tmp_path, into=model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_count_of_parts_is_of_its_own_thread_and_ends():
    with pytest.raises(ValueError, match="it would have more than"), limited(1):
        torch.nn.ModuleList(torch.nn.Identity() for _ in range(10**4))
    torch.nn.ModuleList(torch.nn.Identity() for _ in range(10**4))


class TestTransformers:
    @pytest.fixture(autouse=True)
    def library(self):
        return pytest.importorskip("transformers")

    def folder(self, tmp_path, kind, **changes):
        import transformers

        config = {
            "BertModel": transformers.BertConfig(
                hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=8
            ),
            "GPT2LMHeadModel": transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8),
            "T5Model": transformers.T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8, vocab_size=8),
            "SwinModel": transformers.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1]),
            "Wav2Vec2Model": transformers.Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=1),
        }[kind]
        values = json.loads(config.to_json_string(use_diff=False)) | changes
        (tmp_path / "config.json").write_text(json.dumps(values))
        metadata = {"format": "pt", "milkweed": "0.1.0", "transformers": kind}
        save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors", metadata)
        return values

    @pytest.mark.parametrize("kind", ["BertModel", "GPT2LMHeadModel", "T5Model", "SwinModel", "Wav2Vec2Model"])
    def test_every_size_of_a_config(self, tmp_path, kind):
        values = self.folder(tmp_path, kind)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for key, value in values.items():
            if isinstance(value, int | list) and not isinstance(value, bool):
                for big in (10**9, 2**20):
                    self.folder(tmp_path, kind, **{key: [big] * len(value) if isinstance(value, list) else big})
                    with pytest.raises(ValueError, match=r"config|model\.safetensors"):
                        mw.load_pretrained(tmp_path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700 * 2**10

    def test_tables_that_no_file_holds(self, tmp_path):
        import transformers

        config = transformers.LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(config)
        from milkweed.convert.bounds import check_tables

        check_tables(model, {})
        model.register_buffer("mask", torch.empty(2**14, 2**14, device="meta"), persistent=False)
        with pytest.raises(ValueError, match=r"mask of shape \(16384, 16384\) the most"):
            check_tables(model, {})

    def code(self, tmp_path, **entries):
        canary = tmp_path / "canary"
        folder = tmp_path / "m"
        folder.mkdir()
        touch = f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n"
        (folder / "code.py").write_text(touch + "class C: model_type = 'evil'\n")
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate/generate.py").write_text(touch)
        for name, values in entries.items():
            (folder / f"{name}.json").write_text(json.dumps(values))
        metadata = {"format": "pt", "milkweed": "0.1.0", "transformers": "BertModel"}
        save_file({"a": torch.ones(2)}, folder / "model.safetensors", metadata)
        return folder, canary

    @pytest.mark.parametrize(
        "variable", ["", "HF_TRUST_REMOTE_CODE", "TRUST_REMOTE_CODE", "HF_DATASETS_TRUST_REMOTE_CODE"]
    )
    def test_code_of_a_folder_never_runs(self, tmp_path, monkeypatch, variable):
        from milkweed._files import UnsafeFileError
        from milkweed.convert.hub import transformers_files
        from milkweed.data.tokenizers import load_tokenizer

        if variable:
            monkeypatch.setenv(variable, "1")
        auto = {"AutoConfig": "code.C", "AutoTokenizer": ["code.C", None], "AutoModel": "code.C"}
        folder, canary = self.code(
            tmp_path,
            config={"model_type": "evil", "auto_map": auto},
            tokenizer_config={"tokenizer_class": "C", "auto_map": auto},
        )
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 10))
        for read in (mw.load_pretrained, transformers_files.read_config, transformers_files.read_tokenizer):
            with pytest.raises(ValueError, match="holds code of its own, which is not run"):
                read(folder)
        with pytest.raises(UnsafeFileError, match=r"data\.tokenizer=.* holds code of its own"):
            load_tokenizer(str(folder))
        assert sys.stdin.read() == "y\n" * 10  # nobody was asked
        assert not canary.exists()

    @pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
    @pytest.mark.parametrize("value", ["owner/kernel", {"": "owner/kernel@v1"}])
    def test_kernels_of_the_hub_are_code_too(self, tmp_path, key, value):
        from milkweed.convert.hub import transformers_files

        self.folder(tmp_path, "BertModel", **{key: value})
        with pytest.raises(ValueError, match=f"asks for {key}='owner/kernel.*code on the hub, which is not run"):
            transformers_files.read_config(tmp_path)

    def test_an_adapter_does_not_send_the_reader_elsewhere(self, tmp_path):
        from milkweed.convert.hub import transformers_files

        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
        with pytest.raises(ValueError, match="holds an adapter of PEFT"):
            transformers_files.read_config(tmp_path)

    def test_an_adapter_beside_a_model_is_neither_added_nor_passed_over(self, tmp_path):
        import transformers

        from milkweed.convert.hub import transformers_files

        self.folder(tmp_path, "BertModel")
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
        with pytest.raises(ValueError, match=r"adapter of PEFT \(adapter_config.json\) beside a model; merge"):
            transformers_files.read_model(transformers.BertModel, tmp_path)

    @pytest.mark.parametrize("shard", ["../x.safetensors", "/x.safetensors", "a/../../x.safetensors"])
    def test_shards_lie_in_their_folder(self, tmp_path, shard):
        import transformers

        from milkweed.convert.hub import transformers_files

        (tmp_path / "m").mkdir()
        self.folder(tmp_path / "m", "BertModel")
        save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors", {"format": "pt"})
        (tmp_path / "m/model.safetensors").rename(tmp_path / "m/x.safetensors")
        index = tmp_path / "m/model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": shard}}))
        for read in (
            lambda folder: transformers_files.weight_files(folder),
            lambda folder: transformers_files.read_model(transformers.BertModel, folder),
        ):
            with pytest.raises(ValueError, match="leaves that folder"):
                read(tmp_path / "m")
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": "x.safetensors"}}))
        assert transformers_files.weight_files(tmp_path / "m") == [tmp_path / "m/x.safetensors"]

    def test_a_tokenizer_file_elsewhere(self, tmp_path):
        from milkweed.convert.hub import transformers_files

        (tmp_path / "secret.json").write_text("{}")
        folder = tmp_path / "t"
        folder.mkdir()
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_file": str(tmp_path / "secret.json")}))
        with pytest.raises(ValueError, match="leaves that folder"):
            transformers_files.read_tokenizer(folder)


class TestSavingOverTheDenseFolder:
    @pytest.fixture
    def dense(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, vocab_size=8
        )
        transformers.BertModel(config).save_pretrained(tmp_path / "dense")
        return tmp_path / "dense"

    def converted(self, folder):
        import transformers

        model = transformers.BertModel.from_pretrained(folder)
        mw.convert_(model, mw.MonarchConfig(4))
        return model

    @pytest.mark.parametrize("kind", ["same", "link", "relative", "dot", "file"])
    def test_is_refused_as_in_the_command(self, dense, tmp_path, monkeypatch, kind):
        (tmp_path / "link").symlink_to(dense)
        content = {path.name: path.read_bytes() for path in dense.iterdir()}
        model = self.converted(dense)
        monkeypatch.chdir(dense if kind == "dot" else tmp_path)
        target = {
            "same": dense,
            "link": tmp_path / "link",
            "relative": "dense",
            "dot": ".",
            "file": dense / "own.safetensors",
        }[kind]
        with pytest.raises(ValueError, match=r"path .*dense overlaps with the model that is read, .*dense; choose a"):
            mw.save_pretrained(model, target)
        assert {path.name: path.read_bytes() for path in dense.iterdir()} == content

    def test_a_folder_beside_it_and_one_of_its_own_are_fine(self, dense, tmp_path):
        mw.save_pretrained(self.converted(dense), tmp_path / "out")
        again = mw.load_pretrained(tmp_path / "out")
        mw.save_pretrained(again, tmp_path / "out")
        mw.densify_(again)
        mw.save_pretrained(again, tmp_path / "ours")
        back = mw.load_pretrained(tmp_path / "ours")
        mw.convert_(back, mw.MonarchConfig(2))
        mw.save_pretrained(back, tmp_path / "ours")
        assert mw.load_pretrained(tmp_path / "ours") is not None


def test_no_file_is_read_by_transformers_elsewhere():
    """Every `from_pretrained` and `from_config` of the package is in the one module that never runs code."""
    import ast
    from pathlib import Path

    root = Path(mw.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"from_pretrained", "from_config"}
    }
    assert found == {"convert/hub/transformers_files.py"}


def test_pickles_and_arrays_are_read_as_data_alone():
    import ast
    from pathlib import Path

    root = Path(mw.__file__).parent
    for path in root.rglob("*.py"):
        if path == root / "benchmarks/memory.py":  # what a process of its own has just written
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                owner = ast.unparse(node.func.value)
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert owner != "torch" or options.get("weights_only") == "True", path
                assert owner not in {"np", "numpy"} or options.get("allow_pickle", "False") == "False", path
                assert owner not in {"pickle", "joblib", "dill"}, path
                # A subclass of PyYAML's safe loader.
                assert owner != "yaml" or (path.name, ast.unparse(node.args[1])) == ("strict_yaml.py", "_Loader"), path


def test_a_published_layer_starts_from_its_file_alone(tmp_path):
    """A layer of N=2,000 of a few kilobytes: its initial system would take a minute."""
    code = """
        import resource, torch
        resource.setrlimit(resource.RLIMIT_CPU, (40, 40))
        from milkweed import ssm
        from milkweed.convert.checkpoints.s4 import load_s4
        modes = 1000
        state = {"layer.kernel.C": torch.randn(1, 1, modes, 2), "layer.kernel.B": torch.randn(1, 1, modes, 2),
                 "layer.kernel.inv_dt": torch.zeros(1, 1), "layer.kernel.A_real": torch.zeros(1, modes),
                 "layer.kernel.A_imag": torch.randn(1, modes), "layer.kernel.P": torch.randn(1, 1, modes, 2),
                 "layer.kernel.l_kernel": torch.tensor(0), "layer.D": torch.ones(1, 1),
                 "layer.output_linear.0.weight": torch.ones(2, 1, 1), "layer.output_linear.0.bias": torch.ones(2)}
        state = {key.replace("layer.output", "output"): value for key, value in state.items()}
        costly = ssm.nplr
        def refuse(name, d_state, *rest, **options):
            assert d_state < 10
            return costly(name, d_state, *rest, **options)
        ssm.nplr = refuse
        layer = load_s4(state)
        assert torch.equal(layer.filter.A_imag, -state["layer.kernel.A_imag"])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
