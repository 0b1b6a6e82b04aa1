"""Models within wrappers: compiled, parallel, averaged, sharded ones are the model inside."""

import copy
import multiprocessing
import os
import sys
import types
from collections import OrderedDict
from functools import partial

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import milkweed as mw
from milkweed.nn.wrappers import unwrapped, without_wrappers


class Net(nn.Module):
    """A model of one's own with a block in it."""

    def __init__(self):
        super().__init__()
        parts = {"fc1": nn.Linear(16, 24), "act": nn.ReLU(), "fc2": nn.Linear(24, 16)}
        self.block = nn.Sequential(OrderedDict(parts))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.block(x))


def net():
    torch.manual_seed(0)
    return Net().eval()


def sequence_model():
    torch.manual_seed(0)
    return mw.models.SequenceModel(2, 3, d_model=4, depth=2).eval()


compiled = partial(torch.compile, backend="eager")


def compiled_inside(model):
    """Layers compiled by themselves, one around another."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear | nn.Sequential | mw.nn.ResidualBlock):
                module.set_submodule(name, compiled(child))
    return model


def compiled_in_place(model):
    model.compile(backend="eager")
    for child in model.children():
        child.compile(backend="eager")
    return model


def fabric(model):
    return Fabric(accelerator="cpu", devices=1).setup(model)


def checkpointed(model):
    name = next(name for name, _ in model.named_children())
    model.set_submodule(name, checkpoint_wrapper(model.get_submodule(name)))
    return model


TRANSPARENT = {
    "compile": compiled,
    "compile inside": compiled_inside,
    "compile in place": compiled_in_place,
    "DataParallel": nn.DataParallel,
    "compiled DataParallel": lambda model: compiled(nn.DataParallel(model)),
    "DataParallel inside": lambda model: (model.set_submodule("head", nn.DataParallel(model.head)), model)[1],
    "Fabric": fabric,
    "activation checkpointing": checkpointed,
}


@pytest.fixture(autouse=True)
def without_gradients():
    """Layers compiled by themselves read each other's outputs, of which dynamo asks `.grad` with a warning."""
    with torch.no_grad():
        yield


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def ddp(model):
    return nn.parallel.DistributedDataParallel(model)


NOTING = {"DDP": ddp, "AveragedModel": AveragedModel, "compiled DDP": lambda model: compiled(ddp(model))}
ALL = TRANSPARENT | NOTING


@pytest.mark.sampled
@pytest.mark.parametrize("name", ALL)
def test_a_wrapped_model_is_saved_as_the_model_inside(name, tmp_path, process_group):
    model, x = sequence_model(), torch.randn(2, 5, 2)
    want = model(x)
    plain = mw.save_pretrained(model, tmp_path / "plain").read_bytes()
    wrapped = ALL[name](copy.deepcopy(model))
    assert mw.save_pretrained(wrapped, tmp_path / "wrapped").read_bytes() == plain
    assert torch.equal(mw.load_pretrained(tmp_path / "wrapped")(x), want)
    assert torch.equal(mw.load_pretrained(tmp_path / "wrapped", into=sequence_model())(x), want)
    assert torch.equal(wrapped.eval()(x), want)


@pytest.mark.parametrize("name", ALL)
def test_a_model_of_ones_own_is_saved_as_well(name, tmp_path, process_group):
    plain = mw.save_pretrained(net(), tmp_path / "plain").read_bytes()
    assert mw.save_pretrained(ALL[name](net()), tmp_path / "wrapped").read_bytes() == plain


@pytest.mark.sampled
@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("name", TRANSPARENT)
def test_conversion_goes_through(name, called_before, tmp_path):
    x, plain = torch.randn(4, 16), net()
    rules = {"block.fc1": mw.MonarchConfig(4), "re:block.*": mw.MonarchConfig(2)}
    expected = mw.convert_(plain, mw.plan_conversion(plain, rules, [x], tokens=None))
    wrapped = TRANSPARENT[name](net())
    if called_before:
        wrapped(x)
    report = mw.convert_(wrapped, mw.plan_conversion(wrapped, rules, [x], tokens=None))
    assert report == expected
    assert torch.equal(wrapped(x), plain(x))
    mw.save_pretrained(wrapped, tmp_path)
    loaded = TRANSPARENT[name](net()).train()
    if called_before:
        loaded(x)
    assert mw.load_pretrained(tmp_path, into=loaded) is loaded
    assert torch.equal(loaded(x), plain(x))
    assert not any(module.training for module in loaded.modules())
    assert mw.densify_(wrapped) == mw.densify_(plain)
    assert torch.equal(wrapped(x), plain(x))


