"""Tiny random models of every type that the table of architectures knows, and tiny tokenizers.

And what tests compare with: seeded random numbers, and closeness.
"""

import sys
from types import MethodType

import numpy as np
import torch
from tiny_configs import ENCODERS, MODELS
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedTokenizerFast
from transformers.masking_utils import eager_mask
from transformers.models.llama import modeling_llama

from embspace_helpers.reading.model import Model
from embspace_helpers.reading.vocabulary import Vocabulary

# Two ways to compute one thing in float64 differ by 2e-16 for each operation. Nothing here takes
# more than 1e4 of them one behind the other, and nothing is worse conditioned than 1e2.
EXACT = 1e-10

# ---- numbers


def random(*shape, seed=0, dtype=torch.float64):
    """Standard normal numbers that follow from the seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(actual, expected, tolerance=EXACT):
    """Assert that numbers of any kind agree, relative to their size or to 1."""
    actual, expected = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x)
                        for x in (actual, expected))
    np.testing.assert_allclose(actual, expected, tolerance, tolerance)


def dense_best(scores, k, smallest=False, left_out=None):
    """The k best entries of a matrix and their places [(row, column)], by value, row and column."""
    scores = np.asarray(scores)
    rows, columns = np.nonzero(np.ones_like(scores) if left_out is None else ~np.asarray(left_out))
    values = scores[rows, columns]
    order = np.lexsort((columns, rows, values if smallest else -values))[:k]
    return values[order], list(zip(rows[order].tolist(), columns[order].tolist()))


class Sizes(TorchDispatchMode):
    """Notes the largest tensor, in numbers, that an operation makes in memory of its own."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        for tensor in out if isinstance(out, tuple | list) else [out]:
            new = isinstance(tensor, torch.Tensor) and (
                tensor.untyped_storage().data_ptr() not in given)
            self.largest = max(self.largest, tensor.numel() if new else 0)
        return out


# ---- tokenizers


def word_level(items, **special):
    """A tokenizer of whole words, cut at spaces; ids are the places of the items."""
    model = models.WordLevel({item: i for i, item in enumerate(items)}, items[0])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def byte_level(pieces, **special):
    """A tokenizer with GPT-2's kind of pieces, Ġ for a space; it merges none of them."""
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, [])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special)


def word_piece(pieces, **special):
    """A tokenizer with BERT's kind of pieces, ## inside a word."""
    model = models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="[UNK]", **special)


def sentence_piece(pieces, **special):
    """A tokenizer with SentencePiece's kind of pieces, ▁ for a space; the first is unknown."""
    model = models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0)
    tokenizer = Tokenizer(model)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=pieces[0], **special)


def vocabulary_of(items, counts=None):
    """The vocabulary of whole words; the first is unknown and never kept."""
    return Vocabulary(word_level(items, unk_token=items[0]), counts=counts)


def numbers(kind="gpt2", e=40):
    """A tokenizer whose ids are the numbers in a text; 0 and e - 1 stand at its ends."""
    ends = ("cls_token", "sep_token") if kind in ENCODERS else ("bos_token", "eos_token")
    items = ["<s>", *map(str, range(1, e - 1)), "</s>"]
    return word_level(items, **dict(zip(ends, ("<s>", "</s>"))))


# ---- models


def tiny(kind):
    """A tiny model with random weights everywhere, gains and biases too; all in float64."""
    return in_float64(tiny_in_float32(kind))


def tiny_model(kind):
    """A tiny model in float64, to be read."""
    return Model(tiny(kind), numbers(kind))


def tiny_in_float32(kind):
    """The tiny model as `transformers` has it."""
    torch.manual_seed(0)
    model = MODELS[kind]()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for name, p in model.named_parameters():
            gain = name.endswith("weight") and ("norm" in name.lower() or ".ln_" in name)
            p.copy_(0.4 * torch.randn(p.shape) + (gain and not kind.startswith("gemma")))
    return model.eval()


def in_float64(model):
    """The model in float64, also where `transformers` falls back to float32.

    That is in the softmax, norms and rotation of most. Without it, a batch and its texts one by
    one would agree to 1e-7 only.
    """
    if model._supports_attention_backend:
        model.set_attn_implementation("float64")
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            module.__class__ = GemmaNorm if name.startswith("Gemma") else RMSNorm
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
        if name.endswith("RotaryEmbedding"):
            module.__class__ = Rotation
        if name == "GPTJAttention":
            module.embed_positions = old_rotation(*module.embed_positions.shape)
        if name in ("GPTJAttention", "GPTNeoSelfAttention"):
            module._attn = MethodType(old_attention, module)
    code = sys.modules[type(model).__module__]
    if hasattr(code, "ModernBertModel"):  # turns queries and keys in float32
        code.apply_rotary_pos_emb = modeling_llama.apply_rotary_pos_emb
    return model.double()


class RMSNorm(nn.Module):
    """A root-mean-square norm in the precision of what it gets."""

    offset = 0.0

    def forward(self, x):
        epsilon = self.eps if hasattr(self, "eps") else self.variance_epsilon
        size = (x.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return (self.weight + self.offset) * x / size


class GemmaNorm(RMSNorm):
    """The same with Gemma's gain."""

    offset = 1.0


class Rotation(nn.Module):
    """The cosines and sines of rotary positions, computed in float64."""

    def forward(self, x, position_ids, layer_type=None):
        inv_freq = getattr(self, f"{layer_type}_inv_freq" if layer_type else "inv_freq")
        angles = (position_ids[..., None].double() * inv_freq.double()).repeat(1, 1, 2)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def attention(module, query, key, value, attention_mask, scaling, softcap=None, **_):
    """Attention with the softmax in the precision of the queries."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = query @ key.mT * scaling
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    weights = (scores + (0 if attention_mask is None else attention_mask)).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def old_attention(self, query, key, value, attention_mask=None):
    """The same for GPT-J and GPT-Neo, which do not ask an interface."""
    scores = query @ key.mT / getattr(self, "scale_attn", 1.0)
    weights = (scores + (0 if attention_mask is None else attention_mask)).softmax(-1)
    return weights @ value, weights


def old_rotation(n, dim):
    """GPT-J's table of sines and cosines."""
    angles = torch.arange(n)[:, None] * 1e4 ** (-torch.arange(0, dim, 2).double() / dim)
    return torch.cat([angles.sin(), angles.cos()], 1)


AttentionInterface.register("float64", attention)
AttentionMaskInterface.register("float64", eager_mask)


def another(kind, seed=1):
    """A second tiny model of a kind, with other weights."""
    model = tiny(kind)
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            p.copy_(p + 0.3 * random(*p.shape, seed=100 * seed + number))
    return Model(model, numbers(kind))
