"""Training: schedules, callbacks, checkpoints and the run folder."""
