"""Run by the Python beside PEFT, with a folder: writes random networks, adapters for them, and their logits there."""

import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config, Qwen3MoeConfig

TOKENS = [[5, 6, 7, 8, 9, 10]]
SMALL = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MORE = {"head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
NETWORKS = {
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, **MORE),
    "qwen3_moe": Qwen3MoeConfig(**SMALL, **MORE, **EXPERTS),
}
LINEAR = {"target_modules": ["q_proj", "v_proj", "o_proj"]}
KINDS = {
    "lora": {**LINEAR, "r": 4, "lora_alpha": 8},
    "rslora": {**LINEAR, "r": 4, "lora_alpha": 8, "use_rslora": True},
    "dora": {**LINEAR, "r": 4, "lora_alpha": 8, "use_dora": True},
    "patterns": {**LINEAR, "r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 24}},
    "some layers": {**LINEAR, "r": 4, "lora_alpha": 8, "layers_to_transform": [1]},
}
DENSE = {"mlp": {"target_modules": ["gate_proj", "down_proj"], "r": 4, "lora_alpha": 8}}
ROUTED = {
    "experts": {
        "target_modules": [],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        "r": 4,
        "lora_alpha": 8,
    }
}
REFUSED = {"whole module": {**LINEAR, "r": 4, "modules_to_save": ["lm_head"]}}


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float().numpy()


def main(folder: Path) -> None:
    torch.manual_seed(1)
    for name, config in NETWORKS.items():
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        # Larger than at a beginning of training, so that what an adapter does is seen.
        with torch.no_grad():
            for weight in plain.parameters():
                weight.mul_(3.0) if weight.dim() > 1 else None
        plain.save_pretrained(folder / name)
        np.save(folder / name / "logits.npy", logits(plain))
        for kind, options in (KINDS | (ROUTED if name == "qwen3_moe" else DENSE) | REFUSED).items():
            base = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
            adapted = get_peft_model(base, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **options)).eval()
            with torch.no_grad():
                for parameter, weight in adapted.named_parameters():
                    if "lora_A" in parameter or "lora_B" in parameter:
                        weight.normal_(0, 0.2)
                    elif "magnitude" in parameter:
                        weight.mul_(torch.rand_like(weight) + 0.5)
            target = folder / name / kind
            adapted.save_pretrained(target)
            np.save(target / "logits.npy", logits(adapted))


main(Path(sys.argv[1]))
