"""Train the bundled language models from the IMDB reviews: one command, exact resume.

    python -m embspace_helpers.pretrain twin-a --data stanfordnlp/imdb --out build/twin-a

Most have GPT-2's architecture (tied embeddings, no dropout, erf GELU); `untied-u` has GPT-NeoX's,
as Pythia. All share one byte-level BPE vocabulary. For their texts see `corpus`.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from embspace_helpers.classroom.reviews import HUB_NAME
from embspace_helpers.reading.files import whole_file
from embspace_helpers.workshop.corpus import prepare
from embspace_helpers.workshop.model_card import model_card

GLIMPSE = 100_000  # held-out tokens for the loss curve; the figure of the model card takes all


@dataclass(frozen=True)
class PretrainRecipe:
    """All that decides the weights: two runs of one recipe on one machine are equal."""

    seed: int
    architecture: str = "GPT-2"  # or "GPT-NeoX"
    d: int = 192
    layers: int = 6
    heads: int = 3
    vocabulary: int = 8192
    context: int = 256
    epochs: float = 2.0
    batch: int = 32  # sequences of `context` tokens per step
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    warmup_steps: int = 200
    decay_share: float = 0.2  # of the steps, at the end


RECIPES = {
    "twin-a": PretrainRecipe(seed=1),
    "twin-b": PretrainRecipe(seed=2),
    "wide-w": PretrainRecipe(seed=3, d=256, layers=8, heads=4, epochs=1.0, learning_rate=2e-3),
    "untied-u": PretrainRecipe(seed=4, architecture="GPT-NeoX", epochs=1.0),
}


def batch_at(stream: np.ndarray, step: int, recipe: PretrainRecipe) -> Tensor:
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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's default generator at `seed` inside; afterwards it goes on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def new_model(recipe: PretrainRecipe) -> PreTrainedModel:
    """Return the untrained model of a recipe (its class's initialisation, from the seed)."""
    kind: type[PreTrainedModel]
    if recipe.architecture == "GPT-NeoX":
        config, kind = GPTNeoXConfig(
            vocab_size=recipe.vocabulary, max_position_embeddings=recipe.context,
            hidden_size=recipe.d, num_hidden_layers=recipe.layers, intermediate_size=4 * recipe.d,
            num_attention_heads=recipe.heads, tie_word_embeddings=False, use_parallel_residual=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                             "partial_rotary_factor": 0.25},
            bos_token_id=0, eos_token_id=0,
        ), GPTNeoXForCausalLM
    else:
        config, kind = GPT2Config(
            vocab_size=recipe.vocabulary, n_positions=recipe.context, n_embd=recipe.d,
            n_layer=recipe.layers, n_head=recipe.heads, activation_function="gelu",
            embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        ), GPT2LMHeadModel
    with seeded(recipe.seed):
        return kind(config)


def new_optimizer(model: PreTrainedModel, recipe: PretrainRecipe, device: str) -> torch.optim.AdamW:
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
                         f"{len(stream)} tokens, but a batch takes {recipe.batch} x "
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


def loss_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Mean next-token cross-entropy in nats of a batch of shape (batch, context)."""
    with torch.autocast(ids.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # (batch, context - 1, e)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, stream: np.ndarray, recipe: PretrainRecipe,
                  device: str) -> float:
    """Mean next-token loss in nats over the held-out stream, in pieces of `context` tokens."""
    model.eval()
    rows = stream[: len(stream) // recipe.context * recipe.context].reshape(-1, recipe.context)
    rows = torch.from_numpy(rows.astype(np.int64))
    losses = [float(loss_of(model, part.to(device))) * len(part) for part in rows.split(32)]
    model.train()
    return sum(losses) / len(rows)


def train(model: PreTrainedModel, data: dict[str, Any], recipe: PretrainRecipe, out: Path,
          device: str, micro: int, checkpoint_every: int = 100, stop_at: int | None = None,
          compiled: bool = False) -> dict[str, Any]:
    """Train up to the recipe's epochs (or `stop_at` steps); resumes from `out`/checkpoint.pt.

    `micro`: sequences per forward pass; gradients add up over a batch. Returns the log: one
    entry per tenth of an epoch: step, tokens, train and held-out loss, seconds so far. Raises
    ValueError for texts too short for one batch or checkpoints of another recipe or other data.
    """
    per_epoch, total = steps_of(recipe, data["train"])
    if len(data["held_out"]) < recipe.context:
        raise ValueError(f"the held-out text is too short: {len(data['held_out'])} tokens, the "
                         f"loss is taken over pieces of {recipe.context}")
    loss_fn = torch.compile(loss_of) if compiled else loss_of
    model.to(device).train()
    optimizer = new_optimizer(model, recipe, device)
    log: dict[str, Any] = {
        "recipe": asdict(recipe), "total": total, "train_items": len(data["train"]),
        "curve": [], "seconds": 0.0, "step": 0}
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        log = resume(checkpoint, model, optimizer, recipe, total, device, len(data["train"]))
    recent = torch.tensor(log.pop("recent", 0.0), device=device)  # loss since the last entry
    begun = time.monotonic() - log["seconds"]
    tenth, end = max(1, per_epoch // 10), min(total, stop_at or total)
    for step in tqdm(range(log["step"], end), initial=log["step"], total=total, unit="step"):
        parts = batch_at(data["train"], step, recipe).to(device).split(micro)
        take_step(model, optimizer, parts, rate_at(step, total, recipe), recent, loss_fn)
        log.update(step=step + 1, seconds=time.monotonic() - begun)
        if (step + 1) % tenth == 0 or step + 1 == total:
            glimpse = held_out_loss(model, data["held_out"][:GLIMPSE], recipe, device)
            log["curve"].append(log_entry(log, recipe, float(recent), glimpse))
            tqdm.write(json.dumps(log["curve"][-1]))
            recent.zero_()
        if (step + 1) % checkpoint_every == 0 or step + 1 == end:
            save_checkpoint(checkpoint, model, optimizer, {**log, "recent": float(recent)})
    return log


def take_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, parts: tuple[Tensor, ...],
              rate: float, recent: Tensor, loss_fn: Callable[..., Tensor] = loss_of) -> None:
    """One step on a batch, given in `parts` (micro, context); its loss is added to `recent` ()."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    size = sum(map(len, parts))
    for part in parts:
        loss = loss_fn(model, part) * len(part) / size
        loss.backward()
        recent += loss.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def log_entry(log: dict[str, Any], recipe: PretrainRecipe, recent: float,
              held_out: float) -> dict[str, Any]:
    """The next entry of a log's curve; `recent`: the sum of the losses since the last one."""
    step, before = log["step"], log["curve"][-1]["step"] if log["curve"] else 0
    return {"step": step, "tokens": step * recipe.batch * recipe.context,
            "train_loss": round(recent / (step - before), 4),
            "held_out_loss": round(held_out, 4), "seconds": round(log["seconds"])}


