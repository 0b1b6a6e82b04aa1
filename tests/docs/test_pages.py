"""What README and the pages show can be done: Python runs, and commands have the options that they are given."""

import contextlib
import doctest
import itertools
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.own_files import long_table
from tests.own_files import options as own_options

import milkweed as mw
from milkweed.cli import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("[A-Z]*.md"), *(ROOT / "docs").rglob("*.md")])
PAGES = [page for page in dict.fromkeys(PAGES) if not {"_ext", "api"} & set(page.parts)]


FENCE = re.compile(r"^```([^`\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page, language):
    """The fenced blocks of a page in one language; `""` is for those without."""
    return [text for of, text in FENCE.findall(page.read_text()) if of == language]


def name(page):
    return str(page.relative_to(ROOT))


def _dense_encoder():
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "sentence", "of", "some", "words"]
    Path("encoder").mkdir()
    Path("encoder/vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast("encoder/vocab.txt").save_pretrained("encoder")
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(words), **sizes)
    transformers.BertModel(config).save_pretrained("encoder")
    return {"folder": "encoder", "texts": [" ".join(order) for order in itertools.permutations(words[5:])]}


def _dense_encoder_and_batches():
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("peft")
    given = _dense_encoder()
    mw.convert_folder("encoder", "encoder-monarch")  # as the page does by the command
    tokens = torch.randint(5, 10, (40, 12))
    dataset = [{"input_ids": row, "labels": row[0] % 2} for row in tokens]
    return given | {"dataset": dataset, "batches": [{"input_ids": tokens}] * 4}


def _encoder_to_tune():
    pytest.importorskip("peft")
    return _dense_encoder()


def _mixture():
    transformers = pytest.importorskip("transformers")
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1, "num_local_experts": 4}
    config = transformers.MixtralConfig(vocab_size=50, hidden_size=64, intermediate_size=128, **heads)
    batches = [{"input_ids": torch.randint(50, (4, 12))} for _ in range(4)]
    return {"mw": mw, "mixture": transformers.MixtralForCausalLM(config).eval(), "mixture_batches": batches}


def _published_m2_bert():
    pytest.importorskip("transformers")
    golden = load_file(ROOT / "tests" / "golden" / "m2_bert_tiny.safetensors")
    Path("published").mkdir()
    state = {key: tensor for key, tensor in golden.items() if not key.startswith("__")}
    torch.save(state, "published/pytorch_model.bin")
    # In place of the run: its model before training.
    characters = "".join(sorted(set("ROMEO:\n abcdefgh")))
    sizes = {"length": 128, "d_model": 16, "depth": 1, "vocabulary": characters}
    mw.save_pretrained(mw.models.M2Gpt(len(characters), len(characters), **sizes), "runs/gpt")
    return {}


def _trained_digits():
    pytest.importorskip("sklearn")
    mw.save_pretrained(mw.models.SequenceModel(1, 10, d_model=8, depth=1), "runs/digits")
    return {}


def _own_arrays():
    return {"x": torch.randn(90, 20, 3), "y": torch.arange(90) % 3, "lengths": torch.arange(90) % 20 + 1}


def _finished_digits():
    pytest.importorskip("sklearn")
    image = pytest.importorskip("PIL.Image")
    small = ["--model.d_model", "8", "--data.limit", "80", "--trainer.max_epochs", "1", "--task.calibrate", "true"]
    assert main(["train", "digits", *small]) == 0
    image.new("L", (8, 8)).save("image.png")
    return {}


def _operands():
    return {
        "u": torch.randn(2, 4, 100),
        "kernel": torch.randn(4, 100),
        "model": mw.nn.S4D(4),
        "x": torch.randn(2, 100, 4),
        "c": torch.randn(4, 8, 2),
        "dt_a": -torch.rand(4, 8, 2),
    }


# What a page takes for granted.
GIVEN = {
    "docs/command_line.md": _trained_digits,
    "docs/conversion.md": _dense_encoder,
    "docs/families.md": _mixture,
    "docs/gpu.md": _operands,
    "docs/monarch_mixer.md": _published_m2_bert,
    "docs/own_data.md": _own_arrays,
    "docs/predict.md": _finished_digits,
    "docs/your_model.md": _dense_encoder_and_batches,
    "docs/peft.md": _encoder_to_tune,
}
# What it must have made or printed, beyond running.
MADE = {
    "README.md": lambda names, printed: isinstance(names["model"][0], mw.nn.MonarchLinear),
    "docs/families.md": lambda names, printed: any(".split." in line.name for line in names["report"].converted),
    "docs/tour.md": lambda names, printed: "fft_conv: eager" in printed,
    "docs/monarch_mixer.md": lambda names, printed: names["model"].options["length"] == 2048,
}
# The last lines of these say what a training gave that takes longer than a test.
OF_A_TRAINING = {"docs/command_line.md", "docs/monarch_mixer.md", "docs/predict.md"}
WITH_CODE = [page for page in PAGES if blocks(page, "python") or blocks(page, "pycon")]


