from pathlib import Path

import pytest
from tests.own_files import options

from milkweed._suggest import UsageError
from milkweed.cli import main
from milkweed.cli.recipe import find_recipe, read_recipe, shipped_recipes
from milkweed.convert import load_pretrained

TWO_STEPS = [
    *("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"),
    *("--trainer.limit_test_batches", "1", "--data.batch_size", "4", "--data.limit", "16"),
]
TEXTS = Path(__file__).parents[1] / "data" / "texts"
TINY_BERT = [
    *("--data.tokenizer", str(TEXTS / "tokenizer"), "--data.vocabulary_size", "192", "--data.length", "32"),
    *("--model.d_model", "16", "--model.depth", "1"),
]
# What spares a recipe its files, or its size.
SMALLER = {
    "m2-bert-mlm": ["--data.source", __file__, "--trainer.accumulate_grad_batches", "1", *TINY_BERT],
    "m2-bert-glue": ["--data.source", str(TEXTS / "stsb"), *TINY_BERT],
    "m2-bert-retrieval": ["--data.source", str(TEXTS / "pairs"), "--data.documents", "null", *TINY_BERT],
    "smnist": ["--data.synthetic=true"],
    "m2-vit": ["--data.synthetic=true"],
    "m2-gpt": ["--data.file", str(Path(__file__)), "--data.length", "32", "--model.d_model", "16"],
    "shakespeare": ["--data.file", str(Path(__file__)), "--data.length", "32", "--model.d_model", "16"],
    "delay": ["--data.length", "64", "--data.lag", "16", "--model.layer.d_state", "8"],
    "reconstruct": ["--data.length", "64", "--data.memory", "16", "--model.layer.d_state", "8"],
}
NEEDED = {
    "m2-gpt": ["--data.file", str(Path(__file__))],
    "shakespeare": ["--data.file", str(Path(__file__))],
}
OWN = ("arrays", "csv-forecast", "hugging-face", "image-folder", "wav-folder")
METRICS = {
    "csv-forecast": "mse",
    "m2-bert-mlm": "perplexity",
    "m2-bert-glue": "pearson",
    "m2-bert-retrieval": "ndcg",
    "m2-gpt": "bits_per_character",
    "shakespeare": "bits_per_character",
    "delay": "rmse",
    "reconstruct": "rmse",
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_trains_two_steps(name, tmp_path, capsys):
    smaller = options()[name] if name in OWN else SMALLER.get(name, [])
    assert main(["train", name, "--out", str(tmp_path), *TWO_STEPS, *smaller]) == 0
    assert METRICS.get(name, "accuracy") in capsys.readouterr().out
    load_pretrained(tmp_path / name)


# Those that the test above leaves out of a plain run.
@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_can_be_inspected(name, capsys):
    assert main(["inspect", name, *(options()[name] if name in OWN else NEEDED.get(name, []))]) == 0
    shown = capsys.readouterr().out
    assert "forward FLOPs" in shown
    assert "not counted" not in shown


def test_recipes_are_listed_with_one_line_each(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in shipped_recipes():
        assert find_recipe(name).description
        assert sum(line.startswith(f"{name} ") for line in lines) == 1


def test_a_recipe_may_be_a_file(tmp_path):
    copy = tmp_path / "mine.yaml"
    copy.write_text(shipped_recipes()["digits"].read_text().replace("max_epochs", "min_epochs"))
    recipe = find_recipe(str(copy))
    assert recipe.name == "mine"
    assert "min_epochs" in recipe.values["trainer"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "no valid YAML"),
        ("just text", "must have the keys seed, data, model, task, trainer"),
        ("modle: {}", r"key='modle' is unknown; did you mean 'model'\?"),
        ("data: {}\nmodel: {}\ntask: {}", "lacks the section trainer"),
    ],
)
def test_bad_recipe_files_are_refused(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_recipe(path)


def test_missing_recipe_file_is_refused():
    with pytest.raises(UsageError, match=r"nowhere\.yaml does not exist"):
        find_recipe("nowhere.yaml")
