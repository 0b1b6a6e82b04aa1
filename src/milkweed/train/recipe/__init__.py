"""Recipes: from a YAML file and what the command line changes in it to checked values and objects."""
