"""Compile the Triton kernels for a GPU on a machine without one, and read what the assembler says of them.

``launches`` runs a function that launches kernels, on CPU tensors whose numbers do not matter, and compiles every
kernel as that launch would, without running it; ``compile_offline`` does the same with one kernel and its arguments.
Neither works under TRITON_INTERPRET=1, so the test runs this file in a process of its own:

    python -m tests.ops.triton_offline 90 [part of a case's name]
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Bytes of shared memory that one block may have, by compute capability.
SHARED = {80: 163 * 1024, 90: 227 * 1024}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One kernel as compiled.

    Args:
        kernel: Its name.
        arch: Compute capability, e.g. 90.
        warps: Of a program.
        shared: Bytes of shared memory.
        registers: Of a thread.
        spills: Bytes of a thread's registers that are stored to memory.
        products: Whether it has products of matrices.
        matrix: Instructions for matrix units.
        constants: Its constants.
    """

    kernel: str
    arch: int
    warps: int
    shared: int
    registers: int
    spills: int
    products: bool
    matrix: int
    constants: dict[str, str]

    def problems(self, *, matrix: bool = True, spills: int = 64) -> list[str]:
        """Say what would keep it from running well.

        Args:
            matrix: Whether its products, if it has any, must be on matrix units.
            spills: Bytes of spilled registers that are allowed.

        Returns:
            One line each, or none.
        """
        found = []
        if self.shared > SHARED[self.arch]:
            found.append(f"needs {self.shared} bytes of shared memory, has {SHARED[self.arch]}")
        if self.spills > spills:
            found.append(f"spills {self.spills} bytes of registers")
        if matrix and self.products and not self.matrix:
            found.append("uses no matrix unit")
        return [f"{self.kernel} {self.constants} on sm_{self.arch} {problem}" for problem in found]


class _NoDevice:
    """What Triton asks a driver for before it launches."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # kernels are cached by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def _recording(arch: int) -> Iterator[list[Compiled]]:
    """Compile instead of launch, and keep what came of it."""
    from triton import knobs
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    found: dict[str, Compiled] = {}
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        if log.getvalue():  # else it was compiled before
            found[kernel.hash] = _read(kernel, log.getvalue(), self.arg_names, arch)
        return kernel

    driver.set_active(_NoDevice(arch))
    with knobs.compilation.scope(), knobs.nvidia.scope():
        knobs.compilation.always_compile = True
        knobs.nvidia.dump_ptxas_log = True
        JITFunction.run = compile_only
        kernels: list[Compiled] = []
        try:
            yield kernels
        finally:
            JITFunction.run = launch
            kernels += found.values()


def _read(kernel: Any, log: str, names: list[str], arch: int) -> Compiled:
    def figure(pattern: str) -> int:
        return sum(int(number) for number in re.findall(pattern, log))

    constants = {names[place[0]]: str(value) for place, value in kernel.src.constants.items()}
    return Compiled(
        kernel.name,
        arch,
        kernel.metadata.num_warps,
        kernel.metadata.shared,
        figure(r"Used (\d+) registers"),
        figure(r"(\d+) bytes spill stores"),
        "tt.dot" in kernel.asm["ttir"],
        len(re.findall(r"^\s*(?:mma\.sync|wgmma\.mma_async)", kernel.asm["ptx"], re.MULTILINE)),
        {name: value for name, value in constants.items() if name.isupper()},
    )


def launches(run: Callable[[], object], arch: int) -> list[Compiled]:
    """Compile every kernel that a function launches; nothing runs, so results are whatever memory held.

    Args:
        run: Calls the code that launches, on CPU tensors.
        arch: Compute capability, 80 or 90.

    Returns:
        What was compiled, each variant once.
    """
    with _recording(arch) as found:
        run()
    return found


def compile_offline(
    kernel: Any, signature: Mapping[str, object], constants: Mapping[str, object], arch: int
) -> Compiled:
    """Compile one kernel as a launch with these arguments would.

    Args:
        kernel: A ``triton.jit`` function.
        signature: By name, a ``torch.dtype`` for a pointer to it and a value for a number.
        constants: By name, its ``tl.constexpr`` arguments, and ``num_warps`` and ``num_stages``.
        arch: Compute capability, 80 or 90.

    Returns:
        What the assembler says.
    """
    from triton.runtime.jit import MockTensor

    arguments = {name: MockTensor.wrap_dtype(value) for name, value in signature.items()}
    (found,) = launches(lambda: kernel[(1,)](**arguments, **constants), arch)
    return found


def main(arch: int, part: str = "", every: str = "1") -> None:
    """Compile every case for one architecture and print what came of it as JSON.

    Args:
        arch: Compute capability.
        part: Only cases whose name holds this.
        every: Only one of so many of these: the first on the older architecture, the last on the newer one.
    """
    from tests.ops.triton_cases import CASES

    results = {}
    names = [name for name in CASES if part in name]
    for name in names[0 if arch < 90 else int(every) - 1 :: int(every)]:
        start = time.perf_counter()
        compiled = launches(CASES[name].run, arch)
        results[name] = {
            "seconds": round(time.perf_counter() - start, 1),
            "kernels": [dataclasses.asdict(kernel) for kernel in compiled],
        }
    json.dump(results, sys.stdout, indent=1)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:4])
