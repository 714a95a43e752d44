"""Fine-tune a language model into the paper's sentiment classifier, and keep what changed.

    python -m embspace_helpers.finetuning twin-a --seeds 1 2 3 --data stanfordnlp/imdb

Dar et al. (2023), section 4.3: a text's logits are the mean of the head's logits over its
positions, the final norm is taken out, and only the matrices of the last layers and the head are
free. What is stored of a classifier is the displacement, fine-tuned less pretrained, of these.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from embspace_helpers.reading.activations import BAR_AFTER, cut_texts, padded
from embspace_helpers.reading.models import BUNDLED, DATA, ModelNotFound, fingerprint, load_model
from embspace_helpers.reading.parameters import Parameters
from embspace_helpers.classroom.reviews import EMBEDDED, HUB_NAME, load_reviews
from embspace_helpers.experiments.statistics import save_table

CLASSIFIERS = BUNDLED / "classifiers"
RESULTS = DATA / "fine_tuning.csv"
HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True)
class Recipe:
    """All that decides a classifier's weights, apart from the texts."""

    seed: int = 0
    free_layers: int = 3
    epochs: int = 1
    batch: int = 32  # texts per step
    length: int = 256  # vocabulary items of a text that are read
    learning_rate: float = 1e-3
    warmup_share: float = 0.1  # of the steps; then a straight line to zero
    shuffled_labels: bool = False  # the control: labels that have nothing to do with the texts


