"""Fine-tuning by PEFT: LoRA on structured layers, and Monarch updates as a method of its own."""

# First of all: once it is there, `registration` runs, which imports the modules below.
import peft  # noqa: F401

from milkweed.convert.peft.config import MonarchAdapterConfig

__all__ = ["MonarchAdapterConfig"]
