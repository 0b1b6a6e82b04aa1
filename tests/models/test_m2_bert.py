"""M2-BERT: the published sizes, padding, heads and checkpointing."""

import inspect
import json

import pytest
import torch

import milkweed as mw
from milkweed.models import M2Bert, build_model

TINY = {"d_input": 40, "length": 24, "d_model": 8, "depth": 2, "d_hidden": 16, "nblocks": 2, "dropout": 0.0}
# Every option away from its default, so that one that is not kept would show.
OPTIONS = {
    "d_input": 40,
    "d_output": 3,
    "length": 24,
    "d_model": 8,
    "depth": 2,
    "d_hidden": 16,
    "nblocks": 2,
    "token_types": 3,
    "pre_norm": True,
    "residual_long_conv": False,
    "head": "classification",
    "padding": "legacy",
    "dropout": 0.2,
    "kernel_options": {"width": 16, "filters": "special"},
}


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"pre_norm": True}, 80_285_760),
        ({"d_model": 960}, 115_583_616),
        ({"d_model": 1536}, 259_133_760),
        ({"d_model": 1792}, 341_038_144),
        ({"length": 2048}, 81_972_288),
        ({"length": 8192}, 87_428_160),
        ({"length": 32768}, 109_251_648),
    ],
)
def test_published_parameter_counts(options, parameters):
    # With the masked language model's head, its decoder tied: as the published models are counted.
    with torch.device("meta"):
        model = M2Bert(**options)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_every_option_is_in_the_config_and_the_file(tmp_path):
    assert set(OPTIONS) == set(inspect.signature(M2Bert).parameters)
    assert all(OPTIONS[name] != p.default for name, p in inspect.signature(M2Bert).parameters.items())
    model = M2Bert(**OPTIONS).eval()
    assert json.loads(json.dumps(model.config)) == {"name": "M2Bert", "options": OPTIONS}
    assert type(build_model(model.config)) is M2Bert
    mw.save_pretrained(model, tmp_path)
    tokens = torch.randint(0, 40, (2, 24))
    assert torch.equal(mw.load_pretrained(tmp_path)(tokens), model(tokens))


@pytest.mark.parametrize("head", ["classification", "masked_lm", "none"])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_masked_padding_changes_nothing(head, pre_norm):
    model = M2Bert(**TINY, head=head, d_output=3 if head == "classification" else None, pre_norm=pre_norm).double()
    tokens, lengths = torch.randint(0, 40, (3, 20)), [20, 7, 1]
    y = model(tokens, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = model(tokens[row : row + 1, :length])[0]
        found = y[row] if head == "classification" else y[row, :length]
        torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-9)


def test_masked_padding_gets_no_gradient():
    model = M2Bert(**TINY, head="none").double()
    embedded = torch.randn(2, 20, 8, dtype=torch.float64, requires_grad=True)
    model(embedded, torch.tensor([20, 7]))[1, :7].square().sum().backward()
    assert embedded.grad[1, 7:].abs().max() == 0
    assert embedded.grad[1, :7].abs().min() > 0


def test_legacy_padding_is_read():
    model = M2Bert(**TINY, padding="legacy", head="none").double()
    tokens = torch.randint(0, 40, (2, 20))
    assert torch.equal(model(tokens, torch.tensor([20, 7])), model(tokens))
    assert not torch.allclose(model(tokens)[1, :7], model(tokens[1:, :7])[0])


def test_layers_are_drawn_independently():
    blocks = M2Bert(**TINY).encoder.blocks
    for (name, first), second in zip(blocks[0].named_parameters(), blocks[1].parameters(), strict=True):
        constant = name.endswith(("norm.weight", "norm.bias", "filter.frequency", "filter.positions"))
        assert torch.equal(first, second) == constant, name


def test_the_decoder_is_the_embedding():
    model = M2Bert(**TINY).double().eval()
    tokens = torch.randint(0, 40, (2, 20))
    x, head = model.encoder(tokens), model.head
    x = torch.nn.functional.gelu(x @ head.dense.weight.T + head.dense.bias)
    x = torch.nn.functional.layer_norm(x, (8,), head.norm.weight, head.norm.bias, 1e-12)
    torch.testing.assert_close(model(tokens), x @ model.encoder.tokens.weight.T + head.bias)
    names = dict(model.named_parameters())
    assert not any("decoder" in name for name in names)
    model(tokens)[..., 5].sum().backward()
    absent = next(token for token in range(40) if token not in tokens and token != 5)
    assert model.encoder.tokens.weight.grad[absent].abs().max() == 0
    assert model.encoder.tokens.weight.grad[5].abs().max() > 0


@pytest.mark.parametrize("padding", ["masked", "legacy"])
def test_gradient_checkpointing(padding):
    model = M2Bert(**TINY, padding=padding).train()
    tokens, lengths = torch.randint(0, 40, (2, 20)), torch.tensor([20, 7])
    grads = []
    for switch in (False, True):
        model.encoder.gradient_checkpointing = switch
        model.zero_grad()
        model(tokens, lengths).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*grads)
    assert all(grad.isfinite().all() and grad.abs().max() > 0 for grad in grads[0])


def test_token_types_and_embedded_inputs():
    model = M2Bert(**TINY, head="none").double()
    tokens = torch.randint(0, 40, (2, 20))
    torch.testing.assert_close(model(tokens), model(tokens, token_types=torch.zeros_like(tokens)))
    assert not torch.allclose(model(tokens), model(tokens, token_types=torch.ones_like(tokens)))
    torch.testing.assert_close(model(model.encoder.tokens(tokens)), model(tokens))


def test_compiles_and_autocasts():
    model, tokens = M2Bert(**TINY).eval(), torch.randint(0, 40, (2, 20))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens), model(tokens))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(tokens)
    y.float().square().mean().backward()
    assert (y.float() - model(tokens)).norm() < 0.05 * model(tokens).norm()


def test_it_learns_sequences_by_heart():
    model = M2Bert(d_output=4, head="classification", **(TINY | {"d_model": 32, "d_hidden": 64}))
    tokens, classes = torch.randint(0, 40, (8, 20)), torch.arange(8) % 4
    optimizer = torch.optim.AdamW(mw.nn.parameter_groups(model, lr=3e-3))
    for _ in range(50):
        loss = torch.nn.functional.cross_entropy(model(tokens), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "mlm"}, "masked_lm"),
        ({"padding": "none"}, "legacy"),
        ({"length": 0}, "length must be at least 1"),
        ({"head": "classification"}, "needs d_output"),
        ({"d_output": 7}, "d_output=7 must be d_input=40"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        M2Bert(**(TINY | options))


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (torch.full((2, 5), 40), {}, "tokens must be in 0 .. 39"),
        (torch.zeros(2, 25, dtype=torch.long), {}, "up to length=24 tokens"),
        (torch.zeros(2, 0, dtype=torch.long), {}, "L >= 1"),
        (torch.zeros(2, 5, 7), {}, "d_model=8"),
        (torch.zeros(2, 5, dtype=torch.long), {"token_types": torch.zeros(2, 4, dtype=torch.long)}, "inputs' shape"),
        (torch.zeros(2, 5, dtype=torch.long), {"token_types": torch.full((2, 5), 2)}, "in 0 .. 1"),
        (torch.zeros(2, 5, dtype=torch.long), {"lengths": torch.tensor([5, 0])}, "lengths must be in 1"),
    ],
)
def test_bad_inputs(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        M2Bert(**TINY)(inputs, **options)
