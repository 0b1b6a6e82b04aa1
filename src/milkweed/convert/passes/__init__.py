"""The steps of a conversion, a file each; `milkweed.convert.plan` runs them in their order.

A dense weight goes through select → calibrate → budget → order → project → measure → report. Each file has the
functions of its step, which can be called alone, and a `Pass` that applies them to a `Draft`. A new step is a new file
with a pass of its own, for `milkweed.convert.plan.run_passes`.
"""
