"""Which causal architectures can be captured, and which take plans? Asked of a tiny random model of each.

    python benchmarks/architectures.py                # writes benchmarks/architectures.csv, in some minutes
    python benchmarks/architectures.py opt gpt_neo    # prints these alone

Each model is saved, loaded, captured and compared with its own eager attention as a study would do it. Where the
settings below do not make a model, or one that does not run by itself, nothing is said about its architecture.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sinkstudy.capture.recording import record
from sinkstudy.capture.verification import verify
from sinkstudy.errors import StudyError, first_sentence
from sinkstudy.evaluation.variants import takes_plans
from sinkstudy.models.loading import load_model
from sinkstudy.models.spec import ModelSpec
from sinkstudy.prompts import Prompt

TOKENIZER = AutoTokenizer.from_pretrained(Path(__file__).resolve().parent.parent / "models/reference")
PROMPTS = [Prompt("short", "short", "Hello world"), Prompt("long", "long", "The tide came in before noon. " * 4)]
MOST_PARAMETERS = 4e7
SHAPE = {
    **{"vocab_size": len(TOKENIZER), "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 512},
    **{"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0},
    **{"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 4, "moe_intermediate_size": 16},
}
# Some model types need these settings too: from the shape alone they cannot be made, or have no layer that attends.
LATENT = {
    **{"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8},
    **{"v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
}
LINEAR = {
    **{"head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
PER_LAYER = {"vocab_size_per_layer_input": len(TOKENIZER), "hidden_size_per_layer_input": 8, "head_dim": 8}
MAMBA = {"mamba_n_heads": 8, "mamba_d_state": 8}
SPECIAL = {
    **dict.fromkeys(["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3"], LATENT),
    **dict.fromkeys(["qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"], LINEAR),
    **{name: {"head_dim": 8} for name in ("helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    **{name: {"rotary_dim": 4} for name in ("codegen", "gptj")},
    "bamba": {**MAMBA, "attn_layer_indices": [1, 2]},
    "gemma3n_text": {
        **{**PER_LAYER, "num_hidden_layers": 5, "num_kv_shared_layers": 0, "laurel_rank": 4},
        "layer_types": ["sliding_attention"] * 4 + ["full_attention"],
    },
    "gemma4_text": {**PER_LAYER, "num_hidden_layers": 6, "global_head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "jetmoe": {"num_attention_heads": 8, "kv_channels": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", help="model types; without any, all that Transformers knows")
    named = parser.parse_args().architectures
    warnings.simplefilter("ignore")
    rows = []
    for model_type in named or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"architecture": model_type, **outcome(model_type, Path(folder))})
    table = pd.DataFrame(rows)
    if not named:
        table.to_csv(Path(__file__).with_suffix(".csv"), index=False, lineterminator="\n", float_format="%.1e")
    print(table.to_string(index=False))


def outcome(model_type: str, folder: Path) -> dict[str, object]:
    """Whether it is captured and takes plans, how far its scores are from eager attention's, and why not."""
    try:
        made(model_type).save_pretrained(folder)
    except Exception as error:  # Every model has its own way of saying that these settings do not suit it.
        return {"captured": "not made", "reason": first_sentence(error)}
    TOKENIZER.save_pretrained(folder)
    try:
        loaded = load_model(ModelSpec(str(folder)))
        record(folder / "capture.h5", model_type, loaded, PROMPTS, maps_max_tokens=64, positions_max_tokens=64)
        differences = verify(model_type, loaded, [folder / "capture.h5"], len(PROMPTS))["max_score_difference"]
        plans = "yes" if takes_plans(loaded.model) else "no"
    except Exception as error:
        said = "refused" if isinstance(error, StudyError) else "fails"
        return {"captured": said, "reason": first_sentence(error).replace(f"{folder}", "FOLDER")}
    return {"captured": "yes", "plans": plans, "max_score_difference": differences.max()}


@torch.no_grad()
def made(model_type: str) -> PreTrainedModel:
    """A model with attention far from uniform, which has run once. Raises whatever its code raises."""
    config = AutoConfig.for_model(model_type, **SHAPE | SPECIAL.get(model_type, {}))
    with torch.device("meta"):
        parameters = sum(one.numel() for one in AutoModelForCausalLM.from_config(config).parameters())
    if parameters > MOST_PARAMETERS:
        raise ValueError(f"{parameters / 1e6:.0f} million parameters, in parts that have a shape of their own")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0, 0.2)
    model(torch.arange(3, 20)[None])
    return model


if __name__ == "__main__":
    main()
