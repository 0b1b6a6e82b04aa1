import copy
import inspect
import json
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import milkweed as mw
from milkweed.models import M2Gpt, generate, stream

# Every option away from its default, so that one that is not kept would show.
OPTIONS = {
    "d_input": 7,
    "d_output": 7,
    "length": 70,
    "d_model": 6,
    "depth": 2,
    "heads": 4,
    "expand": 2,
    "mixer": "long_conv",
    "mixer_options": {"width": 8, "freq": 3.0},
    "dropout": 0.1,
    "vocabulary": "abcdefg",
}


def tokens(*shape):
    return torch.randint(7, shape, generator=torch.Generator().manual_seed(0))


# Orders, constructions and filters away from their defaults, too.
MONARCH = {
    "mixer": "causal_monarch",
    "mixer_options": {"construction": "chebyshev", "order": 3, "filter": {"width": 8, "freq": 3.0}},
}
KRONECKER = {"mixer": "causal_monarch", "mixer_options": {"filter": {"width": 8, "freq": 3.0}}}
MIXERS = pytest.mark.parametrize("options", [{}, KRONECKER, MONARCH], ids=["long_conv", "kronecker", "chebyshev"])


def build(**options):
    """The Monarch matrices of a fresh model are identities; here they are something."""
    model = M2Gpt(**OPTIONS | options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_factors" in name:
                parameter.normal_(std=0.1)
    return model


def test_every_option_is_in_the_config():
    options = OPTIONS | MONARCH | {"expand": 4}
    assert set(OPTIONS) == set(inspect.signature(M2Gpt).parameters)
    assert json.loads(json.dumps(M2Gpt(**options).config)) == {"name": "M2Gpt", "options": options}


@MIXERS
def test_save_and_load(options, tmp_path):
    model = build(**options).eval()
    mw.save_pretrained(model, tmp_path)
    loaded = mw.load_pretrained(tmp_path)
    assert torch.equal(loaded(tokens(2, 30)), model(tokens(2, 30)))
    assert loaded.vocabulary == loaded.options["vocabulary"] == "abcdefg"


@pytest.mark.parametrize(("options", "count"), [({}, 152_245_872), ({"d_model": 1024, "depth": 36}, 356_298_528)])
def test_sizes_near_the_published_ones(options, count):
    """145M and 360M in the paper; what it says leaves the rest open."""
    with torch.device("meta"):
        model = M2Gpt(**options)
        assert model(torch.zeros(1, 5, dtype=torch.int64)).shape == (1, 5, 50257)
    assert sum(p.numel() for p in model.parameters()) == count
    assert not any("mlp" in name for name, _ in model.named_modules())


def literal_norm(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def literal_mixer(mixer, x):
    """Sums over the past, channel by channel."""
    projected = x @ mixer.in_linear.weight.T + mixer.in_linear.bias
    short = torch.stack(
        [
            mixer.short_conv.bias
            + sum(mixer.short_conv.weight[:, 2 - lag] * projected[t - lag] for lag in range(min(3, t + 1)))
            for t in range(len(x))
        ]
    )
    x1, x2, v = short.chunk(3, 1)
    kernel, _ = mixer.conv.conv.kernels(len(x))
    heads, columns = len(kernel), []
    for c in range(v.shape[1]):
        signal = (v * x1)[:, c]
        y = [sum(kernel[c % heads, t - s] * signal[s] for s in range(t + 1)) for t in range(len(x))]
        columns.append(torch.stack(y) + mixer.conv.conv.skip[c % heads] * signal)
    return (torch.stack(columns, 1) * x2) @ mixer.out_linear.weight.T + mixer.out_linear.bias


def literal(model, text):
    x = model.encoder.weight[text]
    for block in model.blocks:
        x = x + literal_mixer(block.layer, literal_norm(block.norm.norm, x))
    return literal_norm(model.norm, x) @ model.encoder.weight.T


@pytest.mark.sampled
@pytest.mark.parametrize("length", [1, 2, 13])
@pytest.mark.parametrize("options", [{}, {"heads": 12}, {"heads": 1, "mixer_options": {"kernel": "explicit"}}])
def test_values_and_gradients_are_those_of_the_sums(options, length):
    model = build(dropout=0.0, **options).double()
    x = tokens(2, length)
    found, expected = model(x), torch.stack([literal(model, text) for text in x])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(found)
    parameters = dict(model.named_parameters())
    a = torch.autograd.grad(found, list(parameters.values()), cotangent)
    b = torch.autograd.grad(expected, list(parameters.values()), cotangent)
    for name, one, two in zip(parameters, a, b, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-10, msg=name)


def test_a_fresh_causal_monarch_is_a_long_convolution():
    monarch = M2Gpt(**OPTIONS | KRONECKER | {"dropout": 0.0}).double()
    conv = M2Gpt(**OPTIONS | {"dropout": 0.0, "heads": 12}).double()
    names = {"conv.mix.filter.": "conv.conv.filter.", "conv.mix.D": "conv.conv.skip"}
    state = {}
    for name, value in monarch.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = value
    conv.load_state_dict({name: value for name, value in state.items() if "_factors" not in name})
    x = tokens(2, 67)
    torch.testing.assert_close(monarch(x), conv(x), rtol=1e-9, atol=1e-9)


@MIXERS
def test_float32_is_close_to_float64(options):
    model, x = build(dropout=0.0, **options), tokens(3, 63)
    exact = copy.deepcopy(model).double()(x)
    assert (model(x) - exact).norm() <= 1e-5 * exact.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert (y.float() - exact).norm() <= 8 * torch.finfo(torch.bfloat16).eps * exact.norm()


@MIXERS
def test_outputs_depend_on_the_past_alone(options):
    """By the Jacobian of the blocks' outputs in the embedded tokens."""
    model = build(dropout=0.0, **options).double()
    embedded = torch.randn(1, 12, 6, dtype=torch.float64)

    def run(x):
        for block in model.blocks:
            x = block(x)
        return x[0]

    jacobian = torch.autograd.functional.jacobian(run, embedded)[:, :, 0].abs().sum((1, 3))
    future = torch.ones(12, 12).triu(1).bool()
    assert jacobian[future].max() < 1e-12
    assert (jacobian[~future] > 1e-8).all()


@pytest.mark.sampled
@MIXERS
@pytest.mark.parametrize("length", [1, 64, 67])
def test_steps_equal_forward(length, options):
    """From the start, and after prompts of several lengths."""
    model = build(**options).double()
    u = tokens(2, length)
    stepper = model.stepper()
    expected = model.eval()(u)
    for prompt in {0, 1, length // 2, length - 1}:
        state, outputs = stepper.initial_state(2), []
        if prompt:
            y, state = stepper.read(u[:, :prompt], state)
            outputs.append(y)
        for t in range(prompt, length):
            y, state = stepper(u[:, t], state)
            outputs.append(y[:, None])
        torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-9, atol=1e-9)


@MIXERS
def test_a_prompt_may_be_read_in_parts_and_a_state_used_twice(options):
    model = build(**options).double().eval()
    u, stepper = tokens(3, 61), model.stepper()
    _, early = stepper.read(u[:, :17], stepper.initial_state(3))
    once, state = stepper.read(u[:, 17:50], early)
    torch.testing.assert_close(once, model(u[:, :50])[:, 17:], rtol=1e-9, atol=1e-9)
    stepper(u[:, 50], state)
    again, _ = stepper.read(u[:, 17:], early)
    torch.testing.assert_close(again, model(u)[:, 17:], rtol=1e-9, atol=1e-9)


def test_long_float32_decoding():
    model = build(length=1000).eval()
    u = tokens(1, 1000)
    stepper = model.stepper()
    state, outputs = stepper.initial_state(1), []
    for t in range(1000):
        y, state = stepper(u[:, t], state)
        outputs.append(y)
    exact = copy.deepcopy(model).double()(u)
    assert (torch.stack(outputs, 1) - exact).abs().max() <= 1e-5 * exact.abs().max()


@MIXERS
def test_a_stepper_keeps_the_parameters_it_was_made_with(options):
    model = build(**options).eval()
    stepper, u = model.stepper(), tokens(1, 9)
    before = model(u)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    torch.testing.assert_close(stepper.read(u, stepper.initial_state(1))[0], before)


def test_generation():
    model = build().double().eval()
    prompt = tokens(2, 5)
    text = prompt
    for _ in range(20):
        text = torch.cat([text, model(text)[:, -1:].argmax(-1)], 1)
    assert torch.equal(generate(model, prompt, 20, temperature=0), text)
    with torch.no_grad():
        model.encoder.weight.mul_(30)  # so that some tokens are likelier than others
    many = prompt[:1].expand(4000, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.bincount(next(stream(model, many, 1, temperature=0.8, generator=generator)), minlength=7) / 4000
    probabilities = (model(prompt[:1])[0, -1] / 0.8).softmax(-1)
    assert (drawn - probabilities).abs().max() < 0.03
    order = probabilities.argsort(descending=True)
    assert set(next(stream(model, many, 1, top_k=3)).tolist()) <= set(order[:3].tolist())
    assert set(generate(model, many, 1, top_p=1e-9)[:, -1].tolist()) == {int(model(prompt[:1])[0, -1].argmax())}


@MIXERS
def test_every_parameter_learns_and_checkpointing_gives_the_same(options):
    model, u = build(**options).eval(), tokens(2, 70)
    checkpoint(model, u, use_reentrant=False).square().sum().backward()
    saved = [p.grad.clone() for p in model.parameters()]
    assert all(grad.isfinite().all() and grad.any() for grad in saved)
    model.zero_grad()
    model(u, torch.tensor([70, 70])).square().sum().backward()
    for a, p in zip(saved, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


def test_at_the_start_it_is_in_doubt_among_all_tokens():
    loss = F.cross_entropy(build()(tokens(8, 30)).flatten(0, 1), tokens(8, 30).flatten())
    assert loss.item() == pytest.approx(math.log(7), abs=0.2)


def test_it_learns_to_repeat_what_was_four_tokens_ago():
    model = build(dropout=0.0, d_model=16, length=40)
    optimizer = torch.optim.AdamW(mw.nn.parameter_groups(model, lr=1e-2))
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        text = torch.randint(7, (16, 40), generator=generator)
        text[:, 4:] = text[:, :4].repeat(1, 9)
        loss = F.cross_entropy(model(text[:, :-1])[:, 4:].flatten(0, 1), text[:, 5:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.sampled(3)
@MIXERS
def test_compiles_whole(options):
    model, u = build(dropout=0.0, depth=1, **options), tokens(2, 33)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(u), model(u))
    compiled(u).sum().backward()


def test_no_sequences_are_no_error():
    assert build()(tokens(0, 5)).shape == (0, 5, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"expand": 0}, "expand must be at least 1; got 0"),
        ({"d_output": 3}, "d_output=3 must be d_input=7"),
        ({"heads": 5}, "heads must divide expand \\* d_model; got heads=5, expand=2, d_model=6"),
        ({"vocabulary": "ab"}, "vocabulary must have d_input=7 different characters; got 2"),
        ({"mixer": "monarch"}, "did you mean 'causal_monarch'"),
        ({"mixer_options": {"kernel": "explict"}}, "did you mean 'explicit'"),
        ({"mixer_options": {"bidirectional": True}}, "mixer_options='bidirectional' is unknown"),
        ({"mixer_options": {"widht": 8}}, "did you mean 'width'"),
        (KRONECKER | {"mixer_options": {"heads": 3}}, "mixer_options='heads' is unknown"),
        (KRONECKER | {"mixer_options": {"filter": {"widht": 8}}}, "mixer_options.filter='widht' is unknown"),
        (KRONECKER | {"mixer_options": {"construction": "kroneker"}}, "did you mean 'kronecker'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_options_that_are_none_are_refused():
    with pytest.raises(TypeError, match="mixer_options must be a mapping of LongConv's arguments, or None; got 3"):
        build(mixer_options=3)
    with pytest.raises(TypeError, match=r"mixer_options\.filter must be a mapping of ImplicitFilter's arguments"):
        build(mixer="causal_monarch", mixer_options={"filter": "implicit"})


def test_bad_inputs_are_refused():
    model = build()
    with pytest.raises(ValueError, match="contexts up to length=70"):
        model(tokens(1, 71))
    with pytest.raises(ValueError, match=r"tokens must be in 0 .. 6; got 7 .. 7"):
        model(torch.tensor([[7]]))
    with pytest.raises(ValueError, match=r"tokens must be in 0 .. 6; got 7 .. 7"):
        model.stepper()(torch.tensor([7]), model.stepper().initial_state(1))
    with pytest.raises(ValueError, match="rate must be 1"):
        model.stepper(0.5)
    with pytest.raises(ValueError, match="must fit the model's length=70; got 65 tokens and steps=7"):
        generate(model, tokens(1, 65), 7)
    assert generate(model, tokens(1, 65), 6).shape == (1, 71)
