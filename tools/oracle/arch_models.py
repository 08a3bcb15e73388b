#!/usr/bin/env python3
"""Makes tests/golden/arch/NAME: a tiny model with random weights for each architecture, and what transformers computes.

usage: arch_models.py OUT_DIR [NAME ...]      with torch 2.7, transformers 5.23.0, safetensors

Each directory gets config.json, model.safetensors (bfloat16) and golden.safetensors: for two sequences `input_ids_N` the
logits `logits_N`, or `last_hidden_state_N` of an encoder, in float32 from the weights as they are stored, with eager
attention; of decoders also `greedy_0`, the first sequence continued by 12 tokens.
"""

import json
import math
import os
import sys

import torch
import transformers as T
from safetensors.torch import load_file, save_file

VOCAB = 64
TEXTS = [[1, 17, 30, 42, 5, 5, 19, 25, 33, 7], [1, 9, 8, 7, 6, 50, 51, 52, 11, 59, 3, 60, 58]]
SIZES = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)
GROUPED = dict(SIZES, num_key_value_heads=2)
WINDOWS = dict(sliding_window=4, layer_types=["sliding_attention", "full_attention"])
YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 16, "rope_theta": 150000.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.25], "long_factor": [1.5, 3.0], "rope_theta": 10000.0,
            "original_max_position_embeddings": 32, "partial_rotary_factor": 0.5}

MODELS = {
    "mistral": lambda: T.MistralForCausalLM(T.MistralConfig(**GROUPED, head_dim=16, sliding_window=4)),
    "mixtral": lambda: T.MixtralForCausalLM(T.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)),
    "qwen3-moe": lambda: T.Qwen3MoeForCausalLM(T.Qwen3MoeConfig(
        **GROUPED, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True,
        mlp_only_layers=[1])),
    "gemma": lambda: T.GemmaForCausalLM(T.GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=16)),
    "gemma2": lambda: T.Gemma2ForCausalLM(T.Gemma2Config(
        **GROUPED, head_dim=16, query_pre_attn_scalar=24, attn_logit_softcapping=5.0, final_logit_softcapping=8.0,
        **WINDOWS)),
    "gemma3": lambda: T.Gemma3ForCausalLM(T.Gemma3TextConfig(
        **GROUPED, head_dim=16, query_pre_attn_scalar=24, **WINDOWS, rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}})),
    "phi": lambda: T.PhiForCausalLM(T.PhiConfig(**SIZES, rope_parameters={
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5})),
    "phi3": lambda: T.Phi3ForCausalLM(T.Phi3Config(
        **GROUPED, original_max_position_embeddings=32, rope_parameters=LONGROPE, sliding_window=6)),
    "gpt2": lambda: T.GPT2LMHeadModel(T.GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=4)),
    "gpt-neo": lambda: T.GPTNeoForCausalLM(T.GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=64, window_size=4,
        attention_types=[[["global", "local"], 1]])),
    "gpt-neox": lambda: T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "pad_token_id"},
                                                           rotary_pct=0.5)),
    "gpt-oss": lambda: T.GptOssForCausalLM(T.GptOssConfig(
        **GROUPED, head_dim=16, num_local_experts=4, num_experts_per_tok=2, rope_parameters=YARN, **WINDOWS)),
    "stablelm": lambda: T.StableLmForCausalLM(T.StableLmConfig(
        **GROUPED, use_qkv_bias=True, rope_parameters={
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25})),
    "bert": lambda: T.BertModel(T.BertConfig(**SIZES)),
    "roberta": lambda: T.RobertaModel(T.RobertaConfig(**dict(SIZES, pad_token_id=1))),
    "mpnet": lambda: T.MPNetModel(T.MPNetConfig(**dict(SIZES, pad_token_id=1))),
    "distilbert": lambda: T.DistilBertModel(T.DistilBertConfig(
        vocab_size=VOCAB, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64)),
    "modernbert": lambda: T.ModernBertModel(T.ModernBertConfig(
        **dict(SIZES, num_hidden_layers=3), local_attention=6, global_attn_every_n_layers=2)),
    "qwen3-embedding": lambda: T.Qwen3Model(T.Qwen3Config(**GROUPED, head_dim=16)),
}


def randomize(model, seed):
    """Weights of such sizes that logits are far from ties, rounded to bfloat16."""
    random = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        values = torch.randn(weight.shape, generator=random)
        if name.endswith("sinks"):
            weight.copy_(values * 0.5)
        elif weight.ndim == 1:
            weight.add_(values * 0.1)
        elif "embed" in name or "wte" in name or "wpe" in name:
            weight.copy_(values * 0.5)
        else:
            weight.copy_(values / math.sqrt(weight.shape[1]))
        weight.copy_(weight.bfloat16().float())


@torch.no_grad()
def make(name, number, directory):
    torch.manual_seed(number)
    model = MODELS[name]().eval().float()
    model.config._attn_implementation = "eager"
    randomize(model, 100 + number)
    decoder = model.can_generate()
    golden = {}
    for i, text in enumerate(TEXTS):
        # Encoders count positions of what is not padding, so that padding must not occur.
        ids = torch.tensor([text if decoder else [token + 3 for token in text]])
        output = model(ids)
        golden[f"input_ids_{i}"] = ids.int()
        if decoder:
            golden[f"logits_{i}"] = output.logits.contiguous()
        else:
            golden[f"last_hidden_state_{i}"] = output.last_hidden_state.contiguous()
    if decoder:
        ids = torch.tensor([TEXTS[0]])
        golden["greedy_0"] = model.generate(
            ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0).int()
    model.save_pretrained(directory)
    path = os.path.join(directory, "model.safetensors")
    stored = {key: weight.bfloat16().contiguous() for key, weight in load_file(path).items()}
    save_file(stored, path, metadata={"format": "pt"})
    save_file(golden, os.path.join(directory, "golden.safetensors"))
    config = os.path.join(directory, "config.json")
    kept = {key: value for key, value in json.load(open(config)).items() if value is not None}
    json.dump(kept, open(config, "w"), indent=2)
    generation = os.path.join(directory, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)
    print(f"{name}: {sum(os.path.getsize(os.path.join(directory, f)) for f in os.listdir(directory))} bytes")


def main():
    torch.set_num_threads(1)
    out, only = sys.argv[1], sys.argv[2:]
    for number, name in enumerate(MODELS):
        if not only or name in only:
            directory = os.path.join(out, name)
            os.makedirs(directory, exist_ok=True)
            make(name, number, directory)


if __name__ == "__main__":
    main()
