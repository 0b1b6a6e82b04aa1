"""Fine-tuning by PEFT: LoRA on structured layers, and Monarch updates as a method of its own."""

# First of all: once it is there, `registration` runs, which imports the modules below.
try:
    import peft  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('MonarchAdapterConfig is a method of peft: pip install "milkweed[hf]"') from error

from milkweed.convert.peft.config import MonarchAdapterConfig

__all__ = ["MonarchAdapterConfig"]
