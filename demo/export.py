"""The trained model as a Hugging Face checkpoint folder, which `kimi-vl quantize` turns into GGUF files.

python -m demo.export RUN FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .model import Config, KimiVL, checkpoint_tensors
from .tokenizer import N_SPECIAL, Vocabulary

# Patches of a picture: somewhat more than the largest that it was trained on. Larger pictures are scaled down to it.
IN_TOKEN_LIMIT = 480

# The chat format of the models (docs/model.md, "Template"): a default system message, then role, content and end of
# every message.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>' -}}{%- endif -%}"
    "{%- for message in messages -%}{%- set role = message['role'] -%}"
    "{%- if role in ('system', 'user', 'assistant') -%}{{- '<|im_' + role + '|>' -}}{%- endif -%}"
    "{{- role + '<|im_middle|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}"
    "{{- '<|media_start|>image<|media_content|><|media_pad|><|media_end|>' -}}"
    "{%- else -%}{{- part['text'] -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_assistant|>assistant<|im_middle|>' -}}{%- endif -%}"
)


def load(run: Path, checkpoint: str = "last.pt") -> tuple[KimiVL, Vocabulary]:
    """The model of a run and its vocabulary."""
    state = torch.load(run / checkpoint, map_location="cpu", weights_only=False)
    model = KimiVL(Config.from_dict(state["config"]))
    model.load_state_dict(state["model"])
    return model.eval(), Vocabulary.load(run / "tiktoken.model")


def export(model: KimiVL, vocabulary: Vocabulary, folder: Path) -> None:
    """Writes config.json, preprocessor_config.json, tokenizer_config.json, tiktoken.model and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous().float() for name, tensor in checkpoint_tensors(model).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary.save(folder / "tiktoken.model")
    files = {
        "config.json": _config(model.config, vocabulary),
        "preprocessor_config.json": {
            "image_processor_type": "KimiVLImageProcessor",
            "patch_size": model.config.vision.patch_size,
            "pad_input": True,
            "in_token_limit": IN_TOKEN_LIMIT,
            "merge_kernel_size": [2, 2],
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        "tokenizer_config.json": _tokenizer_config(vocabulary),
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=1) + "\n")


def _config(config: Config, vocabulary: Vocabulary) -> dict[str, Any]:
    values = config.to_dict()
    special = vocabulary.special
    text = values["text"] | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "num_key_value_heads": config.text.num_attention_heads,
        "q_lora_rank": None,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "moe_layer_freq": 1,
        "hidden_act": "silu",
        "rope_scaling": None,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "num_nextn_predict_layers": 0,
        "bos_token_id": special["[BOS]"],
        "eos_token_id": special["[EOS]"],
        "pad_token_id": special["[PAD]"],
        "torch_dtype": "float32",
    }
    vision = values["vision"] | {"model_type": "moonvit", "merge_kernel_size": [2, 2], "torch_dtype": "float32"}
    return {
        "architectures": ["KimiVLForConditionalGeneration"],
        "model_type": "kimi_vl",
        "ignore_index": -100,
        "media_placeholder_token_id": special["<|media_pad|>"],
        "pad_token_id": special["[PAD]"],
        "text_config": text,
        "vision_config": vision,
        "vocab_size": config.text.vocab_size,
        "torch_dtype": "float32",
    }


def _tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    names = {number: text for text, number in vocabulary.special.items()}
    ids = range(vocabulary.n_base, vocabulary.n_base + N_SPECIAL)
    return {
        "tokenizer_class": "TikTokenTokenizer",
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "added_tokens_decoder": {
            str(i): {"content": names.get(i, f"<|reserved_token_{i}|>"), "special": True} for i in ids
        },
        "chat_template": CHAT_TEMPLATE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", default="last.pt")
    args = parser.parse_args()
    model, vocabulary = load(args.run, args.checkpoint)
    export(model, vocabulary, args.folder)


if __name__ == "__main__":
    main()
