"""A Llama of random weights, larger than those that are at hand: python random_llama.py TOKENIZER_FOLDER OUTPUT_FOLDER.

Run it in the environment of the converter, which has torch and Transformers.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

#: 428 million parameters: three times smollm2's, with other proportions
SHAPE = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 8, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip


def main(tokenizer: str, output: str) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(LlamaConfig(**SHAPE, dtype="bfloat16")).save_pretrained(output)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
