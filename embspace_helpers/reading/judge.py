"""A judge of word lists: how much do their words belong together, in another model's embedding?"""

import torch
from torch import Tensor

from embspace_helpers.reading.arrays import one_thread

# Whose embedding judges the lists of a known model: trained apart from it, but on words it knows.
JUDGES = {"twin-a": "twin-b", "twin-b": "twin-a", "wide-w": "twin-a", "untied-u": "twin-a",
          "minilm": "smollm2", "smollm2": "minilm"}


class Judge:
    """Scores how much the words of a list belong together, in an embedding of *another* model.

    `E` (d, e) embeds the judge's tokens; `ids` (m,) are the ids, in the vocabulary under test, of
    the words the judge knows, `judge_ids` (m,) their ids in the judge's own (default: the same
    vocabulary). Columns are centred over these words, rid of the `remove` leading principal
    directions (frequency rather than meaning: Mu and Viswanath, 2018), and scaled to length 1.
    `keep` is the mask (size,) of the words it can judge: read with the same mask.
    """

    def __init__(self, E: Tensor, ids: Tensor, size: int, judge_ids: Tensor | None = None,
                 remove: int = 3):
        judge_ids = ids if judge_ids is None else judge_ids
        if ids.shape != judge_ids.shape:
            raise ValueError(f"{len(ids)} words under test but {len(judge_ids)} of the judge's")
        most = min(len(E), len(ids) - 1)  # directions that centred words can span
        if not 0 <= remove < most:
            raise ValueError(f"remove = {remove}, but it must be at least 0 and below {most}: "
                             f"the directions that {len(ids)} words in d = {len(E)} span")
        vectors = E.T[judge_ids]  # (m, d), a copy, from here on changed in place
        vectors -= vectors.mean(0)
        if remove:
            with one_thread():
                _, directions = torch.linalg.eigh(vectors.T @ vectors)
            top = directions[:, -remove:]
            vectors -= (vectors @ top) @ top.T
        vectors /= vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self.vectors = vectors
        self.ids, self.row = ids, torch.full((size,), -1)
        self.row[ids] = torch.arange(len(ids))
        self.keep = self.row >= 0

    def coherence(self, lists: Tensor) -> Tensor:
        """Mean cosine over all pairs of each list's words; lists (n, k) of ids -> (n,).

        Raises ValueError if a list has a word the judge does not know, or fewer than 2 words.
        """
        k = lists.shape[-1]
        if lists.ndim != 2 or k < 2:
            raise ValueError(f"lists must be (n, k) with k >= 2, got {tuple(lists.shape)}")
        rows = self.row[lists]
        if (rows < 0).any():
            raise ValueError("a list has words this judge does not know: read with keep=judge.keep")
        total = torch.nn.functional.embedding_bag(rows, self.vectors, mode="sum")  # (n, d)
        return (total.square().sum(1) - k) / (k * (k - 1))
