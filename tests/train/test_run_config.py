"""A run's config.yaml: nothing in it is lost or changed in silence."""

import pytest
import yaml

from milkweed.cli.build import resolve
from milkweed.cli.recipe import find_recipe
from milkweed.train.recipe.words import natural_options
from milkweed.train.run_config import MARK, read_config, write_config
from milkweed.train.strict_yaml import read_yaml

CHANGES = [
    *(("trainer.gradient_clip_val", 0.5), ("trainer.max_epochs", 33), ("trainer.densify", {"warmup_steps": 100})),
    ("trainer.callbacks", [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "x"}}]),
]


@pytest.fixture(scope="module")
def full():
    return resolve(find_recipe("digits-monarch").values, CHANGES)


@pytest.fixture
def path(tmp_path, full):
    write_config(tmp_path / "config.yaml", full)
    return tmp_path / "config.yaml"


def resumed(path):
    return natural_options(resolve(read_config(path), []))


def outcome(path):
    """What is resumed, or why nothing is."""
    try:
        return resumed(path)
    except ValueError as error:
        return str(error)


def test_round_trip(path, full):
    assert read_config(path) == full
    assert read_config(path).whole
    assert yaml.safe_load(path.read_text()) == full
    assert resumed(path) == natural_options(full)


@pytest.mark.parametrize("checksum", [True, False], ids=["with checksum", "version 0.1.0"])
def test_a_file_cut_off_anywhere_is_recovered_or_named(path, full, checksum, pytestconfig):
    text = path.read_bytes() if checksum else yaml.safe_dump(full, sort_keys=False).encode()
    # Only where no more than the checksum is lost can it be recovered.
    mark = text.index(MARK.encode()) if checksum else len(text)
    whole, outcomes = natural_options(full), []
    lengths = range(0, len(text), 1 if pytestconfig.getoption("all_cases") else 11)
    for length in lengths:
        path.write_bytes(text[:length])
        found = outcome(path)
        assert found == whole or (str(path) in found and "restore it" in found)
        outcomes.append(found == whole)
    assert sum(outcomes) == sum(length >= mark for length in lengths)


def test_a_changed_byte_is_recovered_or_named(path, full):
    text, whole = path.read_bytes(), natural_options(full)
    for place in range(len(text)):
        for mask in (1, 0x80):
            path.write_bytes(text[:place] + bytes([text[place] ^ mask]) + text[place + 1 :])
            if place < text.index(MARK.encode()) - 1:
                with pytest.raises(ValueError, match=r"config\.yaml"):
                    read_config(path)
            elif mask == 1 and place % 9 == 0:
                found = outcome(path)
                assert found == whole or str(path) in found


def test_version_0_1_0_resumes_if_complete(path, full):
    path.write_text(yaml.safe_dump(full, sort_keys=False))
    assert not read_config(path).whole
    assert resumed(path) == natural_options(full)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("seed: 0\n", "seed"),
        ("  gradient_clip_val: 0.5\n", "trainer.gradient_clip_val"),
        ("    lr: 0.003\n", "task.lr"),
        ("    warmup_steps: 100\n", "trainer.densify.warmup_steps"),
        ("      monitor: x\n", None),
        ("      patience: 3\n", "trainer.callbacks.0.patience"),
    ],
)
def test_a_line_that_is_gone_is_asked_for(path, full, line, named):
    text = yaml.safe_dump(full, sort_keys=False)
    assert text.count(line) == 1
    path.write_text(text.replace(line, ""))
    if named is None:  # an option without a default
        with pytest.raises(Exception, match="monitor"):
            resumed(path)
        return
    with pytest.raises(ValueError, match=rf"it lacks {named}, and defaults .*\(--{named} VALUE\)"):
        resumed(path)


def test_what_is_gone_may_be_given_anew(path, full):
    path.write_text(yaml.safe_dump(full, sort_keys=False).replace("  gradient_clip_val: 0.5\n", ""))
    assert natural_options(resolve(read_config(path), [("trainer.gradient_clip_val", 0.5)])) == natural_options(full)
    head = yaml.safe_dump(full, sort_keys=False).split("task:")[0]
    path.write_text(head + "task: {class_path: milkweed.tasks.Classification}\n" + "trainer: {}\n")
    with pytest.raises(ValueError, match="and more, and defaults"):
        resumed(path)


def test_a_file_changed_by_hand_says_the_way_out(path, full):
    text = path.read_text().replace("max_epochs: 33", "max_epochs: 34")
    path.write_text(text)
    with pytest.raises(ValueError, match=r"changed by hand, or is damaged.*when the run is resumed.*delete that line"):
        read_config(path)
    path.write_text(text.rpartition(MARK)[0])
    assert resumed(path) == natural_options(full) | {"trainer.max_epochs": 34}
    path.write_text(path.read_text() + f"{MARK}sha256 {'0' * 64}\n# a note\n")
    with pytest.raises(ValueError, match=r"goes on after its checksum: lines were added by hand.*Delete the line"):
        read_config(path)
    path.write_text(path.read_text().splitlines()[0])
    with pytest.raises(ValueError, match="is cut off in the line 'seed: 0'; if that line is whole, end it"):
        read_config(path)


def test_keys_are_there_once():
    with pytest.raises(yaml.YAMLError, match="the key 'lr' is there twice"):
        read_yaml("task:\n  lr: 1\n  x: 2\n  lr: 3\n")
    assert read_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2}\n") == {"a": {"x": 1}, "b": {"x": 2}}
