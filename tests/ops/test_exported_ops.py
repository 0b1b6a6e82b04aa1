"""Every operation as a program: torch's own checks of it, torch.export, and ONNX Runtime."""

import pytest
import torch
from tests.contracts.exported import DYNAMIC, relative_error, to_onnx

from milkweed import ops
from milkweed.ops import backends

HEADS, MODES = 3, 4


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def constants():
    torch.manual_seed(0)
    skew = draw(HEADS, MODES, MODES)
    a = torch.linalg.matrix_exp((skew - skew.mT - 0.1 * torch.eye(MODES)) / 3)
    exponents = torch.stack([-0.1 * torch.rand(HEADS, MODES), draw(HEADS, MODES)], -1)
    return {
        "a": a,
        "vector": draw(HEADS, MODES),
        "exponents": exponents,
        "pairs": draw(HEADS, MODES, 2),
        "right": draw(2, 6, 5),
        "left": draw(3, 4, 4),
        "uneven": draw(4, 2, 6),
        "network": [draw(6, 4), draw(6), draw(6, 6), draw(6), draw(6, 6), draw(6), draw(HEADS, 6)],
        "kernels": (draw(HEADS, 30), draw(HEADS, 20)),
        "last": 1 + torch.rand(6, dtype=torch.float64),
    }


def frozen(u, k, bandwidth):
    kernel, reverse = (each.to(u.dtype) for each in k["kernels"])
    return ops.FrozenKernel(kernel, reverse, length=200, bandwidth=bandwidth)


# From an input u (B, HEADS, L) of any batch and length, and constants, to a result: every operation at least once. A
# kernel that depends on no input is multiplied by some.
CASES = {
    "block_diagonal_mm": lambda u, k: ops.block_diagonal_mm(u[..., :10], k["right"], bias=k["last"].repeat(2)),
    "dense_ssm_advance": lambda u, k: ops.dense_ssm_advance(
        u[..., :1] * k["vector"], k["a"], (u[:, 0, 0].abs() * 30).long()
    ),
    "dense_ssm_kernel": lambda u, k: ops.dense_ssm_kernel(k["a"], k["vector"], u[..., :1] * k["vector"], u.shape[-1]),
    "dense_ssm_state": lambda u, k: ops.dense_ssm_state(u, k["a"], k["vector"]),
    "diagonal_ssm_kernel": lambda u, k: ops.diagonal_ssm_kernel(
        u[..., :1, None] * k["pairs"], k["exponents"], u.shape[-1]
    ),
    "diagonal_ssm_state": lambda u, k: ops.diagonal_ssm_state(u, k["exponents"]),
    "fft_conv": lambda u, k: ops.fft_conv(u, u[0].sigmoid()),
    "fft_conv of all": lambda u, k: ops.fft_conv(
        u, u[0] / 9, reverse_kernel=u[-1] / 9, skip=k["vector"][:, 0], pre_gate=u.cos(), post_gate=u.sin()
    ),
    "frozen_conv": lambda u, k: ops.fft_conv(u, k["frozen"][0], skip=k["vector"][:, 0]),
    "frozen_conv of few frequencies": lambda u, k: ops.fft_conv(u, k["frozen"][1]),
    "implicit_kernel": lambda u, k: ops.implicit_kernel(
        u[0].mT.repeat(1, 2)[:, :4], k["last"], k["network"], k["last"][:HEADS] / 9
    ),
    "linear_recurrence": lambda u, k: ops.linear_recurrence(u.sigmoid(), u, u[..., 0]),
    "monarch_mm": lambda u, k: ops.monarch_mm(u[..., :10], k["right"], k["left"], bias=k["last"].repeat(2)),
    "monarch_mm without runs": lambda u, k: ops.monarch_mm(
        u[..., :10], k["right"][:, :3], k["left"][:2, :, :3], activation="gelu"
    ),
}
LENGTHS = ((2, 63), (1, 128), (4, 11))


class Program(torch.nn.Module):
    def __init__(self, name, dtype):
        super().__init__()
        self.function = CASES[name]
        self.constants = {
            key: type(value)(each.to(dtype) for each in value) if isinstance(value, list | tuple) else value.to(dtype)
            for key, value in constants().items()
        }
        if "frozen" in name:
            like = torch.zeros(0, dtype=dtype)
            self.constants["frozen"] = [frozen(like, self.constants, share) for share in (1.0, 0.4)]

    def forward(self, u):
        return self.function(u, self.constants)


def test_every_operation_has_a_case_and_an_export_backend():
    assert {name.partition(" ")[0] for name in CASES} == set(backends._operations)
    for name in backends._operations:
        assert "export" in ops.available_backends(name)


@pytest.mark.parametrize("name", CASES)
def test_the_export_backend_is_right_and_differentiable(name):
    program = Program(name, torch.float64)
    for batch, length in ((2, 1), *LENGTHS) if "mm" not in name and "implicit" not in name else LENGTHS:
        u = draw(batch, HEADS, length).requires_grad_()
        found, expected = [], []
        for results, backend in ((found, "export"), (expected, "eager")):
            with ops.use_backend(backend):
                y = program(u)
            results.append(y)
            if y.requires_grad:
                results.append(torch.autograd.grad(y.square().sum(), u)[0])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CASES)
def test_a_program_needs_no_milkweed(name):
    program = Program(name, torch.float64)
    u = draw(3, HEADS, 40)
    sizes = {0: torch.export.Dim("batch", max=500), 2: torch.export.Dim("length", min=11, max=150)}
    exported = torch.export.export(program, (u,), dynamic_shapes=({**sizes},))
    assert not any("milkweed" in str(node.target) for node in exported.graph.nodes)
    run = exported.module()
    for batch, length in LENGTHS:
        u = draw(batch, HEADS, length)
        torch.testing.assert_close(run(u), program(u), rtol=1e-6, atol=1e-8)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CASES)
def test_in_onnx_runtime(name):
    program, exact = Program(name, torch.float32), Program(name, torch.float64)
    u = torch.randn(3, HEADS, 40)
    run = to_onnx(program.eval(), (u,), ({0: DYNAMIC, 2: DYNAMIC},))
    for batch, length in LENGTHS:
        u = torch.randn(batch, HEADS, length)
        assert relative_error(run(u)[0], exact(u.double())) <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_eager_operations_pass_torchs_checks(name):
    # opcheck of every custom op that the case runs, with the arguments that it gets.
    seen = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "milkweed":
                seen.append((func, args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    program = Program(name, torch.float64)
    with Recorder():
        program(draw(2, HEADS, 20))
    assert seen
    for func, args, kwargs in seen[:1]:
        torch.library.opcheck(func, args, kwargs, test_utils=("test_schema", "test_faketensor"))
