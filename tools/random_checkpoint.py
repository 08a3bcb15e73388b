#!/usr/bin/env python3
"""Writes a checkpoint of a real model's shape with random weights, for measuring time and memory.

usage: random_checkpoint.py SHAPE OUT_DIR [--seed 0] [--layers N]

SHAPE is one of llama-3.2-1b, llama-3.2-3b, llama-3.1-8b, qwen3-0.6b, qwen3-4b, gpt-oss-20b. Needs numpy and nothing else.

Matrices are bf16, normal with deviation 0.02, every value drawn on its own, so that clustering them is as hard as it can
be; norms are one. Experts of gpt-oss are MXFP4: any code is as likely as any other, scales are 2^-8, 2^-7 or 2^-6. The
values of a tensor depend on the seed and the tensor's name only. Tensors are written as they are drawn: memory stays
below 100 MB whatever the shape.

With --layers N only the first N layers have values, and embedding and head if N is not 0. The others are holes in the
file: they read as zeros and take no disk (a checkpoint of 16 GB may need 1 GB). A conversion of such a checkpoint has the
memory of a real one, but not its time: zeros are quickly clustered. Nor has it the size: equal weights are stored once.
Take both from another N and the difference between the two.

The tokenizer is that of models/tiny-llama, with 2048 tokens. The vocabulary of the shape is larger, as it must be for
the sizes to be right: token ids above 2047 have no text.
"""

import argparse
import json
import shutil
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np

LLAMA3_ROPE = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": LLAMA3_ROPE,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}

# What is not in the other shapes: experts, biases, sinks.
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "head_dim": 64,
    "hidden_act": "silu",
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_experts_per_tok": 4,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000.0,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}


def sizes(hidden, intermediate, layers, heads):
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


SHAPES = {
    "llama-3.2-1b": LLAMA | sizes(2048, 8192, 16, 32) | {"head_dim": 64},
    "llama-3.2-3b": LLAMA | sizes(3072, 8192, 28, 24),
    "llama-3.1-8b": LLAMA
    | sizes(4096, 14336, 32, 32)
    | {"rope_scaling": LLAMA3_ROPE | {"factor": 8.0}, "tie_word_embeddings": False},
    "qwen3-0.6b": QWEN3 | sizes(1024, 3072, 28, 16),
    "qwen3-4b": QWEN3 | sizes(2560, 9728, 36, 32),
    "gpt-oss-20b": GPT_OSS | sizes(2880, 2880, 24, 64),
}

# What transformers uses; a larger checkpoint is cut into shards.
SHARD_BYTES = 5_000_000_000
CHUNK = 4 << 20
DEVIATION = 0.02
TINY = Path(__file__).resolve().parent.parent / "models" / "tiny-llama"
BESIDE = ["generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"]


def tensors(config):
    """Names and shapes, in the order of the layers."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head, vocab = config["head_dim"], config["vocab_size"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{layer}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{layer}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, queries)
        if config["model_type"] == "qwen3":
            yield f"{layer}.self_attn.q_norm.weight", (head,)
            yield f"{layer}.self_attn.k_norm.weight", (head,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        if config["model_type"] == "gpt_oss":
            yield from experts(config, layer)
            continue
        yield f"{layer}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.up_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


def experts(config, layer):
    """What a layer of gpt-oss has beside norms and projections."""
    hidden, inner, count = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    for name, size in {"q": queries, "k": keys, "v": keys, "o": hidden}.items():
        yield f"{layer}.self_attn.{name}_proj.bias", (size,)
    yield f"{layer}.self_attn.sinks", (config["num_attention_heads"],)
    yield f"{layer}.mlp.router.weight", (count, hidden)
    yield f"{layer}.mlp.router.bias", (count,)
    for name, rows, columns in [("gate_up", 2 * inner, hidden), ("down", hidden, inner)]:
        yield f"{layer}.mlp.experts.{name}_proj_blocks", (count, rows, columns // 32, 16)
        yield f"{layer}.mlp.experts.{name}_proj_scales", (count, rows, columns // 32)
        yield f"{layer}.mlp.experts.{name}_proj_bias", (count, rows)


def is_mxfp4(name):
    return name.endswith(("_blocks", "_scales"))


def byte_len(name, shape):
    return (1 if is_mxfp4(name) else 2) * int(np.prod(shape, dtype=np.int64))


def is_real(name, layers):
    """Whether a tensor has values when only so many layers have."""
    parts = name.split(".")
    return int(parts[2]) < layers if parts[1] == "layers" else layers > 0


def bf16(values):
    """The upper halves of f32 values, rounded to nearest even. Works in place."""
    bits = values.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    bits >>= 16
    return bits.astype("<u2")


def write_values(file, name, shape, seed):
    if len(shape) == 1:
        file.write(bf16(np.ones(shape, dtype=np.float32)))
        return
    random = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    if is_mxfp4(name):
        low, high = (119, 122) if name.endswith("_scales") else (0, 256)
        for start in range(0, byte_len(name, shape), CHUNK):
            size = min(CHUNK, byte_len(name, shape) - start)
            file.write(random.integers(low, high, size, dtype=np.uint8))
        return
    count = byte_len(name, shape) // 2
    chunk = np.empty(min(CHUNK, count), dtype=np.float32)
    for start in range(0, count, CHUNK):
        part = chunk[: min(CHUNK, count - start)]
        random.standard_normal(dtype=np.float32, out=part)
        part *= DEVIATION
        file.write(bf16(part))


def write_shard(path, shard, args, report):
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shard:
        begin, end = end, end + byte_len(name, shape)
        dtype = "U8" if is_mxfp4(name) else "BF16"
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shard:
            if is_real(name, args.layers):
                write_values(file, name, shape, args.seed)
            else:
                file.seek(byte_len(name, shape), 1)
            report(byte_len(name, shape))
        file.truncate()


def cut(all_tensors):
    """Shards of at most SHARD_BYTES."""
    shards, size = [[]], 0
    for name, shape in all_tensors:
        if shards[-1] and size + byte_len(name, shape) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += byte_len(name, shape)
    return shards


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=1 << 30, help="how many layers have values")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        sys.exit(f"{args.out}: found files, expected an empty or new directory")
    args.out.mkdir(parents=True, exist_ok=True)

    config = SHAPES[args.shape]
    shards = cut(tensors(config))
    total = sum(byte_len(*tensor) for shard in shards for tensor in shard)
    started, done = time.monotonic(), 0

    def report(count):
        nonlocal done
        done += count
        rate = done / (time.monotonic() - started) / 1e6
        print(f"\r{done / 1e9:6.2f} of {total / 1e9:.2f} GB, {rate:.0f} MB/s", end="", file=sys.stderr)

    weight_map = {}
    for i, shard in enumerate(shards, 1):
        single = len(shards) == 1
        name = "model.safetensors" if single else f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_shard(args.out / name, shard, args, report)
        weight_map |= {tensor: name for tensor, _ in shard}
    print(file=sys.stderr)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (args.out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    for name in BESIDE:
        shutil.copyfile(TINY / name, args.out / name)
    # The configuration comes last: a directory without it is no checkpoint. Special tokens are the tokenizer's.
    tiny = json.loads((TINY / "config.json").read_text())
    special = {key: tiny[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = dict(sorted((config | special | {"torch_dtype": "bfloat16"}).items()))
    (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
