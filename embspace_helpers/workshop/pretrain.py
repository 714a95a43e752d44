"""Train the bundled language models from the IMDB reviews: one command, exact resume.

    python -m embspace_helpers.pretrain twin-a --data stanfordnlp/imdb --out build/twin-a

The models have GPT-2's architecture (tied embeddings, no dropout, erf GELU) and share one
byte-level BPE vocabulary. Texts: the train and unsupervised parts; every text that also stands
in the test part is dropped, and a held-out 2 % (chosen by a hash of the text) is never trained on.
"""

import argparse
import json
import math
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from embspace_helpers.classroom.reviews import HUB_NAME, read_imdb, text_hash

END = "<|endoftext|>"
HELD_OUT_SHARE = 0.02
GLIMPSE = 100_000  # held-out items for the loss curve; the figure of the model card takes all


@dataclass(frozen=True)
class PretrainRecipe:
    """All that decides the weights: two runs of one recipe on one machine are equal."""

    seed: int
    d: int = 192
    layers: int = 6
    heads: int = 3
    vocabulary: int = 8192
    context: int = 256
    epochs: float = 2.0
    batch: int = 32  # sequences of `context` items per step
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int = 200
    decay_share: float = 0.2  # of the steps, at the end


RECIPES = {
    "twin-a": PretrainRecipe(seed=1),
    "twin-b": PretrainRecipe(seed=2),
    "wide-w": PretrainRecipe(seed=3, d=256, layers=8, heads=4, epochs=1.0, learning_rate=2e-3),
}


# ---------------------------------------------------------------- data


def read_corpus(source: str) -> tuple[list[str], list[str]]:
    """Return (training texts, held-out texts): no duplicates, nothing that is in the test part."""
    test = set(read_imdb("test", source)["text"])
    texts = [t for split in ("train", "unsupervised") for t in read_imdb(split, source)["text"]]
    texts = [t for t in dict.fromkeys(texts) if t not in test]
    held_out = [t for t in texts if text_hash(t) < HELD_OUT_SHARE]
    return [t for t in texts if text_hash(t) >= HELD_OUT_SHARE], held_out


def train_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with `size` items, GPT-2's way (` word` is one item)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Return one stream of item ids (uint16): every text followed by the end-of-text item."""
    end = tokenizer.convert_tokens_to_ids(END)
    stream = [np.empty(0, dtype=np.uint16)]
    for start in range(0, len(texts), 2000):
        batch = tokenizer.backend_tokenizer.encode_batch(texts[start : start + 2000])
        stream += [np.array(e.ids + [end], dtype=np.uint16) for e in batch]
    return np.concatenate(stream)


