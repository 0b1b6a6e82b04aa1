"""Measured comparisons with the usual way: ``python -m benchmarks``.

``case`` says what a case is and ``cases/`` holds them; ``runner`` checks one against float64 and then times its sides
in turn; ``results`` shows and keeps what came out; ``machine`` knows what the machine can do at most.

Nothing is imported here: Triton decides when a kernel is defined whether it runs in its interpreter, so the command
sets that before it imports anything.
"""