def save_checkpoint(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer,
                    log: dict[str, Any]) -> None:
    """Write model, optimizer and log, whole or not at all."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": log}
    with whole_file(path) as part:
        torch.save(state, part)


def resume(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer,
           recipe: PretrainRecipe, total: int, device: str, tokens: int) -> dict[str, Any]:
    """Load a checkpoint into model and optimizer; returns its log.

    Raises ValueError if it was made from another number of training tokens or with another recipe;
    only the epochs may differ, as long as neither run has begun to lower its learning rate.
    """
    saved = torch.load(path, map_location=device, weights_only=True)
    old, step = PretrainRecipe(**saved["log"]["recipe"]), saved["log"]["step"]
    begun = step > min(decay_start(total, recipe), decay_start(saved["log"]["total"], old))
    if replace(old, epochs=recipe.epochs) != recipe or (old != recipe and begun):
        raise ValueError(f"{path} holds step {step} of a run with {old}; this run asks for "
                         f"{recipe}: delete it or choose another --out")
    if saved["log"].setdefault("train_items", tokens) != tokens:
        raise ValueError(f"{path} holds step {step} of a run on {saved['log']['train_items']} "
                         f"training tokens, this run has {tokens}: delete it or choose another "
                         "--out")
    saved["log"].update(recipe=asdict(recipe), total=total)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["log"]


# ---------------------------------------------------------------- what is left behind


def write_folder(out: Path, name: str, model: PreTrainedModel, data: dict[str, Any],
                 log: dict[str, Any], device: str) -> None:
    """Write a `from_pretrained` folder: float16 weights, tokenizer, token counts, model card.

    Everybody may read its files (safetensors lets only the owner).
    """
    model.eval().to("cpu").half().save_pretrained(out)
    data["tokenizer"].save_pretrained(out)
    counts = np.bincount(data["train"], minlength=model.config.vocab_size).tolist()
    (out / "token_counts.json").write_text(json.dumps(counts))
    (out / "training_log.json").write_text(json.dumps(log))
    half = type(model).from_pretrained(out, dtype=torch.float32).to(device)
    recipe = PretrainRecipe(**log["recipe"])
    final = held_out_loss(half, data["held_out"], recipe, device)
    sample = sample_text(half.to("cpu"), data["tokenizer"])
    machine = (torch.cuda.get_device_name() if device.startswith("cuda")
               else f"{torch.get_num_threads()} CPU threads ({platform.machine()})")
    parameters = sum(p.numel() for p in half.parameters())
    card = model_card(name, parameters, data, log, final, machine, sample)
    (out / "README.md").write_text(card, encoding="utf-8")
    for file in filter(Path.is_file, out.iterdir()):
        file.chmod(0o644)


def sample_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast,
                prompt: str = "This movie", tokens: int = 80) -> str:
    """Generate up to `tokens` tokens by top-50 sampling, seed 0, with a model on the CPU."""
    ids = tokenizer(prompt, return_tensors="pt")
    tokens = min(tokens, model.config.max_position_embeddings - ids["input_ids"].shape[1])
    with seeded(0):
        out = model.eval().generate(**ids, max_new_tokens=tokens, do_sample=True, top_k=50,
                                    pad_token_id=0)
    return tokenizer.decode(out[0], skip_special_tokens=True)


def main(arguments: list[str] | None = None) -> None:
    """Train the model named on the command line, from the reviews to the folder."""
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