def cut(source: str, work: Path, size: int, given: PreTrainedTokenizerFast | None) -> None:
    """Read the corpus, cut it with the `given` tokenizer or a new one, and leave it in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    train, held_out = read_corpus(source)
    tokenizer = given or train_tokenizer(train, size)
    tokenizer.save_pretrained(work / "tokenizer")
    np.save(work / "train.npy", encode(train, tokenizer))
    facts = {"train_reviews": len(train), "held_out_reviews": len(held_out),
             "held_out_bytes": sum(len(t.encode("utf-8")) for t in held_out),
             "trained_size": None if given else size}
    (work / "facts.json").write_text(json.dumps(facts))
    np.save(work / "held_out.npy", encode(held_out, tokenizer))  # written last


def prepare(source: str, work: Path, size: int, tokenizer_from: Path | None) -> dict:
    """Read, tokenize and cache the corpus in `work`; a second call reads the cache.

    Raises ValueError for a tokenizer of more items than `size`, or a cache cut by another one.
    """
    given = PreTrainedTokenizerFast.from_pretrained(tokenizer_from) if tokenizer_from else None
    if given and len(given) > size:
        raise ValueError(f"the tokenizer of {tokenizer_from} has {len(given)} items, "
                         f"the model has room for {size}")
    if not (work / "held_out.npy").exists():
        cut(source, work, size, given)
    facts = json.loads((work / "facts.json").read_text())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    trained = facts.pop("trained_size", len(tokenizer))  # None: the tokenizer was given
    if (tokenizer.get_vocab() != given.get_vocab()) if given else trained != size:
        asked = f"that of {tokenizer_from}" if given else f"one trained to {size} items"
        raise ValueError(f"{work} holds a corpus cut by a {'trained' if trained else 'given'} "
                         f"tokenizer of {len(tokenizer)} items, this run asks for {asked}: "
                         "delete the folder or name another (--work)")
    return {"tokenizer": tokenizer, "train": np.load(work / "train.npy"),
            "held_out": np.load(work / "held_out.npy"), **facts}


def batch_at(stream: np.ndarray, step: int, recipe: PretrainRecipe) -> torch.Tensor:
    """Return batch number `step`, shape (batch, context): a function of the recipe alone.

    Every epoch cuts the stream at another offset and visits the pieces in another order.
    """
    per_epoch = (len(stream) - recipe.context) // (recipe.batch * recipe.context)
    epoch, place = divmod(step, per_epoch)
    rng = np.random.default_rng([recipe.seed, epoch])
    offset = int(rng.integers(recipe.context))
    order = rng.permutation((len(stream) - offset) // recipe.context)
    pieces = order[place * recipe.batch : (place + 1) * recipe.batch]
    rows = [stream[offset + p * recipe.context :][: recipe.context] for p in pieces]
    return torch.from_numpy(np.stack(rows).astype(np.int64))


# ---------------------------------------------------------------- training


def new_model(recipe: PretrainRecipe) -> GPT2LMHeadModel:
    """Return the untrained model of a recipe (GPT-2's initialisation, from the recipe's seed)."""
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        vocab_size=recipe.vocabulary, n_positions=recipe.context, n_embd=recipe.d,
        n_layer=recipe.layers, n_head=recipe.heads, activation_function="gelu",
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def new_optimizer(model: GPT2LMHeadModel, recipe: PretrainRecipe, device: str) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95),
                             fused=device.startswith("cuda"))


def steps_of(recipe: PretrainRecipe, stream: np.ndarray) -> tuple[int, int]:
    """Return (steps per epoch, steps in all); ValueError if the stream gives not one batch."""
    per_epoch = (len(stream) - recipe.context) // (recipe.batch * recipe.context)
    total = round(recipe.epochs * per_epoch)
    if total < 1:
        raise ValueError(f"the training text is too short: {recipe.epochs:g} epochs of "
                         f"{len(stream)} items, but a batch takes {recipe.batch} x "
                         f"{recipe.context}, and {recipe.context} are left for the offset")
    return per_epoch, total


def decay_start(total: int, recipe: PretrainRecipe) -> int:
    """Return the step at which the learning rate begins to fall."""
    return round(total * (1 - recipe.decay_share))


def rate_at(step: int, total: int, recipe: PretrainRecipe) -> float:
    """Linear warm-up, constant, then a straight line to zero over the last `decay_share`.

    Up to the decay the rate does not depend on `total`: a run can be stopped there and finished
    early (`--epochs` smaller), or carried on for longer (`--epochs` larger).
    """
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    begin = decay_start(total, recipe)
    return recipe.learning_rate * min(warm, 1.0, (total - step) / max(1, total - begin))


def loss_of(model: GPT2LMHeadModel, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-item cross-entropy in nats of a batch of shape (batch, context)."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # (batch, context - 1, e)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, stream: np.ndarray, recipe: PretrainRecipe, device: str) -> float:
    """Mean next-item loss in nats over the held-out stream, in pieces of `context` items."""
    model.eval()
    rows = stream[: len(stream) // recipe.context * recipe.context].reshape(-1, recipe.context)
    rows = torch.from_numpy(rows.astype(np.int64))
    losses = [float(loss_of(model, part.to(device))) * len(part) for part in rows.split(32)]
    model.train()
    return sum(losses) / len(rows)


def train(model, data: dict, recipe: PretrainRecipe, out: Path, device: str, micro: int,
          checkpoint_every: int = 100, stop_at: int | None = None, compiled=False) -> dict:
    """Train up to the recipe's epochs (or `stop_at` steps); resumes from `out`/checkpoint.pt.

    `micro`: sequences per forward pass; gradients add up over a batch. Returns the log: one
    entry per tenth of an epoch: step, tokens, train and held-out loss, seconds so far. Raises
    ValueError for texts too short for one batch or checkpoints of another recipe or other data.
    """
    per_epoch, total = steps_of(recipe, data["train"])
    if len(data["held_out"]) < recipe.context:
        raise ValueError(f"the held-out text is too short: {len(data['held_out'])} items, the "
                         f"loss is taken over pieces of {recipe.context}")
    tenth, loss_fn = max(1, per_epoch // 10), torch.compile(loss_of) if compiled else loss_of
    model.to(device).train()
    optimizer = new_optimizer(model, recipe, device)
    log = {"recipe": asdict(recipe), "total": total, "train_items": len(data["train"]),
           "curve": [], "seconds": 0.0, "step": 0}
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        log = resume(checkpoint, model, optimizer, recipe, total, device, len(data["train"]))
    glimpse = data["held_out"][:GLIMPSE]
    recent = torch.tensor(log.pop("recent", 0.0), device=device)  # training loss since the last entry
    begun = time.monotonic() - log["seconds"]
    end = min(total, stop_at or total)
    for step in tqdm(range(log["step"], end), initial=log["step"], total=total, unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, total, recipe)
        for part in batch_at(data["train"], step, recipe).to(device).split(micro):
            loss = loss_fn(model, part) * len(part) / recipe.batch
            loss.backward()
            recent += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log.update(step=step + 1, seconds=time.monotonic() - begun)
        if (step + 1) % tenth == 0 or step + 1 == total:
            steps = step + 1 - (log["curve"][-1]["step"] if log["curve"] else 0)
            log["curve"].append({
                "step": step + 1, "tokens": (step + 1) * recipe.batch * recipe.context,
                "train_loss": round(float(recent) / steps, 4),
                "held_out_loss": round(held_out_loss(model, glimpse, recipe, device), 4),
                "seconds": round(log["seconds"]),
            })
            tqdm.write(json.dumps(log["curve"][-1]))
            recent.zero_()
        if (step + 1) % checkpoint_every == 0 or step + 1 == end:
            save_checkpoint(checkpoint, model, optimizer, {**log, "recent": float(recent)})
    return log


def save_checkpoint(path: Path, model, optimizer, log: dict) -> None:
    """Write to a neighbour first, so that a stop in between loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": log}, half)
    half.replace(path)


