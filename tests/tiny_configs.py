"""A tiny configuration of every type of model that the table of architectures knows.

Built lazily: `transformers` imports a family's code when one of its classes is first asked for.
"""

import transformers

LLAMA = {"vocab_size": 40, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
         "bos_token_id": 0, "eos_token_id": 39, "pad_token_id": None}
BERT = {"vocab_size": 40, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 32}
NEOX = BERT | {"num_attention_heads": 3, "bos_token_id": 0, "eos_token_id": 39}
OPT = {key: NEOX[key] for key in NEOX if key != "intermediate_size"}


def made(name, head="ForCausalLM", config_class=None, **config):
    """A function that makes a model of the `transformers` family `name`."""
    return lambda: getattr(transformers, f"{name}{head}")(
        getattr(transformers, config_class or f"{name}Config")(**config))


def masked(name, **config):
    return made(name, "ForMaskedLM", **config)


# Head sizes differ: 4 (GPT-2: 12 / 3), 6 (Llama, Qwen3: not 12 / 4), 2 (Mistral), 3 (BERT), 4.
MODELS = {
    "gpt2": made("GPT2", "LMHeadModel", vocab_size=40, n_positions=32, n_embd=12, n_inner=20,
                 n_layer=2, n_head=3, bos_token_id=0, eos_token_id=39),
    "llama": made("Llama", **LLAMA, head_dim=6, attention_bias=True, mlp_bias=True,
                  tie_word_embeddings=False),
    "mistral": made("Mistral", **LLAMA | {"hidden_size": 8, "num_key_value_heads": 1},
                    tie_word_embeddings=True),
    "qwen2": made("Qwen2", **LLAMA | {"hidden_size": 16}, tie_word_embeddings=False),
    "qwen3": made("Qwen3", **LLAMA, head_dim=6, tie_word_embeddings=True),
    "gemma2": made("Gemma2", **LLAMA, head_dim=4, query_pre_attn_scalar=9, sliding_window=64,
                   attn_logit_softcapping=1.5, final_logit_softcapping=4.0),
    "gemma3_text": made("Gemma3", **LLAMA, head_dim=4, query_pre_attn_scalar=9,
                        sliding_window=64, layer_types=["sliding_attention", "full_attention"],
                        config_class="Gemma3TextConfig"),
    "phi3": made("Phi3", **LLAMA | {"hidden_size": 16}, tie_word_embeddings=False),
    "olmo2": made("Olmo2", **LLAMA | {"hidden_size": 16}, tie_word_embeddings=False),
    "smollm3": made("SmolLM3", **LLAMA | {"hidden_size": 16}, no_rope_layers=[1, 0],
                    tie_word_embeddings=True),
    "gpt_neox": made("GPTNeoX", **NEOX, rotary_pct=0.5),
    "opt": made("OPT", **OPT, ffn_dim=20, word_embed_proj_dim=12,
                activation_function="gelu"),  # Galactica's: behind a ReLU much is just 0
    "gpt_neo": made("GPTNeo", **OPT, intermediate_size=20, num_heads=3, num_layers=2,
                    attention_types=[[["global", "local"], 1]]),
    "gptj": made("GPTJ", **OPT, n_inner=20, rotary_dim=2),
    "bert": masked("Bert", **BERT),
    "roberta": masked("Roberta", **BERT),
    "distilbert": masked("DistilBert", vocab_size=40, dim=12, hidden_dim=20, n_layers=2, n_heads=4,
                         max_position_embeddings=32),
    "electra": masked("Electra", **BERT, embedding_size=12),
    "mpnet": masked("MPNet", **BERT),
    "modernbert": masked("ModernBert", **BERT | {"hidden_size": 16}, pad_token_id=0, bos_token_id=1,
                         eos_token_id=2, cls_token_id=1, sep_token_id=2),
}
BERT_KINDS = ("bert", "roberta", "distilbert", "electra", "mpnet")  # norms in the stream
ENCODERS = (*BERT_KINDS, "modernbert")
DECODERS = tuple(kind for kind in MODELS if kind not in ENCODERS)
BOTH_SIGNS = ("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3")  # of their active gates
GROUPED = (*BOTH_SIGNS, "olmo2", "gemma2", "gemma3_text")
GATED = (*GROUPED, "modernbert")
UNTIED = ("llama", "qwen2", "phi3", "olmo2", "gpt_neox", "gptj")
PARALLEL = ("gpt_neox", "gptj")  # FF and attention read the same state
POST_NORM = ("gemma2", "gemma3_text", "olmo2")  # a norm behind each block
NO_BIAS = tuple(kind for kind in GATED if kind != "llama")  # of the FF values
TWO_ROTATIONS = ("gemma3_text", "modernbert")  # by type of layer
