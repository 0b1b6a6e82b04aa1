"""Every method of PEFT on a converted model: it works as on the dense model, or it is refused by its name."""

import copy

import pytest
import torch
from tests.convert.peft_models import QUIET, adapted, converted, dense_twin, marked, output, peft, stirred

import milkweed as mw
from milkweed.convert.peft.peft_type import NAME

pytestmark = [QUIET, pytest.mark.filterwarnings("ignore:`past_key_values`")]
CONFIGS = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
# What is put into linear layers as peft does it for dense ones. The values are what a configuration needs.
REFUSED = {
    "ADALORA": {"total_step": 10},
    "ADAMSS": {},
    "BEFT": {},
    "BOFT": {},
    "C3A": {"block_size": 4},
    "DEFT": {},
    "DELORA": {},
    "FOURIERFT": {},
    "FROD": {},
    "GLORA": {},
    "GRALORA": {},
    "HIRA": {},
    "HRA": {},
    "IA3": {},
    "LILY": {},
    "LOHA": {},
    "LOKR": {},
    "MISS": {},
    "OFT": {},
    "OSF": {},
    "PEANUT": {},
    "POLY": {},
    "PSOFT": {},
    "PVERA": {},
    "RANDLORA": {},
    "ROAD": {},
    "SHIRA": {},
    "SUPERTUNING": {},
    "TINYLORA": {},
    "UNILORA": {},
    "VBLORA": {},
    "VERA": {},
    "WAVEFT": {},
}
# What stands elsewhere, or beside the layers.
WORKING = {
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "CARTRIDGE": {"num_virtual_tokens": 4},
    "CPT": {},
    "LN_TUNING": {},
    "LORA": {"r": 4, "target_modules": "all-linear"},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4, "num_tasks": 2},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4},
    "SHADOW": {},
    "TRAINABLE_TOKENS": {"token_indices": [3, 4, 5]},
    "XLORA": {"hidden_size": 32, "xlora_depth": 2},
    NAME: {"nblocks": 4, "target_modules": "all-linear"},
}


def make(method, options, **more):
    return CONFIGS[peft.PeftType(method)](**options, **more)


def test_every_method_is_in_one_of_the_tables():
    assert {method.value for method in CONFIGS} == REFUSED.keys() | WORKING.keys()
    assert not REFUSED.keys() & WORKING.keys()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", REFUSED)
@pytest.mark.parametrize("named", ["by default", "all-linear"])
def test_methods_for_dense_layers_are_refused_by_name(method, named):
    model = marked(converted("llama")[0])
    before, trained = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    config = make(method, REFUSED[method], task_type="CAUSAL_LM")
    if named == "all-linear":
        config.target_modules = named
    with pytest.raises(
        ValueError, match=rf"{type(config).__name__} cannot adapt layer 'model.*, a MonarchLinear: .*densify_"
    ):
        peft.get_peft_model(model, config)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == trained


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", WORKING)
@pytest.mark.filterwarnings("ignore:Unsupported layer type .*LlamaRMSNorm")
def test_other_methods_work_as_on_the_dense_model(method, tmp_path):
    model, batch = converted("llama")
    model.config.use_cache = method != "XLORA"
    twin, options, found = dense_twin(model), dict(WORKING[method]), []
    marked(model)
    if method == "XLORA":
        for i in range(2):
            expert = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules="all-linear"))
            stirred(expert, 0.1 * (i + 1)).save_pretrained(tmp_path / str(i))
        options["adapters"] = {str(i): str(tmp_path / str(i)) for i in range(2)}
    if method == "MULTITASK_PROMPT_TUNING":
        batch |= {"task_ids": torch.tensor([0, 1, 0, 1])}
    for base in (model, twin):
        torch.manual_seed(0)
        tuned = stirred(peft.get_peft_model(base, make(method, options, task_type="CAUSAL_LM")))
        found.append(output(tuned, batch)[:, -5:])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    plain = output(converted("llama")[0], {name: value for name, value in batch.items() if name != "task_ids"})
    assert not torch.allclose(found[0], plain[:, -5:], atol=1e-3)


