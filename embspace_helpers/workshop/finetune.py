"""Fine-tune the course's classifiers on IMDB, seed by seed.

    python -m embspace_helpers.finetuning twin-a --seeds 1 2 3 --data stanfordnlp/imdb

Run again, it goes on with what is not done yet.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from embspace_helpers.classroom.reviews import EMBEDDED, HUB_NAME, load_reviews
from embspace_helpers.experiments.classifiers import (
    FINE_TUNING_RESULTS,
    Classifier,
    Recipe,
    accuracy,
    fine_tune,
    load_classifier,
    read_facts,
    save_changes,
)
from embspace_helpers.experiments.statistics import replace_rows, save_table
from embspace_helpers.reading.model import load

KEY = ["model", "shuffled", "seed"]  # of a classifier, in the table of results


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
    classifier = Classifier(load(name), recipe.free_layers, recipe.seed).to(device)
    history = fine_tune(classifier, train, recipe, autocast=True)
    facts = {"recipe": asdict(recipe), "reviews": len(train), "loss": history["loss"].tolist()}
    save_changes(path, classifier.cpu(), name, facts)
    again = load_classifier(name, path=path).to(device)
    row = {"model": Path(name).name, "seed": recipe.seed, "shuffled": recipe.shuffled_labels,
           "reviews": len(train), "epochs": recipe.epochs, "loss": history["loss"].iloc[-1],
           "minutes": history["minutes"].iloc[-1]}
    test = load_reviews("test", n_test, source=data)
    row |= {"imdb": accuracy(again, test, recipe.length, True), "imdb_reviews": len(test)}
    for split in ("train", "test", "hard"):
        reviews = load_reviews(split, source=EMBEDDED)
        row[f"embedded_{split}"] = accuracy(again, reviews, recipe.length)
    return row


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
    """Fine-tune the seeds named on the command line, those that are not done yet."""
    parser = argparse.ArgumentParser(
        prog="python -m embspace_helpers.finetuning",
        description="Fine-tune classifiers on IMDB; run again, it goes on with the next seed.")
    parser.add_argument("name", help="twin-a, twin-b, or any decoder that load finds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--data", default=HUB_NAME, help="hub name or folder (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("build/classifiers"),
                        help="folder to write")
    parser.add_argument("--table", type=Path, default=FINE_TUNING_RESULTS,
                        help="results, a CSV file to renew")
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
        save_table(replace_rows(pd.DataFrame([row]).round(4), args.table, KEY), args.table)
        print(f"{path.name}: loss {row['loss']:.2f}, {row['imdb']:.2f} of {row['imdb_reviews']:,} "
              f"test reviews right, trained in {row['minutes']:.1f} minutes", flush=True)