# Of Lightning, which asks torch in an old way, and counts cores.
@pytest.mark.filterwarnings(r"ignore:.*isinstance.treespec, LeafSpec", "ignore:.*does not have many workers")
@pytest.mark.usefixtures("table")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_python_of_the_pages_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = GIVEN.get(name(page), dict)()
    for block in blocks(page, "python"):
        exec(block, names)
    assert MADE.get(name(page), lambda *_: True)(names, capsys.readouterr().out)
    for block in blocks(page, "pycon"):
        for example in doctest.DocTestParser().get_examples(block):
            capsys.readouterr()
            exec(compile(example.source, name(page), "single"), names)
            if name(page) not in OF_A_TRAINING:
                assert capsys.readouterr().out == example.want


def test_no_python_is_hidden_from_the_test_above():
    hidden = [
        name(page) for page in PAGES for block in blocks(page, "") if ">>> " in block or "import milkweed" in block
    ]
    assert hidden == []


def commands(page, program):
    """The command lines of one program on a page, comments and prose cut off: (what follows the program)."""
    fenced = [text for language, text in FENCE.findall(page.read_text()) if language in {"", "sh", "console"}]
    prose = FENCE.sub("", page.read_text())
    indented = re.findall(r"^    .*", prose, re.MULTILINE)
    last_cells = re.findall(r"\| `([^`|]+)` \|$", prose, re.MULTILINE)
    text = "\n".join([*fenced, *indented, *last_cells]).replace("\\\n", " ")
    # A line of options alone belongs to the line above it.
    text = re.sub(r"\n {4,}(--\w)", r" \1", re.sub(r"   +[^\n-][^\n]*(?=\n {4,}--\w)", "", text))
    for line in re.findall(rf"^(?:\$ |    )?{program}(?: +|$)(.*)", text, re.MULTILINE):
        line = re.split(r"\s{3,}|\s+# |\s*…|;", line)[0]
        words = shlex.split(line)
        yield words[2:] if words[:1] == ["--import"] else words


MILKWEED = sorted({(name(page), shlex.join(line)) for page in PAGES for line in commands(page, "milkweed")})


def _help(arguments, capsys):
    with contextlib.suppress(SystemExit):  # argparse's way to end
        assert main([*arguments, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(("page", "line"), MILKWEED, ids=lambda value: value[:60])
def test_commands_and_their_options_exist(page, line, capsys, monkeypatch, tmp_path):
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    command, *words = shlex.split(line)
    of_recipe = [place for place, word in enumerate(words) if re.match(r"--(data|model|task|trainer|seed)\b", word)]
    if command in {"train", "inspect", "sweep"}:
        first = []
        if words[0] == "my.yaml":  # the recipe and the layer that the page shows
            Path("my.yaml").write_text(*blocks(ROOT / page, "yaml"))
            Path("my_layers.py").write_text(
                *(block for block in blocks(ROOT / page, "python") if "mw.register" in block)
            )
            monkeypatch.setattr(sys, "path", list(sys.path))
            monkeypatch.delitem(sys.modules, "my_layers", raising=False)
            first = ["--import", "my_layers"]
        for place in of_recipe:
            theirs = dict(zip(*[iter(own_options().get(words[0], []))] * 2, strict=True)).get(words[place])
            if theirs is not None and "etth" in words:
                theirs = long_table()
            if theirs is not None:  # a recipe for data of the reader's own
                Path(words[place + 1]).parent.mkdir(parents=True, exist_ok=True)
                Path(words[place + 1]).symlink_to(theirs)
            elif words[place] == "--data.file":  # a text whose characters are the vocabulary
                Path(words[place + 1]).write_text("To be, or not to be.\n" * 100)
        # Checks names and types of all of them, and needs neither data nor memory.
        recipe = [word for place in of_recipe for word in words[place : place + 2]]
        assert main([*first, "inspect", words[0], *recipe]) == 0, capsys.readouterr().err
        words = [word for place, word in enumerate(words) if place not in of_recipe]
    told = _help([command], capsys) + (_help([command, words[0]], capsys) if command == "plot" else "")
    assert [word for word in words if word.startswith("--") and not re.search(rf"{word}\b", told)] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_scripts_and_their_options_exist(page):
    for script, *words in commands(page, "python"):
        if script == "-m":
            assert words.pop(0) == "benchmarks"
            source = "".join(path.read_text() for path in (ROOT / "benchmarks").rglob("*.py"))
        elif script == "-c":
            continue
        else:
            source = (ROOT / script).read_text()
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_targets_of_make_and_extras_exist(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [words[0] for words in commands(page, "make") if words[0] not in targets] == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"pip install [^\n`]*\[([\w,]+)\]", page.read_text())
    assert [extra for group in named for extra in group.split(",") if extra not in extras] == []
