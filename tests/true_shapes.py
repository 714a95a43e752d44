"""A local hub of the paper's models, with random weights at their true shapes, to run once by hand.

    python tests/true_shapes.py FOLDER

writes FOLDER/gpt2-medium, gpt2, multiberts-seed_0 and multiberts-seed_1, 2.9 GB, with the files
and the names of weights that the hub has: GPT-2's without a prefix and with its attention masks,
MultiBERTs with both heads and a tokenizer of vocab.txt. The options that `reproduce` wants are
printed. Tokenizers are trained on the embedded reviews, and the vocabulary has its true size, most
of it words that no text has. The tests make the same folders small.
"""

import json
import sys
from itertools import islice, product
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
)

from embspace_helpers import load_reviews
from embspace_helpers.workshop.corpus import train_tokenizer

SHAPES = {"gpt2-medium": (1024, 24, 16), "gpt2": (768, 12, 12),  # d, L, H
          "multiberts-seed_0": (768, 12, 12), "multiberts-seed_1": (768, 12, 12)}
SMALL = {"gpt2-medium": (24, 4, 2), "gpt2": (16, 3, 2),
         "multiberts-seed_0": (16, 3, 2), "multiberts-seed_1": (16, 3, 2)}


def paper_models(folder, shapes=SHAPES, gpt_tokens=50_257, bert_tokens=30_522, context=1024):
    """Write the four folders. Returns their paths, in the order that `reproduce` wants."""
    texts = load_reviews("train")["text"].tolist()
    tokenizer = filled(train_tokenizer(texts, min(gpt_tokens, 2000)), gpt_tokens)
    words = sorted({word for text in texts for word in text.lower().split() if word.isalpha()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *new_words(bert_tokens)]
    pieces = pieces[:bert_tokens]
    for seed, (name, (d, L, H)) in enumerate(shapes.items()):
        torch.manual_seed(seed)
        path = Path(folder) / name
        if name.startswith("gpt2"):
            ends = {"bos_token_id": 0, "eos_token_id": 0}
            config = GPT2Config(vocab_size=gpt_tokens, n_embd=d, n_layer=L, n_head=H,
                                n_positions=context, **ends)
            tokenizer.save_pretrained(path)
            save_gpt2(GPT2LMHeadModel(config), path, context)
        else:
            model = BertForPreTraining(BertConfig(
                vocab_size=bert_tokens, hidden_size=d, num_hidden_layers=L, num_attention_heads=H,
                intermediate_size=4 * d, max_position_embeddings=min(context, 512)))
            model.save_pretrained(path)
            (path / "vocab.txt").write_text("\n".join(pieces))
            (path / "tokenizer_config.json").write_text(json.dumps(
                {"do_lower_case": True, "tokenizer_class": "BertTokenizer"}))
    return [str(Path(folder) / name) for name in shapes]


def save_gpt2(model, path, context):
    """Write GPT-2 as its page has it: the body's weights, by their names in the body, and masks."""
    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.save_pretrained(path)
    masks = {f"h.{i}.attn.bias": torch.ones(context, context).tril()[None, None].clone()
             for i in range(model.config.n_layer)}
    save_file(model.transformer.state_dict() | masks, path / "model.safetensors",
              metadata={"format": "pt"})


def new_words(n):
    """n different words of five letters that no text has."""
    return ["q" + "".join(letters) for letters in islice(product("abcdefghijklmnop", repeat=4), n)]


def filled(tokenizer, size):
    """The tokenizer with new words up to a vocabulary of `size`, so that lists are long enough."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for word in new_words(size - len(tokenizer)):
        rules["model"]["vocab"]["\u0120" + word] = len(rules["model"]["vocab"])
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(rules))
    return tokenizer


if __name__ == "__main__":
    print("--models", *paper_models(Path(sys.argv[1])))
