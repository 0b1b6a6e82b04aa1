"""The benchmark cases. Every file in this folder is imported and registers its own."""
