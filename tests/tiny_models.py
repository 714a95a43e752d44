"""Tiny random models of every type that the table of architectures knows."""

import torch
from transformers import (BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig,
                          LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, RobertaConfig, RobertaForMaskedLM)

LLAMA = {"vocab_size": 40, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
BERT = {key: LLAMA[key] for key in LLAMA if key != "num_key_value_heads"}
# Head sizes: 4 (GPT-2: 12 / 3), 6 (Llama: not 12 / 4), 2 (Mistral), 4 (Qwen2), 3 (BERT).
MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(
        vocab_size=40, n_positions=32, n_embd=12, n_inner=20, n_layer=2, n_head=3)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(
        **LLAMA, head_dim=6, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(
        **LLAMA | {"hidden_size": 8, "num_key_value_heads": 1}, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(
        **LLAMA | {"hidden_size": 16}, tie_word_embeddings=False)),
    "bert": lambda: BertForMaskedLM(BertConfig(**BERT)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**BERT)),
}
NORM_FIRST = ("gpt2", "llama", "mistral", "qwen2")


def tiny(kind):
    """A tiny model in float64 with random weights everywhere: gains and biases too."""
    torch.manual_seed(0)
    model = MODELS[kind]()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for name, p in model.named_parameters():
            gain = 1.0 if "norm" in name.lower() or ".ln_" in name else 0.0
            p.copy_(0.4 * torch.randn(p.shape) + (gain if name.endswith("weight") else 0.0))
    return model.double().eval()