def resume(path: Path, model, optimizer, recipe: PretrainRecipe, total: int, device: str,
           items: int) -> dict:
    """Load a checkpoint into model and optimizer; returns its log.

    Raises ValueError if it was made from another number of training items or with another recipe;
    only the epochs may differ, as long as neither run has begun to lower its learning rate.
    """
    saved = torch.load(path, map_location=device, weights_only=True)
    old, step = PretrainRecipe(**saved["log"]["recipe"]), saved["log"]["step"]
    begun = step > min(decay_start(total, recipe), decay_start(saved["log"]["total"], old))
    if replace(old, epochs=recipe.epochs) != recipe or (old != recipe and begun):
        raise ValueError(f"{path} holds step {step} of a run with {old}; this run asks for "
                         f"{recipe}: delete it or choose another --out")
    if saved["log"].setdefault("train_items", items) != items:
        raise ValueError(f"{path} holds step {step} of a run on {saved['log']['train_items']} "
                         f"training items, this run has {items}: delete it or choose another --out")
    saved["log"].update(recipe=asdict(recipe), total=total)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["log"]


# ---------------------------------------------------------------- what is left behind


def write_folder(out: Path, name: str, model, data: dict, log: dict, device: str) -> None:
    """Write a `from_pretrained` folder: float16 weights, tokenizer, token counts, model card.

    Everybody may read its files (safetensors lets only the owner).
    """
    model.eval().to("cpu").half().save_pretrained(out)
    data["tokenizer"].save_pretrained(out)
    counts = np.bincount(data["train"], minlength=model.config.vocab_size).tolist()
    (out / "token_counts.json").write_text(json.dumps(counts))
    (out / "training_log.json").write_text(json.dumps(log))
    half = GPT2LMHeadModel.from_pretrained(out, dtype=torch.float32).to(device)
    recipe = PretrainRecipe(**log["recipe"])
    final = held_out_loss(half, data["held_out"], recipe, device)
    (out / "README.md").write_text(model_card(name, half.to("cpu"), data, log, final, device))
    for file in filter(Path.is_file, out.iterdir()):
        file.chmod(0o644)


def sample_text(model, tokenizer, prompt: str = "This movie", items: int = 80) -> str:
    """Generate `items` items by top-50 sampling with a fixed seed."""
    torch.manual_seed(0)
    ids = tokenizer(prompt, return_tensors="pt")
    items = min(items, model.config.n_positions - ids["input_ids"].shape[1])
    out = model.eval().generate(**ids, max_new_tokens=items, do_sample=True, top_k=50, pad_token_id=0)
    return tokenizer.decode(out[0], skip_special_tokens=True)


