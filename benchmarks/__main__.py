"""Start of ``python -m benchmarks``: what must be set before torch or a Triton kernel is imported."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1" if "--interpret" in sys.argv else "0"
    if "--avx2" in sys.argv:
        os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    # A checkout that is not installed will do.
    sys.path.append(str(Path(__file__).parents[1] / "src"))
    from benchmarks.command import main

    sys.exit(main())
