"""Networks of transformers with this library's layers inside; they need the extra `milkweed[hf]`."""
