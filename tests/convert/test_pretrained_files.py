"""Files of models when something goes wrong: damaged, tampered with, full disks, other architectures."""

import copy
import errno
import json
import os
import resource

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.convert.families import BUILDERS, build, transformers
from torch import nn

import milkweed as mw


def network(out=32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, out))


def converted():
    model = network()
    mw.convert_(model, mw.MonarchConfig(4))
    return model


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def changed(file, **entries):
    """Write a file anew with other metadata: text as it is, everything else as JSON."""
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in entries.items()}
    save_file(load_file(file), file, metadata | texts)
    return file


class Holder(nn.Module):
    def __init__(self, tensor):
        super().__init__()
        self.register_buffer("tensor", tensor)


# What may be wrong in the first entry of a conversion record.
MALFORMED = [
    ({"names": []}, r"the conversion\[0\]\['names'\] in .*own\.safetensors must be a list of one or more; got \[\]"),
    ({"names": "0"}, r"\['names'\] in .* must be a list of one or more; got '0'"),
    ({"names": [3]}, r"\['names'\]\[0\] in .* must be a string; got 3"),
    ({"names": ["0", "nope.a"]}, "do not fit its config: .*nope"),
    ({"names": ["1"]}, "do not fit its config: '1' is a ReLU, not a linear layer"),
    ({"in_features": float("inf")}, r"\['in_features'\] in .* must be a whole number from 1 to 2147483648; got inf"),
    ({"in_features": 10**18}, "must be a whole number"),
    ({"in_features": True}, "must be a whole number"),
    ({"in_features": 17}, "layer '0' has 17 inputs and 24 outputs there, 16 and 24 in the model"),
    ({"out_features": []}, "must be a list of one or more"),
    ({"out_features": [12, 12]}, "'0' has 1 layers for 2 sizes"),
    ({"layers": [{"name": "monarc"}]}, "did you mean 'monarch'"),
    ({"layers": ["x"]}, r"\['layers'\]\[0\] in .* must be a mapping; got 'x'"),
    ({"layers": [{"name": "monarch", "nblocks": 2}]}, r"'0.right' has shape \(4, 4, 4\), in the model \(2, 8, 8\)"),
]
# Other entries of the metadata, whole.
TAMPERED = [
    ({"conversion": [5]}, r"the conversion\[0\] in .* must be a mapping with names, in_features, .*; got 5"),
    ({"conversion": None}, "the conversion in .* must be a list; got None"),
    ({"conversion": "{"}, "the conversion in .* is not JSON"),
    ({"conversion": "[" * 200_000 + "]" * 200_000}, "the conversion in .* is not JSON: nested too deeply"),
    ({"conversion": "[" + "9" * 5000 + "]"}, "the conversion in .* is not JSON"),
    ({"aliases": [1]}, "the aliases in .* must be a mapping"),
    ({"aliases": {"0.bias": 3}}, r"the aliases\['0.bias'\] in .* must be a string; got 3"),
    ({"aliases": {"0.bias": "2.bias"}}, "aliases say that '0.bias' is '2.bias', but the first is stored itself"),
    ({"aliases": {"0.new": "zzz"}}, "aliases say that '0.new' is 'zzz', but the second is not stored"),
    ({"aliases": {"x.y": "0.bias"}}, "the model has no 'x.y'"),
]


