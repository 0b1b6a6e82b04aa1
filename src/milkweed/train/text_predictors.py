"""Predictions that are texts: continuations, filled masks, and the nearest documents."""

from typing import Any

import torch

from milkweed._arguments import check_kind, check_size
from milkweed._batches import IGNORED
from milkweed.data.preprocessing import Prompts, Sample, Sentences
from milkweed.models import generate
from milkweed.tasks import Language, MaskedLanguage, Retrieval
from milkweed.tasks.base import Task
from milkweed.train.predictor import Prediction, Predictor


class TextGenerator(Predictor):
    """A language model: `predictor(prompts, steps=200)` gives each prompt with its continuation as `text`."""

    options = ("steps", "temperature", "top_k", "top_p", "seed")

    def predict(self, samples: list[Sample], rate: float, **options: Any) -> list[Prediction]:
        """Continue prompts, each by itself: they have different lengths."""
        prompts: Any = self.preprocessing
        if not isinstance(prompts, Prompts):
            raise TypeError(f"{self.name} continues texts, and its data give {type(prompts).__name__}")
        seed = options.pop("seed", 0)
        check_kind(int, seed=seed)
        steps = options.pop("steps", 200)
        found = []
        for sample in samples:
            generator = torch.Generator(next(self.model.parameters()).device).manual_seed(seed)
            prompt = self.batch([sample])["inputs"]
            tokens = generate(self.model, prompt, steps, generator=generator, **options)
            found.append({"text": prompts.decode(tokens[0].cpu())})
        return found


class MaskFiller(Predictor):
    """A masked language model: the likeliest tokens in the places of the masks of a text."""

    options = ("top",)

    def predict(self, samples: list[Sample], rate: float, *, top: int = 5) -> list[Prediction]:
        """Fill the masks of each text."""
        check_kind(int, top=top)
        check_size(top=top)
        tokenizer: Any = self._sentences().tokenizer
        batch = self.batch(samples)
        masked = batch["inputs"] == tokenizer.mask_token_id
        if not bool(masked.any(1).all()):
            raise ValueError(f"a text has no {tokenizer.mask_token} to fill; put it where a word is missing")
        batch["targets"] = torch.full_like(batch["inputs"], IGNORED).masked_fill(masked, 0)
        probabilities = self.task.run_model(self.model, batch)[:, : len(tokenizer)].float().softmax(-1)
        best = probabilities.topk(min(top, probabilities.shape[-1]))
        inputs = batch["inputs"].clone()
        inputs[masked] = best.indices[:, 0].to(inputs.dtype)
        found, row = [], 0
        for place, sample in enumerate(samples):
            count = int(masked[place].sum())
            fills = zip(best.indices[row : row + count].tolist(), best.values[row : row + count].tolist(), strict=True)
            row += count
            masks = [dict(zip(tokenizer.convert_ids_to_tokens(tokens), each, strict=True)) for tokens, each in fills]
            tokens = inputs[place, : len(sample["inputs"])].tolist()
            found.append({"text": tokenizer.decode(tokens, skip_special_tokens=True), "masks": masks})
        return found

    def _sentences(self) -> Sentences:
        if not isinstance(self.preprocessing, Sentences):
            raise TypeError(f"{self.name} reads sentences, and its data give {type(self.preprocessing).__name__}")
        return self.preprocessing


class Searcher(MaskFiller):
    """A retrieval encoder: `predictor(queries, documents=texts, top=10)` gives each query's nearest documents."""

    options = ("documents", "top")

    def predict(self, samples: list[Sample], rate: float, *, documents: Any = None, top: int = 10) -> list[Prediction]:
        """Compare queries with all documents: a list of texts, or a file of them, one per line or row."""
        check_kind(int, top=top)
        check_size(top=top)
        texts, vectors = self._index(documents)
        queries = self._vectors(samples)
        scores, places = (queries @ vectors.T).topk(min(top, len(texts)))
        return [
            {"documents": [{"document": texts[place], "score": score} for place, score in zip(*row, strict=True)]}
            for row in zip(places.tolist(), scores.tolist(), strict=True)
        ]

    def __call__(self, inputs: Any, *, batch_size: int = 32, rate: float = 1.0, **options: Any) -> list[Prediction]:
        """Predict; the documents are read once for all queries."""
        self._indexed: tuple[list[str], torch.Tensor] | None = None
        self._batch_size = batch_size
        return super().__call__(inputs, batch_size=batch_size, rate=rate, **options)

    def _index(self, documents: Any) -> tuple[list[str], torch.Tensor]:
        if self._indexed is None:
            if documents is None:
                raise ValueError(
                    f"{self.name} searches documents: give them as documents=, a list of texts or a file (.txt with "
                    'one per line, or a table with a column "passage")'
                )
            reader = Sentences(self._sentences().length, ["passage"], self.preprocessing.whole is not None)
            reader.folder, reader.tokenizer = self.preprocessing.folder, self._sentences().tokenizer
            sources = list(documents) if isinstance(documents, list | tuple) else [documents]
            texts = [text for source in sources for _, (text,) in reader.texts(source)]
            if not texts:
                raise ValueError("documents holds no text; give at least one")
            samples = [sample for text in texts for _, sample in reader.read((text,))]
            parts = [
                self._vectors(samples[first : first + self._batch_size])
                for first in range(0, len(samples), self._batch_size)
            ]
            self._indexed = texts, torch.cat(parts)
        return self._indexed

    def _vectors(self, samples: list[Sample]) -> torch.Tensor:
        batch, task = self.batch(samples), self.task
        assert isinstance(task, Retrieval)
        return task.vectors(self.model, batch["inputs"], batch["lengths"])


TEXT_PREDICTORS: dict[type[Task], type[Predictor]] = {
    Language: TextGenerator,
    MaskedLanguage: MaskFiller,
    Retrieval: Searcher,
}
