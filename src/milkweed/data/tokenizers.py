"""Tokenizers of text: loaded by name, or trained on the text."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from milkweed._files import UnsafeFileError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
MOST_CHARACTERS = 1000


def load_tokenizer(name: str, needs: tuple[str, ...] = ("pad", "cls", "sep")) -> "PreTrainedTokenizerBase":
    """Load a tokenizer of transformers from a folder or the hub; it must have the special tokens that `needs` names."""
    _need("transformers")
    from milkweed.convert.hub.transformers_files import read_tokenizer

    folder = Path(name)
    if folder.is_dir() and not (folder / "tokenizer_config.json").is_file() and not (folder / "vocab.txt").is_file():
        raise FileNotFoundError(
            f"data.tokenizer={name} holds no tokenizer: neither tokenizer_config.json nor vocab.txt is there; name the "
            "folder that the model was trained with, e.g. data.tokenizer=runs/m2-bert-mlm"
        )
    try:
        tokenizer = read_tokenizer(name)
    except UnsafeFileError as error:
        raise UnsafeFileError(f"data.tokenizer={name} cannot be used: {error}") from error
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"data.tokenizer={name} is neither a folder with a tokenizer nor the name of one that can be fetched "
            f"from the Hugging Face hub ({str(error).splitlines()[0]}); name a folder, e.g. "
            "data.tokenizer=runs/m2-bert-mlm"
        ) from error
    missing = [kind for kind in needs if getattr(tokenizer, f"{kind}_token_id") is None]
    if missing:
        raise ValueError(
            f"data.tokenizer={name} has no {', '.join(missing)} token; use that of a BERT, e.g. bert-base-uncased"
        )
    return tokenizer


def train_tokenizer(text: str | Iterable[str], size: int) -> "PreTrainedTokenizerBase":
    """Train a WordPiece tokenizer like that of BERT uncased. Equal texts give equal tokenizers.

    It has at most ``size`` tokens; [PAD], [UNK], [CLS], [SEP] and [MASK] are 0 to 4. Lines are gone through twice.

    Source:
        BERT (arXiv 1810.04805) and its WordPiece tokens.
    """
    _need("transformers")
    from tokenizers import trainers
    from transformers import PreTrainedTokenizerFast

    lines = text.splitlines() if isinstance(text, str) else text
    special = list(SPECIAL.values())
    trained = _word_piece({token: number for number, token in enumerate(special)})
    characters = _alphabet(word for line in lines for word in trained.normalizer.normalize_str(line).split())
    # The trainer numbers pieces inside words in the order of a hash table, anew in every process, and numbers decide
    # between pieces that are equally frequent; as special tokens they have their numbers beforehand.
    fixed = [*special, *(f"##{character}" for character in characters)]
    least = len(fixed) + len(characters)
    if size < least:
        raise ValueError(
            f"vocabulary_size={size} leaves no room for the {len(characters)} characters of the text; use "
            f"data.vocabulary_size={least} or more"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=fixed,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    trained.train_from_iterator(lines, trainer)
    names = {f"{kind}_token": token for kind, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=_word_piece(trained.get_vocab()), **names)


def token_count(tokenizer: "PreTrainedTokenizerBase") -> int:
    """How many tokens a model needs for a tokenizer: one more than its largest number."""
    return max(tokenizer.get_vocab().values()) + 1


def _word_piece(vocabulary: dict[str, int]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    first, last = SPECIAL["cls"], SPECIAL["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B:1 {last}:1",
        special_tokens=[(token, vocabulary[token]) for token in (first, last)],
    )
    return tokenizer


def _alphabet(words: Iterable[str]) -> list[str]:
    counts: Counter[str] = Counter()
    for word in words:
        counts.update(word)
    frequent = sorted(counts, key=lambda character: (-counts[character], character))
    return sorted(frequent[:MOST_CHARACTERS])


def _need(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ModuleNotFoundError(f'tokenizers come with {package}, which is not installed: pip install "milkweed[hf]"')
