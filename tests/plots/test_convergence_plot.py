import re

import pytest
import torch
from PIL import Image

from milkweed.plots.convergence import Approach, save_convergence

TIMES = torch.linspace(0, 3, 50)


def approach(sizes, count=2):
    limit = torch.arange(1, count + 1)[:, None] * torch.exp(-TIMES)
    return Approach("kernels", TIMES, limit, {size: limit + torch.sin(size * TIMES) / size for size in sizes})


@pytest.mark.parametrize(("rows", "sizes", "width", "height"), [(1, [4], 1020, 510), (2, [4, 16, 64], 1800, 840)])
def test_figure(tmp_path, rows, sizes, width, height):
    path = tmp_path / "new" / "convergence.png"
    errors = {"largest": {4: 0.1, 8: 0.05, 16: 0.02}, "mean": {4: 0.01, 16: 0.002}}
    save_convergence([approach(sizes)] * rows, errors, path, "title")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (width, height)
    assert list(path.parent.iterdir()) == [path]


def test_more_functions_than_colours(tmp_path):
    errors = {f"measure {k}": {4: 0.1} for k in range(5)}
    save_convergence([approach([4], count=6)], errors, tmp_path / "convergence.png", "title")
    assert (tmp_path / "convergence.png").is_file()


def test_rows_must_match(tmp_path):
    with pytest.raises(ValueError, match=re.escape("got []")):
        save_convergence([], {}, tmp_path / "convergence.png", "title")
    with pytest.raises(ValueError, match=re.escape("got [[4], [4, 8]]")):
        save_convergence([approach([4]), approach([4, 8])], {}, tmp_path / "convergence.png", "title")
