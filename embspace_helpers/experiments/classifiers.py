"""The paper's sentiment classifier: a language model with a head, its training, and its file.

Dar et al. (2023), section 4.3: a text's logits are the mean of the head's logits over its
positions, the final norm is taken out, and only the matrices of the last layers and the head are
free. What is stored of a classifier is the displacement, fine-tuned less pretrained, of these.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from embspace_helpers.reading.activations import BAR_AFTER, padded, tokenize
from embspace_helpers.reading.arrays import as_model
from embspace_helpers.reading.files import whole_file
from embspace_helpers.reading.model import Model, load
from embspace_helpers.reading.sources import (
    BUNDLED,
    DATA,
    ModelNotFound,
    fingerprint,
    known_name,
)

CLASSIFIERS = BUNDLED / "classifiers"
FINE_TUNING_RESULTS = DATA / "fine_tuning.csv"
HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True)
class Recipe:
    """All that decides a classifier's weights, apart from the texts."""

    seed: int = 0
    free_layers: int = 3
    epochs: int = 1
    batch: int = 32  # texts per step
    length: int = 256  # tokens of a text that are read
    learning_rate: float = 1e-3
    warmup_share: float = 0.1  # of the steps; then a straight line to zero
    shuffled_labels: bool = False  # the control: labels that have nothing to do with the texts


