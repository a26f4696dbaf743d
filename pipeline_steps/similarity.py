"""How near prompts are to those of a training set: cosine of weighted words with the nearest one.

Words weigh as they are rare in the training set (inverse document frequency), so a template's words count for nothing;
a word that the training set does not have counts as the rarest, and lowers the similarity.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

MOST_TRAINING_PROMPTS = 2000  # evenly spread over the set; the matrix of their words stays below 1 GB


T = TypeVar("T")


class TrainingPrompts:
    """The training set's prompts, to be compared with. Raises ValueError without any."""

    def __init__(self, prompts: Sequence[str]) -> None:
        import numpy as np

        if not prompts:
            raise ValueError("there are no prompts to compare with")
        kept = spread(prompts, MOST_TRAINING_PROMPTS)
        counted = [Counter(_words(prompt)) for prompt in kept]
        documents = Counter(word for words in counted for word in words)
        self._columns = {word: column for column, word in enumerate(sorted(documents))}
        self._weights = {word: math.log((1 + len(kept)) / (1 + count)) for word, count in documents.items()}
        self._unknown_weight = math.log(1 + len(kept))
        self._matrix = np.zeros((len(kept), len(self._columns)), dtype=np.float32)
        for row, words in enumerate(counted):
            for word, count in words.items():
                self._matrix[row, self._columns[word]] = count * self._weights[word]
        norms = np.linalg.norm(self._matrix, axis=1, keepdims=True)
        self._matrix /= np.where(norms > 0, norms, 1)

    def nearest(self, prompt: str) -> float:
        """Cosine with the nearest training prompt, 0..1; 0 for a prompt without a word that tells anything."""
        import numpy as np

        words = Counter(_words(prompt))
        values = {word: count * self._weights.get(word, self._unknown_weight) for word, count in words.items()}
        norm = math.sqrt(sum(value * value for value in values.values()))
        known = [word for word in values if word in self._columns]
        if not norm or not known:
            return 0.0
        columns = [self._columns[word] for word in known]
        products = self._matrix[:, columns] @ np.array([values[word] for word in known], dtype=np.float32)
        return float(min(1.0, products.max() / norm))


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