def model_card(name: str, model, data: dict, log: dict, loss: float, device: str) -> str:
    """Return the README.md of a trained model."""
    recipe, curve = PretrainRecipe(**log["recipe"]), log["curve"]
    counts = np.bincount(data["train"], minlength=recipe.vocabulary) + 1
    unigram = -np.log(counts / counts.sum())[data["held_out"]].mean()
    bits = loss * len(data["held_out"]) / math.log(2) / data["held_out_bytes"]
    machine = (torch.cuda.get_device_name() if device.startswith("cuda")
               else f"{torch.get_num_threads()} CPU threads ({platform.machine()})")
    rows = "\n".join(f"| {p['tokens'] / 1e6:.0f} | {p['train_loss']:.3f} | {p['held_out_loss']:.3f} |"
                     f" {math.exp(p['held_out_loss']):.1f} |" for p in curve)
    return CARD.format(
        name=name, r=recipe, parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        epochs=f"{recipe.epochs:g} epoch" + "s" * (recipe.epochs != 1),
        tokens=curve[-1]["tokens"] / 1e6, epoch=len(data["train"]) / 1e6,
        minutes=log["seconds"] / 60, machine=machine, torch=torch.__version__.split("+")[0],
        loss=loss, perplexity=math.exp(loss), bits=bits, unigram=math.exp(unigram), rows=rows,
        sample=sample_text(model, data["tokenizer"]).replace("\n", " "), data=data,
    )


CARD = """---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A small language model of movie reviews with GPT-2's architecture, made for the course *Analyzing
Transformers in embedding space*: to be read, not to be used. {parameters:.1f} M parameters: d = {r.d},
{r.layers} layers, {r.heads} heads, {r.vocabulary} vocabulary items (byte-level BPE), {r.context} positions, tied
embeddings, no dropout, erf GELU. Seed {r.seed}. Weights in float16.

| | |
| --- | --- |
| held-out perplexity per item | **{perplexity:.2f}** ({loss:.3f} nats; {bits:.3f} bits per byte), the float16 weights |
| the same for item frequencies alone | {unigram:.0f} |
| tokens seen | {tokens:.1f} M ({epochs} of {epoch:.1f} M) |
| wall time | {minutes:.0f} minutes, {machine}, torch {torch}, bf16 autocast |

## Data
The train and unsupervised parts of the Large Movie Review Dataset (IMDB), {data[train_reviews]:,} reviews after dropping
duplicates and every text that also stands in the test part; {data[held_out_reviews]:,} more, chosen by a hash of the text, were
held out. `<br />` removed. The data set is free to use for research with this citation:

> Andrew L. Maas, Raymond E. Daly, Peter T. Pham, Dan Huang, Andrew Y. Ng, Christopher Potts. *Learning Word
> Vectors for Sentiment Analysis.* ACL 2011.

No review is part of this repository. `token_counts.json` counts every vocabulary item in the training texts.

## Loss curve
| M tokens | training loss | held-out loss | held-out perplexity |
| --- | --- | --- | --- |
{rows}

AdamW (0.9, 0.95), learning rate {r.learning_rate:g} (warm-up of {r.warmup_steps} steps, the last {r.decay_share:.0%} down to zero), weight decay {r.weight_decay:g} on
matrices, batches of {r.batch} x {r.context} items, gradient norm clipped at 1.

## A sample (seed 0, top-50 sampling, prompt "This movie")
> {sample}

## Limits
It knows English only as movie reviews write it, repeats what reviewers think and how they say it, prejudices and
coarse words included, and states nothing reliably. Trained again with

    python -m embspace_helpers.pretrain {name} --data stanfordnlp/imdb --epochs {r.epochs:g}
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m embspace_helpers.pretrain",
                                     description="Train a bundled model; run again to resume.")
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--data", default=HUB_NAME, help="hub name or folder (default %(default)s)")
    parser.add_argument("--out", type=Path, help="folder to write (default build/NAME)")
    parser.add_argument("--work", type=Path, default=Path("build/corpus"), help="tokenized corpus")
    parser.add_argument("--tokenizer", type=Path, help="take this folder's tokenizer, train none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--micro", type=int, help="sequences per forward pass")
    parser.add_argument("--epochs", type=float, help="instead of the recipe's")
    parser.add_argument("--compile", action="store_true", help="faster steps after a slow first")
    args = parser.parse_args(arguments)
    recipe, out = RECIPES[args.name], args.out or Path("build") / args.name
    if args.epochs:
        recipe = replace(recipe, epochs=args.epochs)
    data = prepare(args.data, args.work, recipe.vocabulary, args.tokenizer)
    micro = args.micro or (recipe.batch if args.device.startswith("cuda") else 8)
    torch.set_float32_matmul_precision("high")
    model = new_model(recipe)
    log = train(model, data, recipe, out, args.device, micro, compiled=args.compile)
    write_folder(out, args.name, model, data, log, args.device)
    print(f"{out}: held-out perplexity {math.exp(log['curve'][-1]['held_out_loss']):.2f}")
