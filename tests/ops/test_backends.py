"""Which backend runs, and how that is asked and told."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from milkweed import ops
from milkweed.models import M2Bert
from milkweed.ops import backends


def test_order_argument_and_context():
    u, kernel = torch.randn(1, 2, 8), torch.randn(2, 8)
    assert ops.available_backends("fft_conv") == ("triton", "eager", "reference", "export", "float64")
    assert ops.explain("fft_conv", u, kernel).backend == "eager"
    with ops.use_backend("reference"):
        assert ops.explain("fft_conv", u, kernel).backend == "reference"
        assert ops.explain("fft_conv", u, kernel, backend="eager").backend == "eager"
        with ops.use_backend(None):
            assert ops.explain("fft_conv", u, kernel).backend == "eager"
    assert ops.explain("fft_conv", u, kernel).backend == "eager"


def test_context_ends_with_an_error():
    with pytest.raises(RuntimeError, match="inside"), ops.use_backend("reference"):
        raise RuntimeError("inside")
    assert ops.explain("monarch_mm").backend == "eager"


def test_the_context_decides_what_runs(monkeypatch):
    ran = []
    spies = tuple(
        backends.Backend(b.name, lambda *a, b=b, **k: (ran.append(b.name), b.run(*a, **k))[1], b.refusal, b.passed_over)
        for b in backends._operations["fft_conv"]
    )
    monkeypatch.setitem(backends._operations, "fft_conv", spies)
    u, kernel = torch.randn(1, 2, 8), torch.randn(2, 8)
    ops.fft_conv(u, kernel)
    with ops.use_backend("reference"):
        ops.fft_conv(u, kernel)
        ops.fft_conv(u, kernel, backend="eager")
    assert ran == ["eager", "reference", "eager"]


def test_refusals(monkeypatch):
    picky = backends.Backend("picky", lambda x: x, lambda x: "needs a GPU; move x with .cuda()")
    plain = backends.Backend("plain", lambda x: x + 1)
    monkeypatch.setitem(backends._operations, "toy", (picky, plain))
    choice = ops.explain("toy", 1)
    assert choice.backend == "plain"
    assert "not picky: needs a GPU" in str(choice)
    assert backends.dispatch("toy", None, 1) == 2
    with pytest.raises(ValueError, match=r"backend='picky' cannot run toy: needs a GPU; move x with .cuda\(\)"):
        backends.dispatch("toy", "picky", 1)
    monkeypatch.setitem(backends._operations, "toy", (picky,))
    with pytest.raises(ValueError, match="no backend can run toy: picky: needs a GPU"):
        backends.dispatch("toy", None, 1)


def test_unknown_names():
    with pytest.raises(ValueError, match="did you mean 'fft_conv'"):
        ops.explain("fft_con")
    with pytest.raises(ValueError, match="did you mean 'reference'"), ops.use_backend("refernce"):
        pass


def test_compile_follows_the_context():
    compiled = torch.compile(lambda u, k: ops.fft_conv(u, k), fullgraph=True, backend="aot_eager")
    u, kernel = torch.randn(2, 3, 16), torch.randn(3, 16)
    eager = compiled(u, kernel)
    with ops.use_backend("reference"):
        torch.testing.assert_close(compiled(u, kernel), eager)


def test_forward_mode_takes_the_way_that_knows_it():
    u, kernel = torch.randn(2, 3, 8), torch.randn(3, 8)
    c, dt_a = torch.randn(3, 4, 2), -torch.rand(3, 4, 2)
    x, right, left = torch.randn(2, 12), torch.randn(3, 4, 4), torch.randn(4, 2, 3)
    # All are linear in their first argument, so the tangent of x along x is f(x).
    for function, first in (
        (lambda u: ops.fft_conv(u, kernel), u),
        (lambda c: ops.diagonal_ssm_kernel(c, dt_a, 9), c),
        (lambda u: ops.diagonal_ssm_state(u, dt_a), u),
        (lambda x: ops.monarch_mm(x, right, left), x),
        (lambda x: ops.block_diagonal_mm(x, right), x),
    ):
        value, tangent = torch.func.jvp(function, (first,), (first,))
        torch.testing.assert_close(tangent, value)
        torch.testing.assert_close(value, function(first))
    with pytest.raises(ValueError, match=r"torch\.func transforms cannot look inside it"):
        torch.func.jvp(lambda u: ops.fft_conv(u, kernel, backend="eager"), (u,), (u,))
    with pytest.raises(ValueError, match="no forward-mode derivative"), forward_ad.dual_level():
        ops.fft_conv(forward_ad.make_dual(u, u), kernel, backend="eager")


def test_exported_without_gradients_then_trained():
    from milkweed.nn import MonarchLinear

    layer = MonarchLinear(16, 16)
    x = torch.randn(5, 16)
    with torch.no_grad():
        exported = torch.export.export(layer, (x,)).module()
    exported(x).sum().backward()
    layer(x).sum().backward()
    torch.testing.assert_close(exported.left.grad, layer.left.grad)


def test_no_integers():
    with pytest.raises(TypeError, match="x must be floating point or complex; got"):
        ops.monarch_mm(torch.ones(2, 12, dtype=torch.int64), torch.randn(3, 4, 4), torch.randn(4, 2, 3))
    with pytest.raises(TypeError, match="weight must be floating point or complex"):
        ops.block_diagonal_mm(torch.ones(2, 12), torch.ones(3, 4, 4, dtype=torch.bool))


def test_complex_numbers_take_the_plain_formula():
    x, weight = torch.randn(2, 12, dtype=torch.complex128), torch.randn(3, 5, 4, dtype=torch.complex128)
    expected = x @ torch.block_diag(*weight).mT
    torch.testing.assert_close(ops.block_diagonal_mm(x, weight), expected)
    with pytest.raises(ValueError, match="it is for real numbers"):
        ops.block_diagonal_mm(x, weight, backend="eager")


def test_empty_factors():
    with pytest.raises(ValueError, match="weight must have no dimension of size 0"):
        ops.block_diagonal_mm(torch.ones(2, 0), torch.ones(3, 4, 0))


def test_tensors_on_several_devices_are_refused():
    x, weight = torch.randn(2, 6), torch.randn(3, 2, 2, device="meta")
    with pytest.raises(
        ValueError, match=r"all tensors of block_diagonal_mm must be on one device; got \['cpu', 'meta'\]"
    ):
        ops.block_diagonal_mm(x, weight)


def chosen():
    return ops.explain("fft_conv", torch.randn(1, 2, 8), torch.randn(2, 8)).backend


def test_threads_do_not_see_each_others_blocks():
    first, second = threading.Barrier(2), threading.Barrier(2)
    seen = {}

    def run(name, leave_first):
        with ops.use_backend(name):
            first.wait()
            seen[name] = chosen()
            if not leave_first:
                second.wait()
                seen[name, "after"] = chosen()
        if leave_first:
            second.wait()

    threads = [threading.Thread(target=run, args=pair) for pair in (("reference", True), ("float64", False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"reference": "reference", "float64": "float64", ("float64", "after"): "float64"}
    assert chosen() == "eager"


def test_new_threads_start_with_automatic_choice_unless_a_context_is_given():
    with ops.use_backend("reference"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(chosen).result() == "eager"
        assert pool.submit(contextvars.copy_context().run, chosen).result() == "reference"


def test_tasks_do_not_see_each_others_blocks():
    async def run(name):
        with ops.use_backend(name):
            await asyncio.sleep(0.001)
            found = [chosen(), await asyncio.to_thread(chosen)]
            await asyncio.sleep(0.001)
            return [*found, chosen()]

    @ops.use_backend("reference")
    async def decorated():
        await asyncio.sleep(0.001)
        return chosen()

    async def main():
        return await asyncio.gather(run("reference"), run("float64"), decorated()), chosen()

    assert asyncio.run(main()) == ([["reference"] * 3, ["float64"] * 3, "reference"], "eager")


def test_a_decorated_generator_leaves_nothing_to_its_caller():
    ended = []

    @ops.use_backend("reference")
    def generate():
        try:
            sent = yield chosen()
            with pytest.raises(RuntimeError, match="thrown"):
                yield sent, chosen()
            yield chosen()
        finally:
            ended.append(chosen())
        return "value"

    generator = generate()
    assert (next(generator), chosen()) == ("reference", "eager")
    with ops.use_backend("float64"):
        assert (generator.send(1), chosen()) == ((1, "reference"), "float64")
    assert (generator.throw(RuntimeError("thrown")), chosen()) == ("reference", "eager")
    with pytest.raises(StopIteration) as stop:
        next(generator)
    assert stop.value.value == "value"
    generator = generate()
    next(generator)
    generator.close()
    assert ended == ["reference", "reference"]
    with pytest.raises(TypeError, match="cannot decorate the asynchronous generator"):

        @ops.use_backend("reference")
        async def asynchronous():
            yield 1


def test_generators_that_hold_blocks_may_end_in_any_order():
    def hold(name):
        with ops.use_backend(name):
            yield

    with ops.use_backend("float64"):
        first, second = hold("reference"), hold("eager")
        next(first), next(second)
        first.close()
        assert chosen() == "eager"
        second.close()
        assert chosen() == "float64"
        outlives = hold("reference")
        next(outlives)
    outlives.close()
    assert chosen() == "eager"
    elsewhere = hold("reference")
    contextvars.copy_context().run(next, elsewhere)
    elsewhere.close()  # in another context than it began in
    assert chosen() == "eager"


def test_one_block_may_be_entered_again():
    block = ops.use_backend("reference")
    with block:
        with block:
            assert chosen() == "reference"
        assert chosen() == "reference"
    assert chosen() == "eager"
    assert block(chosen)() == "reference"


def test_compiled_functions_follow_the_context_of_their_thread():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compiled = torch.compile(lambda u, k: ops.fft_conv(u, k) + 0, fullgraph=True, backend=counter)
    u, kernel = torch.randn(2, 3, 16), torch.randn(3, 16)
    compiled(u, kernel)
    few = counter.op_count

    def run():
        with ops.use_backend("reference"):
            compiled(u, kernel)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert counter.frame_count == 2
    assert counter.op_count > 2 * few
    compiled(u, kernel), run()
    assert counter.frame_count == 2


def test_blocks_inside_compiled_functions():
    def run(u, kernel):
        with ops.use_backend("reference"):
            y = ops.fft_conv(u, kernel)
            with ops.use_backend("float64"):
                y = y + ops.fft_conv(u, kernel)
        return y + ops.fft_conv(u, kernel)

    u, kernel = torch.randn(2, 3, 16), torch.randn(3, 16)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(u, kernel), run(u, kernel))
    with ops.use_backend("reference"):
        torch.testing.assert_close(compiled(u, kernel), run(u, kernel))
    assert chosen() == "eager"


@pytest.mark.parametrize("strict", [False, True])
def test_exports_what_the_context_chooses(strict):
    class Convolution(torch.nn.Module):
        def forward(self, u, kernel):
            return ops.fft_conv(u, kernel)

    def operations():
        graph = torch.export.export(Convolution(), (torch.randn(2, 3, 8), torch.randn(3, 8)), strict=strict).graph
        return {str(node.target) for node in graph.nodes}

    assert "milkweed.fft_conv.default" not in operations()
    with ops.use_backend("eager"):
        assert "milkweed.fft_conv.default" in operations()


def test_checkpointing_recomputes_with_the_backend_of_the_forward_pass():
    ran = []

    def block(u):
        ran.append(chosen())
        return ops.fft_conv(u, u[0]).sin()

    u = torch.randn(2, 3, 8, requires_grad=True)
    with ops.use_backend("reference"):
        y = checkpoint(block, u, use_reentrant=False, **backends.checkpoint_options())
    y.sum().backward()
    y = checkpoint(block, u, use_reentrant=False, **backends.checkpoint_options())
    with ops.use_backend("reference"):
        y.sum().backward()
    assert ran == ["reference", "reference", "eager", "eager"]


def test_checkpointed_model_trained_outside_the_block():
    model = M2Bert(50, length=16, d_model=16, depth=2, nblocks=4, dropout=0.0)
    model.gradient_checkpointing = True
    with ops.use_backend("reference"):
        loss = model(torch.randint(50, (2, 16))).square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_float64_backend_of_every_operation():
    u, kernel = torch.randn(2, 3, 64), torch.randn(3, 64)
    c, dt_a = torch.randn(3, 4, 2), -torch.rand(3, 4, 2)
    a, vector = torch.randn(3, 4, 4) / 4, torch.randn(3, 4)
    x, right, left = torch.randn(2, 12), torch.randn(3, 4, 4), torch.randn(4, 2, 3)
    for name, operation in {
        "fft_conv": lambda b: ops.fft_conv(u, kernel, backend=b),
        "frozen_conv": lambda b: ops.fft_conv(u, ops.FrozenKernel(kernel, length=64), backend=b),
        "diagonal_ssm_kernel": lambda b: ops.diagonal_ssm_kernel(c, dt_a, 64, backend=b),
        "diagonal_ssm_state": lambda b: ops.diagonal_ssm_state(u, dt_a, backend=b),
        "dense_ssm_kernel": lambda b: ops.dense_ssm_kernel(a, vector, vector, 64, backend=b),
        "dense_ssm_state": lambda b: ops.dense_ssm_state(u, a, vector, backend=b),
        "dense_ssm_advance": lambda b: ops.dense_ssm_advance(vector[None], a, 9, backend=b),
        "linear_recurrence": lambda b: ops.linear_recurrence(u.abs().clamp_max(1), u, backend=b),
        "monarch_mm": lambda b: ops.monarch_mm(x, right, left, backend=b),
        "block_diagonal_mm": lambda b: ops.block_diagonal_mm(x, right, backend=b),
    }.items():
        assert ops.available_backends(name)[-1] == "float64"
        eager, precise = operation("eager"), operation("float64")
        assert precise.dtype == eager.dtype
        torch.testing.assert_close(precise, eager, rtol=1e-4, atol=1e-4)
        with ops.use_backend("float64"):
            assert torch.equal(operation(None), precise)


def test_float64_backend_under_autocast():
    x, weight = torch.randn(2, 12), torch.randn(3, 5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), ops.use_backend("float64"):
        assert ops.block_diagonal_mm(x, weight).dtype == torch.bfloat16
        assert ops.fft_conv(torch.randn(1, 2, 8), torch.randn(2, 8)).dtype == torch.float32
