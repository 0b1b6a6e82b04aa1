import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from milkweed.data import Mnist
from milkweed.data.mnist import STEMS

REAL = Path(__file__).parents[3] / "shared" / "data" / "mnist"


def idx_bytes(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_files(folder, *, zipped):
    random = np.random.RandomState(0)
    folder.mkdir(exist_ok=True)
    arrays = {
        "train_images": random.randint(0, 256, (20, 28, 28)),
        "train_labels": np.arange(20) % 10,
        "test_images": random.randint(0, 256, (10, 28, 28)),
        "test_labels": np.arange(10),
    }
    for key, array in arrays.items():
        content = idx_bytes(array)
        name = STEMS[key] + (".gz" if zipped else "")
        (folder / name).write_bytes(gzip.compress(content) if zipped else content)
    return arrays


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_the_public_files(tmp_path, zipped):
    arrays = write_files(tmp_path, zipped=zipped)
    data = Mnist(root=str(tmp_path), val_size=6, batch_size=4)
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [14, 6, 10]
    expected = (arrays["train_images"][0].reshape(784) / 255 - 0.1307) / 0.3081
    assert torch.allclose(data.split("train").inputs[0, :, 0], torch.tensor(expected).float(), atol=1e-6)
    assert data.split("val").targets.tolist() == [4, 5, 6, 7, 8, 9]


def test_permutation_is_fixed_and_a_permutation(tmp_path):
    write_files(tmp_path, zipped=False)
    plain = Mnist(root=str(tmp_path), val_size=6).split("train").inputs
    first, second = (Mnist(root=str(tmp_path), val_size=6, permuted=True, seed=s).split("train").inputs for s in (0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, plain)
    assert torch.equal(first.sort(dim=1).values, plain.sort(dim=1).values)


def test_missing_folder_names_the_files_and_the_option(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"(?s)nowhere is not a folder.*t10k-labels-idx1-ubyte.*as data.root=DIR"
    ):
        Mnist(root=str(tmp_path / "nowhere")).setup()


def test_missing_file_is_named(tmp_path):
    write_files(tmp_path, zipped=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="lacks t10k-labels-idx1-ubyte"):
        Mnist(root=str(tmp_path)).setup()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train-images-idx3-ubyte", lambda content: content[:-5], r"should hold 20 × 28 × 28 bytes .* holds 15675"),
        ("train-images-idx3-ubyte", lambda content: content[:9], "truncated: 9 bytes"),
        ("train-images-idx3-ubyte", lambda content: b"", "starts with nothing, expected 00000803"),
        ("train-labels-idx1-ubyte", lambda content: b"\x00\x00\x08\x03" + content[4:], "starts with 00000803"),
        ("train-labels-idx1-ubyte", lambda content: idx_bytes(np.zeros(19)), "20 images but .* 19 labels"),
        ("train-labels-idx1-ubyte", lambda content: content[:-1] + b"\x0b", "targets must lie in 0…9; .* has 11"),
        ("train-images-idx3-ubyte", lambda content: idx_bytes(np.zeros((20, 8, 8))), "images of .8, 8. pixels"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, damage, message):
    write_files(tmp_path, zipped=False)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        Mnist(root=str(tmp_path), val_size=6).setup()


def test_truncated_gzip_is_refused(tmp_path):
    write_files(tmp_path, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="corrupt or truncated gzip"):
        Mnist(root=str(tmp_path)).setup()


def test_val_size_must_leave_something_to_train_on(tmp_path):
    write_files(tmp_path, zipped=False)
    with pytest.raises(ValueError, match="val_size=5000 must be at least 1 and below the 20 training images"):
        Mnist(root=str(tmp_path)).setup()


def test_synthetic_data_need_no_files():
    data = Mnist(synthetic=True, batch_size=8)
    assert data.split("train").inputs.shape[1:] == (784, 1)
    assert len(data.split("val")) > 0


@pytest.mark.skipif(not REAL.is_dir(), reason="the real MNIST files are not here")
def test_real_files():
    data = Mnist(root=str(REAL))
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [55_000, 5_000, 10_000]
    assert abs(data.split("train").inputs.mean().item()) < 0.01
    assert abs(data.split("train").inputs.std().item() - 1) < 0.01


class TestHostileFiles:
    """Files that unpack to, or announce, more than they are worth."""

    def read(self, tmp_path, content, name="x.gz", dimensions=3):
        from milkweed.data.idx import read_idx

        (tmp_path / name).write_bytes(content)
        return read_idx(tmp_path / name, dimensions)

    def test_unpacking_stops_where_the_header_says(self, tmp_path):
        import tracemalloc

        header = struct.pack(">HBB3I", 0, 8, 3, 1, 28, 28)
        content = gzip.compress(header) + gzip.compress(b"\0" * 2**24, 9) * 4
        tracemalloc.start()
        with pytest.raises(ValueError, match="should hold 1 × 28 × 28 bytes after its header but holds more"):
            self.read(tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < 2**21
        tracemalloc.stop()

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_header_that_announces_too_much(self, tmp_path, zipped):
        content = struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3) + bytes(100)
        with pytest.raises(ValueError, match="but cannot hold more than"):
            self.read(tmp_path, gzip.compress(content) if zipped else content, "x.gz" if zipped else "x")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_bytes_to_spare_or_too_few(self, tmp_path, zipped):
        for extra, message in ((-1, "but holds 783"), (1, "but holds more")):
            content = struct.pack(">HBB3I", 0, 8, 3, 1, 28, 28) + bytes(784 + extra)
            with pytest.raises(ValueError, match=message):
                self.read(tmp_path, gzip.compress(content) if zipped else content, "x.gz" if zipped else "x")