@pytest.mark.parametrize("options", [{"sequential": True}, {"permute": True}, {"parameters": 0.7}])
@pytest.mark.parametrize("name", ["compile", "compile inside", "compile in place"])
def test_calibration_sees_layers_that_ran_compiled(name, options):
    x, plain = torch.randn(64, 16), net()
    options = options | ({"candidates": (mw.MonarchConfig(2), mw.MonarchConfig(4))} if "parameters" in options else {})
    wrapped = TRANSPARENT[name](net())
    wrapped(x)
    reports = [
        mw.plan_conversion(model, mw.MonarchConfig(4), [x], tokens=None, **options).report for model in (plain, wrapped)
    ]
    assert reports[0] == reports[1]


@pytest.mark.sampled
@pytest.mark.parametrize("name", TRANSPARENT)
def test_adapters_go_through(name, tmp_path):
    x, plain, wrapped = torch.randn(4, 16), net(), TRANSPARENT[name](net())
    wrapped(x)
    for model in (plain, wrapped):
        torch.manual_seed(1)
        mw.add_adapters_(model, {"re:block.*": mw.AdapterConfig(nblocks=2)}, train="head")
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter)
    assert torch.equal(wrapped(x), plain(x))
    files = [mw.save_adapters(model, tmp_path / name) for model, name in ((plain, "a"), (wrapped, "b"))]
    assert files[0].read_bytes() == files[1].read_bytes()
    loaded = TRANSPARENT[name](net()).train()
    assert mw.load_adapters_(loaded, files[0]) == ["block.fc1", "block.fc2"]
    assert torch.equal(loaded(x), plain(x))
    want = plain(x)
    merged = mw.merge_adapters_(wrapped, keep=True)
    torch.testing.assert_close(wrapped(x), want)
    merged.unmerge_()
    assert torch.equal(wrapped(x), want)
    assert mw.remove_adapters_(wrapped) == ["block.fc1", "block.fc2"]


@pytest.mark.parametrize("name", NOTING)
def test_what_a_wrapper_has_noted_is_not_changed(name, tmp_path, process_group):
    x, wrapped = torch.randn(4, 16), NOTING[name](net())
    plan = mw.plan_conversion(wrapped, mw.MonarchConfig(2), tokens=None)
    mw.save_pretrained(wrapped, tmp_path)
    adapters = net()
    mw.add_adapters_(adapters)
    mw.save_adapters(adapters, tmp_path)
    before = copy.deepcopy(wrapped.state_dict())
    for change in (
        lambda: mw.convert_(wrapped, plan),
        lambda: mw.densify_(wrapped),
        lambda: mw.add_adapters_(wrapped),
        lambda: mw.load_adapters_(wrapped, tmp_path),
        lambda: mw.load_pretrained(tmp_path, into=wrapped),
    ):
        with pytest.raises(TypeError, match="on the model inside before it is wrapped"):
            change()
    assert all(torch.equal(value, before[key]) for key, value in wrapped.state_dict().items())
    mw.convert_(unwrapped(wrapped), plan)
    assert wrapped(x).isfinite().all()


def test_a_layer_around_which_a_wrapper_stands_is_converted_itself():
    """The wrapper keeps calling what it was made around, so that it goes with it."""
    model, x = net(), torch.randn(4, 16)
    model.head = compiled(model.head)
    mw.convert_(model, {"head": mw.MonarchConfig(1)})
    assert type(model.head) is mw.nn.MonarchLinear
    before = model(x)
    nn.init.zeros_(model.head.right)
    assert not torch.equal(model(x), before)


def test_wrappers_are_back_after_an_error():
    model = compiled_in_place(compiled_inside(net()))
    modules, calls = list(model.modules()), [m._compiled_call_impl for m in model.modules()]
    with without_wrappers(model) as inside:
        assert [name for name, _ in inside.named_modules()] == [name for name, _ in net().named_modules()]
    assert list(model.modules()) == modules
    with pytest.raises(ValueError, match="matches no"):
        mw.convert_(model, {"nowhere": mw.MonarchConfig(2)})
    assert list(model.modules()) == modules
    assert [m._compiled_call_impl for m in model.modules()] == calls


@pytest.mark.parametrize("name", TRANSPARENT)
def test_parameter_groups_are_those_of_the_model_inside(name, tmp_path):
    plain, wrapped = sequence_model(), TRANSPARENT[name](sequence_model())
    groups = [mw.nn.parameter_groups(model, lr=0.1, weight_decay=0.2) for model in (plain, wrapped)]
    assert [{**group, "params": [p.shape for p in group["params"]]} for group in groups[0]] == [
        {**group, "params": [p.shape for p in group["params"]]} for group in groups[1]
    ]


def parametrised(model):
    nn.utils.parametrizations.weight_norm(next(m for m in model.modules() if isinstance(m, nn.Linear)))
    return model


def test_a_parametrised_model_is_refused_with_the_way_out(tmp_path):
    model, x = parametrised(sequence_model()), torch.randn(2, 5, 2)
    with pytest.raises(ValueError, match="remove_parametrizations first"):
        mw.save_pretrained(model, tmp_path)
    assert not list(tmp_path.iterdir())
    want = model(x)
    layer = next(m for m in model.modules() if hasattr(m, "parametrizations"))
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    mw.save_pretrained(model, tmp_path)
    assert torch.equal(mw.load_pretrained(tmp_path)(x), want)


