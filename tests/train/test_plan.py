"""What a training leaves behind in its process."""

import pytest
from torch import distributed

from milkweed.train.plan import own_process_group

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no distributed package")


def start(folder, name):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/{name}", rank=0, world_size=1)


def test_a_process_group_that_the_training_started_ends_with_it(tmp_path):
    with own_process_group():
        start(tmp_path, "own")
    assert not distributed.is_initialized()


def test_a_process_group_of_the_program_around_it_goes_on(tmp_path):
    start(tmp_path, "around")
    try:
        with own_process_group():
            pass
        assert distributed.is_initialized()
    finally:
        distributed.destroy_process_group()


def test_a_training_without_processes_needs_no_group():
    with own_process_group():
        pass
    assert not distributed.is_initialized()