class Classifier(nn.Module):
    """Praise or blame: the mean over a text's positions of `head` applied to the last state.

    Made from a copy of `model`: the final norm becomes the identity, the language head is dropped,
    and all is frozen except the matrices of the last `free_layers` layers. `head` (2, d): row 0
    speaks for blame, row 1 for praise; `head_before` (2, d) is what it was drawn as, before
    training. `model` is what is to be read of it, as of any model: its parameters and vocabulary.
    Raises ValueError for more free layers than there are.
    """

    def __init__(self, model: Model, free_layers: int = 3, seed: int = 0):
        """Copy the model and draw the head from `seed`."""
        super().__init__()
        model = as_model(model)
        if not 0 <= free_layers <= model.parameters.L:
            raise ValueError(f"free_layers = {free_layers}, but the model has "
                             f"{model.parameters.L} layers")
        self.base = copy.deepcopy(model.model.base_model)
        if self.base.dtype.itemsize < 4:  # kept in 16 bits to be read; a run needs more
            self.base.float()
        self.model = Model(self.base, model.tokenizer, model.name)
        params = self.model.parameters
        if (norm := params.final_norm()) is not None:
            name = next(name for name, module in self.base.named_modules() if module is norm)
            self.base.set_submodule(name, nn.Identity())
        self.head = nn.utils.skip_init(nn.Linear, params.d, 2)  # filled below
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.head_before = self.head.weight.detach().clone()
        self.base.requires_grad_(False)
        for block in params.blocks[params.L - free_layers :]:
            for weight in block.parameters():
                weight.requires_grad_(weight.ndim > 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (b, 2) of b texts: ids and mask (b, positions), 0 where nothing stands."""
        states = self.base(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = self.head(states)  # (b, positions, 2), in 16 bits with autocast
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * mask[..., None]
        return logits.sum(1) / mask.sum(1, keepdim=True)

    def free(self) -> dict[str, Tensor]:
        """The weights that fine-tuning changes, by name; the head's come last."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def share_weights(one: nn.Module, other: nn.Module) -> None:
    """Let `one` use the weights of `other` where name and numbers agree: memory for frozen ones.

    Then a change in place is a change of both.
    """
    there = dict(other.named_parameters())
    for name, weight in one.named_parameters():
        if name in there and torch.equal(weight, there[name]):
            weight.data = there[name].data


# ---------------------------------------------------------------- training and use


def fine_tune(classifier: Classifier, train: pd.DataFrame, recipe: Recipe,
              test: pd.DataFrame | None = None, autocast: bool = False) -> pd.DataFrame:
    """Train `classifier` on reviews (columns `text` and `label`); returns a row per epoch.

    Columns: epoch, loss (mean over the epoch), accuracy on `test` (if given), minutes so far.
    `autocast`: matrix products in bfloat16, faster where the processor has them. AdamW without
    weight decay, so that all that moves is moved by the texts. The order of the texts, and dropout
    where a model has it, follow from the recipe's seed.
    """
    train = _checked(train)
    rows = tokenize(classifier.model, train["text"].tolist(), recipe.length)
    labels = torch.tensor(train["label"].to_numpy())
    device = classifier.head.weight.device
    steps = recipe.epochs * -(-len(rows) // recipe.batch)
    optimizer, schedule = _optimizer(classifier, recipe, steps)
    begun, history = time.monotonic(), []
    bar = tqdm(total=steps, unit="step", leave=False, delay=BAR_AFTER, desc="fine-tuning")
    with bar, torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        for epoch in range(recipe.epochs):
            classifier.train()
            losses = []
            for chosen in batches([len(r) for r in rows], recipe.batch, [recipe.seed, epoch]):
                ids, mask = (x.to(device) for x in padded([rows[i] for i in chosen]))
                with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                    logits = classifier(ids, mask)
                loss = nn.functional.cross_entropy(logits, labels[chosen].to(device))
                loss.backward()
                nn.utils.clip_grad_norm_(classifier.free().values(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(loss.item() * len(chosen))
                bar.update()
            history.append({"epoch": epoch + 1, "loss": sum(losses) / len(rows)})
            if test is not None:
                history[-1]["accuracy"] = accuracy(classifier, test, recipe.length)
            history[-1]["minutes"] = (time.monotonic() - begun) / 60
    classifier.eval()
    return pd.DataFrame(history)


def _optimizer(classifier: Classifier, recipe: Recipe, steps: int) -> tuple[
        torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW over what is free, and its rate: warm-up, then a straight line to zero."""
    optimizer = torch.optim.AdamW(classifier.free().values(), recipe.learning_rate,
                                  weight_decay=0.0)
    warm = max(1, round(recipe.warmup_share * steps))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, (steps - s) / max(1, steps - warm)))


def _checked(reviews: pd.DataFrame) -> pd.DataFrame:
    """The reviews; ValueError unless they are a table with texts and labels."""
    if not isinstance(reviews, pd.DataFrame) or not {"text", "label"} <= set(reviews.columns):
        raise ValueError("expected reviews, a DataFrame with the columns text and label, as "
                         f"load_reviews gives it; got {type(reviews).__name__}")
    return reviews


def batches(lengths: Sequence[int], size: int, seed: int | list[int],
            window: int = 20) -> Iterator[list[int]]:
    """Every index once, in shuffled batches of texts of similar length (little is padded).

    Texts are sorted by length within windows of `window` batches, then the batches shuffled.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    parts = []
    for start in range(0, len(order), window * size):
        near = sorted(order[start : start + window * size].tolist(), key=lambda i: lengths[i])
        parts += [near[i : i + size] for i in range(0, len(near), size)]
    for place in rng.permutation(len(parts)):
        yield parts[place]


@torch.no_grad()
def predict(classifier: Classifier, texts: Sequence[str] | str, length: int = 256,
            batch: int = 32, autocast: bool = False) -> Tensor:
    """Probability of praise of every text, (n,). Raises ValueError for no texts or an empty one."""
    rows = tokenize(classifier.model, texts, length)
    device = next(classifier.parameters()).device
    classifier.eval()
    found = torch.empty(len(rows), dtype=classifier.head.weight.dtype)
    order = torch.tensor([len(row) for row in rows]).argsort(stable=True)
    for chosen in tqdm(order.split(batch), unit="batch", leave=False, delay=BAR_AFTER,
                       desc="classifying"):
        ids, mask = (x.to(device) for x in padded([rows[i] for i in chosen]))
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits = classifier(ids, mask)
        found[chosen] = logits.softmax(1)[:, 1].cpu()
    return found


def accuracy(classifier: Classifier, reviews: pd.DataFrame, length: int = 256,
             autocast: bool = False) -> float:
    """Share of reviews (columns `text`, `label`) that the classifier gets right."""
    reviews = _checked(reviews)
    praise = predict(classifier, reviews["text"].tolist(), length, autocast=autocast)
    return float(((praise > 0.5).numpy() == reviews["label"].to_numpy(bool)).mean())


# ---------------------------------------------------------------- what is kept


def save_changes(path: str | Path, classifier: Classifier, name: str,
                 facts: dict[str, Any]) -> None:
    """Write the displacement of the free matrices from model `name`, and the head, in float16.

    `facts`: what else to write down; `load_classifier` needs its "recipe" with "free_layers". The
    file holds a fingerprint of the model's weights, so that it cannot be put on others. It is
    written whole or not at all.
    """
    before = dict(Classifier(load(name), 0).named_parameters())
    tensors = {}
    for key, weight in classifier.free().items():
        moved = weight.detach().cpu() - (0 if key in HEAD else before[key])
        tensors[key] = moved.half().contiguous()
    metadata = {"model": name, "fingerprint": fingerprint(name), "facts": json.dumps(facts)}
    with whole_file(path) as part:
        save_file(tensors, part, metadata=metadata)


def read_facts(file: str | Path) -> dict[str, Any]:
    """What `save_changes` wrote beside the weights: model, fingerprint, and its facts.

    Raises ValueError for a damaged file, or one that `save_changes` did not write.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or no safetensors file: {error}") from None
    if "fingerprint" not in metadata:
        raise ValueError(f"{file} holds no classifier: save_changes did not write it")
    return {**json.loads(metadata["facts"]), **{k: metadata[k] for k in ("model", "fingerprint")}}


def classifier_path(name: str, seed: int) -> Path:
    """Where the bundled classifier of a model and a seed lies."""
    return CLASSIFIERS / f"{name}-seed{seed}.safetensors"


def load_classifier(name: str, seed: int = 1, path: str | Path | None = None) -> Classifier:
    """A fine-tuned classifier, in eval mode without gradients.

    `path`: a file that `save_changes` wrote, instead of the bundled one of this seed. Raises
    ModelNotFound where there is none, ValueError where it belongs to other weights.
    """
    name = known_name(name) or name
    file = Path(path) if path else classifier_path(name, seed)
    if not file.is_file():
        there = ", ".join(sorted(f.stem for f in CLASSIFIERS.glob("*.safetensors"))) or "none"
        raise ModelNotFound(f"there is no classifier {file.stem!r}; there are {there}")
    facts, changes = read_facts(file), load_file(file)
    if facts["fingerprint"] != fingerprint(name):
        raise ValueError(f"{file} was fine-tuned from other weights than those of {name} here "
                         f"(it says: {facts['model']}): they do not fit together")
    recipe = facts["recipe"]
    classifier = Classifier(load(name), recipe["free_layers"], recipe.get("seed", 0))
    with torch.no_grad():
        for key, weight in classifier.free().items():
            moved = changes[key].float()
            weight.copy_(moved if key in HEAD else weight + moved)
    return classifier.eval().requires_grad_(False)


def bundled_seeds(name: str) -> list[int]:
    """Seeds of the classifiers of a model that ship with the package."""
    files = CLASSIFIERS.glob(f"{name}-seed*.safetensors")
    return sorted(int(file.stem.rpartition("seed")[2]) for file in files)
