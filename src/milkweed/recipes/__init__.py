"""Recipes: YAML files of values only, one per training."""
