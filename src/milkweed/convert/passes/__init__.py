"""The steps of a conversion, a file each; `milkweed.convert.plan` calls them in their order."""
