"""A GGUF file of a few kilobytes."""

import gguf
import numpy as np
import torch


def write_gguf(path, layers=1, d=64, ff=128, words=8):
    """A tiny Llama in GGUF; returns the feed-forward value matrix it holds, (d, ff)."""
    random, writer = np.random.default_rng(0), gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers), writer.add_embedding_length(d), writer.add_head_count(2)
    writer.add_feed_forward_length(ff), writer.add_head_count_kv(1), writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(1e-5), writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(words)
    writer.add_tokenizer_model("gpt2"), writer.add_token_merges(["a b", "Ġ Ġ"])
    writer.add_token_list(["<s>", "a", "b", "ab", "1", "2", "Ġ", "ĠĠ"])
    writer.add_token_types([3] + [1] * (words - 1))
    shapes = {"token_embd": (words, d), "blk.0.attn_q": (d, d), "blk.0.attn_k": (d // 2, d)}
    shapes |= {"blk.0.attn_v": (d // 2, d), "blk.0.attn_output": (d, d), "blk.0.ffn_up": (ff, d)}
    shapes |= {"blk.0.ffn_gate": (ff, d), "blk.0.ffn_down": (d, ff), "output_norm": (d,)}
    shapes |= {"blk.0.attn_norm": (d,), "blk.0.ffn_norm": (d,)}
    tensors = {name: random.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    quantised = gguf.quants.quantize(tensors["blk.0.ffn_down"], gguf.GGMLQuantizationType.Q8_0)
    for name, values in tensors.items():
        if name == "blk.0.ffn_down":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", quantised, raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    return torch.tensor(gguf.quants.dequantize(quantised, gguf.GGMLQuantizationType.Q8_0))
