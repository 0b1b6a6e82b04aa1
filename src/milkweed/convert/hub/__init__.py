"""Folders that transformers wrote, read as data, and folders of converted models beside them."""