def test_a_parametrised_model_of_ones_own_is_loaded_into_its_like(tmp_path):
    model, x = parametrised(net()), torch.randn(2, 16)
    mw.save_pretrained(model, tmp_path)
    assert torch.equal(mw.load_pretrained(tmp_path, into=parametrised(net()))(x), model(x))


def test_pruned_weights_are_refused_with_the_way_out(tmp_path):
    model = sequence_model()
    nn.utils.prune.l1_unstructured(next(m for m in model.modules() if isinstance(m, nn.Linear)), "weight", amount=0.5)
    with pytest.raises(ValueError, match=r"prune\.remove"):
        mw.save_pretrained(model, tmp_path)


def test_flat_parameters_are_refused(tmp_path, process_group):
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    whole = ShardingStrategy.NO_SHARD
    model = FullyShardedDataParallel(net(), device_id=torch.device("cpu"), sharding_strategy=whole)
    for use in (
        lambda: mw.save_pretrained(model, tmp_path),
        lambda: mw.plan_conversion(model, mw.MonarchConfig(2)),
        lambda: mw.save_pretrained(nn.Sequential(model), tmp_path),
    ):
        with pytest.raises(TypeError, match="full_state_dict=True"):
            use()
    assert not list(tmp_path.glob("*.safetensors"))


def sharded_worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    from torch.distributed.fsdp import fully_shard

    model = sequence_model()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    kind = type(model)
    mw.save_pretrained(compiled(model), f"{folder}/sharded")
    assert type(model) is kind
    for use in (lambda: mw.convert_(model), lambda: mw.plan_conversion(model), lambda: mw.add_adapters_(model)):
        with pytest.raises(TypeError, match="before fully_shard"):
            use()
    adapted = net()
    mw.add_adapters_(adapted, train="head")
    fully_shard(adapted.block)
    fully_shard(adapted)
    mw.save_adapters(adapted, f"{folder}/sharded")
    if rank:
        assert os.path.isfile(f"{folder}/sharded/model.safetensors")
    torch.distributed.destroy_process_group()


def test_what_is_spread_over_processes_is_gathered(tmp_path):
    plain = mw.save_pretrained(sequence_model(), tmp_path / "plain").read_bytes()
    adapted = net()
    mw.add_adapters_(adapted, train="head")
    adapters = mw.save_adapters(adapted, tmp_path / "plain").read_bytes()
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=sharded_worker, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path / "sharded/model.safetensors").read_bytes() == plain
    assert (tmp_path / "sharded/adapters.safetensors").read_bytes() == adapters


def test_a_model_of_peft_is_refused_with_the_way_out(tmp_path, monkeypatch):
    class PeftModel(nn.Module):
        """As of peft, which need not be installed."""

        def __init__(self, model):
            super().__init__()
            self.base_model = model

    monkeypatch.setitem(sys.modules, "peft", types.SimpleNamespace(PeftModel=PeftModel))
    for model in (PeftModel(sequence_model()), compiled(PeftModel(sequence_model()))):
        with pytest.raises(TypeError, match=r"give model\.merge_and_unload\(\), or save the adapters"):
            mw.save_pretrained(model, tmp_path)
    with_adapter = sequence_model()
    with_adapter.head = nn.ModuleDict({"base_layer": with_adapter.head, "lora_A": nn.Linear(4, 1)})
    with pytest.raises(ValueError, match="merge peft's adapters into it first"):
        mw.save_pretrained(with_adapter, tmp_path)


def test_exports_see_the_model_inside(tmp_path):
    pytest.importorskip("transformers")
    from milkweed.convert.checkpoints.m2 import extend_positions
    from milkweed.models.hf.m2_bert import M2BertModel

    torch.manual_seed(0)
    model = mw.models.M2Bert(d_input=50, length=8, d_model=16, depth=1, d_hidden=16, nblocks=2, head="none")
    for wrapped in (compiled(model), nn.DataParallel(model), AveragedModel(model)):
        found, expected = (M2BertModel.from_plain(each).state_dict() for each in (wrapped, model))
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
        assert extend_positions(wrapped, 16).encoder.length == 16


def test_any_change_of_a_layer_is_noticed():
    """Rows that change places keep sum and norm."""
    model, x = net(), torch.randn(4, 16)
    plan = mw.plan_conversion(model, mw.MonarchConfig(2), tokens=None)
    model.block.fc1.weight.data = model.block.fc1.weight.data.flip(0)
    with pytest.raises(ValueError, match=r"layer 'block\.fc1' is not what the plan was made for"):
        mw.convert_(model, plan)
    assert type(model.block.fc1) is nn.Linear
    assert model(x).isfinite().all()