class TestLoading:
    @pytest.mark.parametrize(("entry", "message"), MALFORMED)
    def test_an_entry_that_is_malformed(self, entry, message, tmp_path):
        file = mw.save_pretrained(converted(), tmp_path / "own.safetensors")
        with safe_open(file, "pt") as stored:
            record = json.loads(stored.metadata()["conversion"])
        self.refused(changed(file, conversion=[record[0] | entry, *record[1:]]), message)

    @pytest.mark.parametrize(("entries", "message"), TAMPERED)
    def test_metadata_that_are_tampered_with(self, entries, message, tmp_path):
        self.refused(changed(mw.save_pretrained(converted(), tmp_path), **entries), message)

    def refused(self, file, message):
        """All or nothing: the model is as it was."""
        model = network(seed=5)
        with pytest.raises(ValueError, match=message):
            mw.load_pretrained(file, into=model)
        assert same(model, network(seed=5))
        assert type(model[0]) is nn.Linear

    def test_into_another_architecture(self, tmp_path):
        mw.save_pretrained(converted(), tmp_path)
        model = network(out=31)
        with pytest.raises(ValueError, match="'4' has 24 inputs and 32 outputs there, 24 and 31 in the model"):
            mw.load_pretrained(tmp_path, into=model)
        assert [type(layer) for layer in model] == [type(layer) for layer in network()]
        deeper = network().append(nn.Linear(32, 32))
        with pytest.raises(ValueError, match=r"'5\.bias' is missing"):
            mw.load_pretrained(tmp_path, into=deeper)
        with pytest.raises(TypeError, match=r"into must be a torch\.nn\.Module"):
            mw.load_pretrained(tmp_path, into=nn.Linear)

    @pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", 3.5])
    def test_a_device_that_is_not_there(self, device, tmp_path):
        mw.save_pretrained(converted(), tmp_path)
        with pytest.raises(ValueError, match=f"^device={device!r}"):
            mw.load_pretrained(tmp_path, into=network(), device=device)

    def test_the_model_outlives_its_file(self, tmp_path):
        # A map of the file would end the process with SIGBUS here.
        file = mw.save_pretrained(converted(), tmp_path)
        model = mw.load_pretrained(file, into=network())
        whole = file.read_bytes()
        with torch.no_grad():
            model[0].bias.add_(1)
        assert file.read_bytes() == whole
        with file.open("r+b") as opened:
            opened.truncate(0)
        assert model(torch.randn(2, 16)).isfinite().all()
        # BLAS may take another path, with other roundings, for memory that is not aligned as torch's own.
        assert all(parameter.data_ptr() % 64 == 0 for parameter in model.parameters())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"depth": 10**7}, "has 10000000 layers, but the file holds"),
            ({"d_model": "8"}, "the config in .* makes no model"),
            ({"d_model": 10**12}, "the config in .* makes no model"),
            ({"depth": 1.5}, "the config in .* makes no model"),
            ({"depht": 1}, "did you mean 'depth'"),
        ],
    )
    def test_a_config_that_makes_no_such_model(self, options, message, tmp_path):
        model = mw.models.SequenceModel(d_input=1, d_output=3, d_model=8, depth=1)
        config = model.config | {"options": model.options | options}
        with pytest.raises(ValueError, match=message):
            mw.load_pretrained(changed(mw.save_pretrained(model, tmp_path), config=config))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_hidden_layers": 10**8}, "has 100000000 layers, but only 39 tensors are stored"),
            ({"hidden_size": "x"}, r"config\.json does not describe a BertModel"),
        ],
    )
    def test_a_transformers_config_that_makes_no_such_model(self, change, message, tmp_path):
        mw.save_pretrained(build("bert"), tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            mw.load_pretrained(tmp_path)


class TestSaving:
    def test_a_full_disk_leaves_the_old_model(self, tmp_path):
        old = build("bert")
        mw.save_pretrained(old, tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
        )
        new = transformers.BertModel(config)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as raised:
                mw.save_pretrained(new, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert raised.value.errno == errno.EFBIG
        assert raised.value.filename == str(tmp_path / "model.safetensors")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        assert same(mw.load_pretrained(tmp_path), old)

    @pytest.mark.parametrize(
        ("tensor", "message"),
        [
            (torch.eye(3).to_sparse(), "'tensor' is sparse or quantised"),
            (torch.empty(3, device="meta"), "'tensor' is on the meta device and has no numbers"),
        ],
    )
    def test_tensors_that_no_file_holds(self, tensor, message, tmp_path):
        with pytest.raises(TypeError, match=message):
            mw.save_pretrained(Holder(tensor), tmp_path)
        assert not list(tmp_path.iterdir())

    def test_state_that_is_no_tensor(self, tmp_path):
        class Extra(nn.Linear):
            def get_extra_state(self):
                return {"a": 1}

        with pytest.raises(TypeError, match="'_extra_state' is a dict, not a tensor"):
            mw.save_pretrained(Extra(2, 2), tmp_path)

    def test_a_path_that_is_none(self):
        with pytest.raises(TypeError, match="path must be a folder or a file name"):
            mw.save_pretrained(network(), 3)

    @pytest.mark.parametrize("view", [lambda z: z.conj(), lambda z: z.conj().imag, lambda z: z.mH, lambda z: z.real])
    def test_views_with_a_mark(self, view, tmp_path):
        torch.manual_seed(0)
        tensor = view(torch.randn(3, 3, dtype=torch.complex64))
        expected = tensor.resolve_conj().resolve_neg().clone()
        found = mw.load_pretrained(
            mw.save_pretrained(Holder(tensor), tmp_path), into=Holder(torch.zeros_like(expected))
        )
        assert torch.equal(found.tensor, expected)

    def test_what_its_config_does_not_describe(self, tmp_path):
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        model = transformers.BertForSequenceClassification(config)
        model.classifier = nn.Linear(16, 7)
        with pytest.raises(
            ValueError, match=r"could not be loaded again.*'classifier\.\w+' has shape \(7.*in the model"
        ):
            mw.save_pretrained(model, tmp_path)
        model.config.num_labels = 7
        mw.save_pretrained(model, tmp_path)
        assert same(mw.load_pretrained(tmp_path), model)
        model.extra = nn.Linear(2, 2)
        with pytest.raises(ValueError, match=r"the model has no 'extra\.bias'"):
            mw.save_pretrained(model, tmp_path)

    @pytest.mark.parametrize("family", BUILDERS)
    def test_every_family_describes_itself(self, family, tmp_path):
        model = build(family)
        mw.save_pretrained(model, tmp_path)
        assert same(mw.load_pretrained(tmp_path), model)

    def test_resized_embeddings(self, tmp_path):
        model = build("gpt2")
        model.resize_token_embeddings(70)
        mw.save_pretrained(model, tmp_path)
        assert same(mw.load_pretrained(tmp_path), model)


class TestTransformers:
    def test_a_class_of_the_same_name_is_not_taken_for_transformers_own(self, tmp_path):
        class Doubled(transformers.GPT2LMHeadModel):
            def forward(self, *args, **kwargs):
                outputs = super().forward(*args, **kwargs)
                outputs["logits"] = 2 * outputs["logits"]
                return outputs

        Doubled.__name__ = "GPT2LMHeadModel"
        config = build("gpt2").config
        model = Doubled(config).eval()
        mw.save_pretrained(model, tmp_path)
        with pytest.raises(ValueError, match=r"holds a model of your own; give load_pretrained\(\.\.\., into="):
            mw.load_pretrained(tmp_path)
        loaded = mw.load_pretrained(tmp_path, into=Doubled(config))
        tokens = torch.arange(6).view(1, 6)
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)

    def test_a_class_that_needs_more_than_its_config(self, tmp_path):
        class Named(transformers.GPT2LMHeadModel):
            def __init__(self, config, name):
                super().__init__(config)

        config = build("gpt2").config
        model = Named(config, "mine").eval()
        mw.convert_(model, mw.MonarchConfig(2))
        mw.save_pretrained(model, tmp_path)
        assert same(mw.load_pretrained(tmp_path, into=Named(config, "again")), model)
        assert mw.densify_(model)

    def test_the_settings_of_generation(self, tmp_path):
        model = build("gpt2")
        model.generation_config.max_new_tokens = 7
        model.generation_config.do_sample = True
        model.generation_config.temperature = 0.3
        mw.convert_(model, mw.MonarchConfig(2))
        mw.save_pretrained(model, tmp_path)
        found = mw.load_pretrained(tmp_path).generation_config
        assert (found.max_new_tokens, found.do_sample, found.temperature) == (7, True, 0.3)
        dense = copy.deepcopy(model)
        mw.densify_(dense)
        mw.save_pretrained(dense, tmp_path)
        assert transformers.GPT2LMHeadModel.from_pretrained(tmp_path).generation_config.max_new_tokens == 7


KINDS = {"complex": torch.complex64, "whole": torch.int64, "bool": torch.bool}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_another_kind_than_the_models_are_refused(kind, tmp_path):
    model = network()
    file = mw.save_pretrained(model, tmp_path)
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    tensors = load_file(file)
    for name in ("0.weight", "2.bias"):
        save_file(tensors | {name: torch.ones_like(tensors[name], dtype=KINDS[kind])}, file, metadata)
        into = network(seed=1)
        before = copy.deepcopy(into)
        with pytest.raises(ValueError, match=rf"'{name}' is {KINDS[kind]}, in the model torch.float32"):
            mw.load_pretrained(file, into=into)
        assert same(into, before)


def test_buffers_of_another_kind_are_refused(tmp_path):
    file = mw.save_pretrained(Holder(torch.ones(3, dtype=torch.bool)), tmp_path)
    for other in (torch.ones(3), torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.complex64)):
        with pytest.raises(ValueError, match=r"'tensor' is torch.bool, in the model torch\."):
            mw.load_pretrained(file, into=Holder(other))


