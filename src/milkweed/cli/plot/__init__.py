"""`milkweed plot`: one module per subject."""

SUBJECTS = ("monarch", "hippo", "kernel")
EXAMPLE = """\
  milkweed plot monarch
  milkweed plot hippo --animate
  milkweed plot kernel runs/smnist
  milkweed plot monarch --help        lists the options of this subject"""


def plot(what: str) -> None:
    """Draw a part of the library's mathematics.

    Args:
        what: monarch: a matrix, its nearest Monarch matrix and the error by nblocks; hippo: a HiPPO basis, and the past
            of a signal as it remembers it; kernel: the convolution kernels that a trained model learned
    """
