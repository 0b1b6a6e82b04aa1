"""Dense against converted, end to end: figures of the whole model on data that calibration never saw."""