def test_methods_for_dense_layers_adapt_those_that_are_left():
    model, batch = converted("llama")
    expected = output(model, batch)
    tuned = peft.get_peft_model(model, peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[])).eval()
    assert torch.equal(output(tuned, batch), expected)
    assert not torch.allclose(output(stirred(tuned), batch), expected)


def test_adapters_of_other_methods_are_refused_on_loading(tmp_path):
    model, _ = converted("llama")
    adapted(dense_twin(model), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="IA3Config cannot adapt layer"):
        peft.PeftModel.from_pretrained(model, tmp_path)


DENSE_ONLY = {
    "DoRA": {"use_dora": True},
    "KaSA": {"kasa_config": peft.tuners.lora.KasaConfig()},
    "arrow_config": {"arrow_config": peft.tuners.lora.ArrowConfig()},
    **{
        f"init_lora_weights='{name}'": {"init_lora_weights": name}
        for name in ("pissa", "pissa_niter_4", "olora", "corda", "mica")
    },
    "init_lora_weights='loftq'": {"init_lora_weights": "loftq", "loftq_config": peft.LoftQConfig()},
    "init_lora_weights='lora_ga'": {"init_lora_weights": "lora_ga", "lora_ga_config": peft.tuners.lora.LoraGAConfig()},
}


@pytest.mark.parametrize("marker", [False, True])
@pytest.mark.parametrize("method", DENSE_ONLY)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_variants_of_lora_that_read_the_weight_are_refused_by_name(method, marker):
    model, batch = converted("gpt2")
    expected = output(model, batch)
    if marker:
        marked(model)
    config = peft.LoraConfig(r=4, target_modules="all-linear", **DENSE_ONLY[method])
    with pytest.raises(
        ValueError, match=rf"{method}.* cannot adapt layer 'transformer.h.0.attn.c_attn', a ConcatLinear"
    ):
        peft.get_peft_model(model, config)
    assert torch.equal(output(model, batch), expected)


def test_biases_of_packed_layers_are_not_forgotten():
    model, _ = converted("gpt2")
    with pytest.raises(ValueError, match=r"bias='lora_only' cannot train the bias of 'transformer.*c_attn'"):
        peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", bias="lora_only"))
    with pytest.raises(ValueError, match=r"bias='monarch_only' cannot train the bias of 'transformer.*c_attn'"):
        peft.get_peft_model(model, mw.MonarchAdapterConfig(target_modules="all-linear", bias="monarch_only"))


def test_parts_of_packed_layers_are_no_targets():
    model, _ = converted("gpt2")
    name = "transformer.h.1.attn.c_attn"
    for config in (peft.LoraConfig, mw.MonarchAdapterConfig):
        with pytest.raises(
            ValueError, match=rf"target_modules: {name}.parts.2 is a part of a packed layer; name '{name}'"
        ):
            peft.get_peft_model(model, config(target_modules=[f"{name}.parts.2"]))


def test_parameters_of_structured_layers_may_be_targets(tmp_path):
    """Peft reads a factor's blocks as experts: it adds low-rank updates to each."""
    model, batch = converted("llama")
    expected = output(model, batch)
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["q_proj.right"])
    tuned = peft.get_peft_model(copy.deepcopy(model), config).eval()
    assert torch.equal(output(tuned, batch), expected)
    after = output(stirred(tuned, 1.0), batch)
    assert not torch.allclose(after, expected, atol=1e-4)
    tuned.save_pretrained(tmp_path)
    assert torch.equal(output(peft.PeftModel.from_pretrained(model, tmp_path).eval(), batch), after)
    torch.testing.assert_close(output(tuned.merge_and_unload(), batch), after)


def test_copied_layers_and_invocation_tokens():
    model, batch = converted("llama")
    token = batch["input_ids"][0, 4].item()
    for options in ({"layer_replication": [[0, 2], [1, 2]]}, {"alora_invocation_tokens": [token]}):
        config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", **options)
        found = [output(adapted(base, config), batch) for base in (model, dense_twin(model))]
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
