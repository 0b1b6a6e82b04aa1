"""Matrices as objects and their algorithms."""
