"""What data modules and tasks agree on: what a batch is, and the marks for what it does not have."""

from torch import Tensor

Batch = dict[str, Tensor]
"""`inputs`, `targets`, `lengths`, and what one family needs beside them."""

IGNORED = -100
"""The target of a token that is not to be predicted."""
NO_QUERY = -1
"""Number of the query in rows that only add a passage to those that are searched."""
NO_PASSAGE = -1
"""Number of the passage in rows that only ask, and what fills up the passages that answer a query."""