class Classifier(nn.Module):
    """Praise or blame: the mean over a text's positions of `head` applied to the last state.

    Takes over `model`: its final norm becomes the identity, its language head is dropped, and its
    weights are frozen except the matrices of the last `free_layers` layers. `head` (2, d): row 0
    speaks for blame, row 1 for praise. Raises ValueError for more free layers than there are.
    """

    def __init__(self, model: nn.Module, free_layers: int = 3, seed: int = 0):
        super().__init__()
        params = Parameters(model)
        if not 0 <= free_layers <= params.L:
            raise ValueError(f"free_layers = {free_layers}, but the model has {params.L} layers")
        self.base = model.base_model
        if (norm := params.final_norm()) is not None:
            name = next(name for name, module in self.base.named_modules() if module is norm)
            self.base.set_submodule(name, nn.Identity())
        self.head = nn.Linear(params.d, 2)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.base.requires_grad_(False)
        for block in params.blocks[params.L - free_layers :]:
            for weight in block.parameters():
                weight.requires_grad_(weight.ndim > 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (b, 2) of b texts: ids and mask (b, positions), 0 where nothing stands."""
        states = self.base(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = self.head(states).float() * mask[..., None]  # (b, positions, 2)
        return logits.sum(1) / mask.sum(1, keepdim=True)

    def free(self) -> dict[str, Tensor]:
        """The weights that fine-tuning changes, by name; the head's come last."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


# ---------------------------------------------------------------- training and use


def fine_tune(classifier: Classifier, tokenizer, train: pd.DataFrame, recipe: Recipe,
              test: pd.DataFrame | None = None, autocast: bool = False) -> pd.DataFrame:
    """Train `classifier` on reviews (columns `text` and `label`); returns a row per epoch.

    Columns: epoch, loss (mean over the epoch), accuracy on `test` (if given), minutes so far.
    `autocast`: matrix products in bfloat16, faster where the processor has them. AdamW without
    weight decay, so that all that moves is moved by the texts. The order of the texts, and dropout
    where a model has it, follow from the recipe's seed.
    """
    rows = cut_texts(classifier.base, tokenizer, train["text"].tolist(), recipe.length)
    labels = torch.tensor(train["label"].to_numpy())
    device = classifier.head.weight.device
    steps = recipe.epochs * -(-len(rows) // recipe.batch)
    optimizer = torch.optim.AdamW(classifier.free().values(), recipe.learning_rate, weight_decay=0.0)
    warm = max(1, round(recipe.warmup_share * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, (steps - s) / max(1, steps - warm)))
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
                history[-1]["accuracy"] = accuracy(classifier, tokenizer, test, recipe.length)
            history[-1]["minutes"] = (time.monotonic() - begun) / 60
    classifier.eval()
    return pd.DataFrame(history)


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
def predict(classifier: nn.Module, tokenizer, texts: Sequence[str], length: int = 256,
            batch: int = 32, autocast: bool = False) -> Tensor:
    """Probability of praise of every text, (n,). Raises ValueError for no texts or an empty one."""
    rows = cut_texts(classifier.base, tokenizer, texts, length)
    device = next(classifier.parameters()).device
    classifier.eval()
    found = torch.empty(len(rows))
    order = torch.tensor([len(row) for row in rows]).argsort(stable=True)
    for chosen in tqdm(order.split(batch), unit="batch", leave=False, delay=BAR_AFTER,
                       desc="classifying"):
        ids, mask = (x.to(device) for x in padded([rows[i] for i in chosen]))
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits = classifier(ids, mask)
        found[chosen] = logits.softmax(1)[:, 1].cpu()
    return found


def accuracy(classifier: nn.Module, tokenizer, reviews: pd.DataFrame, length: int = 256,
             autocast: bool = False) -> float:
    """Share of reviews (columns `text`, `label`) that the classifier gets right."""
    praise = predict(classifier, tokenizer, reviews["text"].tolist(), length, autocast=autocast)
    return float(((praise > 0.5).numpy() == reviews["label"].to_numpy(bool)).mean())


# ---------------------------------------------------------------- what is kept


def save_changes(path: Path, classifier: Classifier, name: str, facts: dict) -> None:
    """Write the displacement of the free matrices from model `name`, and the head, in float16.

    `facts`: what else to write down; `load_classifier` needs its "recipe" with "free_layers". The
    file holds a fingerprint of the model's weights, so that it cannot be put on others.
    """
    before = dict(Classifier(load_model(name)[0], 0).named_parameters())
    tensors = {}
    for key, weight in classifier.free().items():
        moved = weight.detach().cpu() - (0 if key in HEAD else before[key])
        tensors[key] = moved.half().contiguous()
    metadata = {"model": name, "fingerprint": fingerprint(name), "facts": json.dumps(facts)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)
    path.chmod(0o644)


def read_facts(file: Path) -> dict:
    """What `save_changes` wrote beside the weights: model, fingerprint, and its facts.

    Raises ValueError for a file that `save_changes` did not write.
    """
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata() or {}
    if "fingerprint" not in metadata:
        raise ValueError(f"{file} holds no classifier: save_changes did not write it")
    return {**json.loads(metadata["facts"]), **{k: metadata[k] for k in ("model", "fingerprint")}}


def classifier_path(name: str, seed: int) -> Path:
    """Where the bundled classifier of a model and a seed lies."""
    return CLASSIFIERS / f"{name}-seed{seed}.safetensors"


def load_classifier(name: str, seed: int = 1, path: Path | None = None) -> tuple[Classifier, object]:
    """A fine-tuned classifier, in eval mode without gradients, and its tokenizer.

    `path`: a file that `save_changes` wrote, instead of the bundled one of this seed. Raises
    ModelNotFound where there is none, ValueError where it belongs to other weights.
    """
    file = path or classifier_path(name, seed)
    if not file.is_file():
        there = ", ".join(sorted(f.stem for f in CLASSIFIERS.glob("*.safetensors"))) or "none"
        raise ModelNotFound(f"there is no classifier {file.stem!r}; there are {there}")
    facts, changes = read_facts(file), load_file(file)
    if facts["fingerprint"] != fingerprint(name):
        raise ValueError(f"{file} was fine-tuned from other weights than those of {name} here "
                         f"(it says: {facts['model']}): they do not fit together")
    model, tokenizer = load_model(name)
    classifier = Classifier(model, facts["recipe"]["free_layers"])
    with torch.no_grad():
        for key, weight in classifier.free().items():
            moved = changes[key].float()
            weight.copy_(moved if key in HEAD else weight + moved)
    return classifier.eval().requires_grad_(False), tokenizer


def bundled_seeds(name: str) -> list[int]:
    """Seeds of the classifiers of a model that ship with the package."""
    files = CLASSIFIERS.glob(f"{name}-seed*.safetensors")
    return sorted(int(file.stem.rpartition("seed")[2]) for file in files)


# ---------------------------------------------------------------- the command


def train_one(name: str, recipe: Recipe, data: str, path: Path, n: int | None = None,
              n_test: int | None = None, device: str = "cpu") -> dict:
    """Fine-tune one classifier on n of IMDB's training reviews, write it, return its results.

    The accuracies are those of the file, read again, on n_test (default: all) of IMDB's test
    reviews and on all embedded ones.
    """
    train = load_reviews("train", n, recipe.seed, data)
    if recipe.shuffled_labels:
        labels = train["label"].sample(frac=1, random_state=recipe.seed)
        train = train.assign(label=labels.to_numpy())
    model, tokenizer = load_model(name)
    classifier = Classifier(model, recipe.free_layers, recipe.seed).to(device)
    history = fine_tune(classifier, tokenizer, train, recipe, autocast=True)
    facts = {"recipe": asdict(recipe), "reviews": len(train), "loss": history["loss"].tolist()}
    save_changes(path, classifier.cpu(), name, facts)
    again, _ = load_classifier(name, path=path)
    again.to(device)
    row = {"model": Path(name).name, "seed": recipe.seed, "shuffled": recipe.shuffled_labels,
           "reviews": len(train), "epochs": recipe.epochs, "loss": history["loss"].iloc[-1],
           "minutes": history["minutes"].iloc[-1]}
    test = load_reviews("test", n_test, source=data)
    row |= {"imdb": accuracy(again, tokenizer, test, recipe.length, True), "imdb_reviews": len(test)}
    for split in ("train", "test", "hard"):
        row[f"embedded_{split}"] = accuracy(again, tokenizer, load_reviews(split, source=EMBEDDED),
                                            recipe.length)
    return row


KEY = ["model", "shuffled", "seed"]  # of a classifier, in the table of results


def merge(row: dict, table: Path) -> pd.DataFrame:
    """The results in `table`, if there is one, with those of the same classifier replaced."""
    new = pd.DataFrame([row])
    if table.exists():
        new = pd.concat([pd.read_csv(table), new]).drop_duplicates(KEY, keep="last")
    return new.sort_values(KEY).round(4)


def is_done(path: Path, table: Path, name: str, recipe: Recipe, n: int | None) -> bool:
    """Whether a classifier's file is there and its results are in the table.

    Raises ValueError where the file was made with another recipe or number of reviews.
    """
    rows = pd.read_csv(table)[KEY].values.tolist() if table.exists() else []
    if not path.exists() or [Path(name).name, recipe.shuffled_labels, recipe.seed] not in rows:
        return False
    facts = read_facts(path)
    if Recipe(**facts["recipe"]) != recipe or n not in (None, facts["reviews"]):
        raise ValueError(f"{path} was made from {facts['reviews']} reviews with {facts['recipe']}: "
                         "remove it, or name another folder with --out")
    return True


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.finetuning",
        description="Fine-tune classifiers on IMDB; run again, it goes on with the next seed.")
    parser.add_argument("name", help="twin-a, twin-b, or any decoder load_model knows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--data", default=HUB_NAME, help="hub name or folder (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/classifiers"), help="folder to write")
    parser.add_argument("--table", type=Path, default=RESULTS, help="results, a CSV file to renew")
    parser.add_argument("--reviews", type=int, help="so many training reviews (default: all)")
    parser.add_argument("--test", type=int, help="so many test reviews (default: all)")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--shuffled-labels", action="store_true", help="the control")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    for seed in args.seeds:
        recipe = Recipe(seed, epochs=args.epochs, learning_rate=args.rate,
                        shuffled_labels=args.shuffled_labels)
        kind = "-shuffled" if args.shuffled_labels else ""
        path = args.out / f"{Path(args.name).name}{kind}-seed{seed}.safetensors"
        if is_done(path, args.table, args.name, recipe, args.reviews):
            print(f"{path} is there already, and its results are in {args.table}")
            continue
        row = train_one(args.name, recipe, args.data, path, args.reviews, args.test, args.device)
        save_table(merge(row, args.table), args.table)
        print(row, flush=True)