def test_another_width_of_the_same_kind_is_taken(tmp_path):
    mw.save_pretrained(network().bfloat16(), tmp_path)
    assert mw.load_pretrained(tmp_path, into=network())[0].weight.dtype == torch.bfloat16


def test_a_complex_model_is_loaded_into_its_like(tmp_path):
    def complex_layer(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 3, dtype=torch.complex64))

    mw.save_pretrained(complex_layer(0), tmp_path)
    assert same(mw.load_pretrained(tmp_path, into=complex_layer(1)), complex_layer(0))


def test_a_doubled_key_in_the_metadata_is_refused(tmp_path):
    file = mw.save_pretrained(converted(), tmp_path)
    with safe_open(file, "pt") as stored:
        text = stored.metadata()["conversion"]
    changed(file, conversion=text.replace('"in_features": 16', '"in_features": 99, "in_features": 16'))
    with pytest.raises(ValueError, match=r"in the conversion in .* the key 'in_features' is there twice"):
        mw.load_pretrained(file, into=network())


@pytest.mark.parametrize("kind", ["model", "structure"])
def test_a_doubled_name_in_the_header_is_refused(kind, tmp_path):
    """safetensors keeps the last of them."""
    file = tmp_path / "x.safetensors"
    if kind == "model":
        mw.save_pretrained(network(), file)
    else:
        mw.structures.save(mw.monarch_dft(8), file)
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].replace(b'"__metadata__":{', b'"__metadata__":{"format":"x","format":"x",').rstrip()
    header = header.ljust(-(-len(header) // 8) * 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    with pytest.raises(ValueError, match=r"in its header the key 'format' is there twice"):
        mw.load_pretrained(file, into=network()) if kind == "model" else mw.structures.load(file)


def test_a_tensor_with_three_names(tmp_path):
    def tied(seed):
        model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
        torch.manual_seed(seed)
        nn.init.normal_(model[0].weight)
        model[1].weight = model[2].weight = model[0].weight
        return model

    model = tied(1)
    mw.save_pretrained(model, tmp_path)
    loaded = mw.load_pretrained(tmp_path, into=tied(2))
    assert same(model, loaded)
    assert loaded[0].weight is loaded[1].weight is loaded[2].weight


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_eight_bits_are_refused_when_they_are_read(dtype, own, tmp_path):
    model = network() if own else mw.models.SequenceModel(1, 10, d_model=8, depth=1)
    file = mw.save_pretrained(model, tmp_path)
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata)
    with pytest.raises(ValueError, match=rf"{file.name} .*'.*' is {dtype}, in the model torch.float32; .* bfloat16"):
        mw.load_pretrained(tmp_path, into=network() if own else None)


def test_layers_of_eight_bits_are_not_converted():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64).to(torch.float8_e4m3fn))
    with pytest.raises(TypeError, match=r"layer '1' cannot be converted: its weight is .*float8_e4m3fn.*'1': None"):
        mw.plan_conversion(model, mw.MonarchConfig(4))
    assert [line.name for line in mw.convert_(model, {"0": mw.MonarchConfig(4)}).converted] == ["0"]
