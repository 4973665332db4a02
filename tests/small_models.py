"""Small random pipelines and scorers in the official layouts; conftest.py keeps what the `save_` functions write."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPTextModel,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
)

from dpdmd.models.qwen_image.layout import PROMPT_START
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.shapes import scorer_models, world
from dpdmd.shapes.autoencoder import build_autoencoder
from dpdmd.shapes.teacher import build_pipeline
from dpdmd.shapes.text import CLIP_WIDTH, MAX_LENGTH, build_clip_encoder, build_clip_tokenizer


def _strengthen(transformer: nn.Module) -> None:
    """Double the weights through which time and text modulate the blocks.

    With torch's initial weights, prompts and times change the output by only 5%: a test that passes a wrong time or a
    wrong prompt would hardly see a difference.
    """
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if name.startswith(("time_text_embed", "norm_out")) or ".norm1." in name or ".norm1_context." in name:
                parameter.mul_(2)


def build_sd35_pipeline(**transformer: Any) -> StableDiffusion3Pipeline:
    """Return a small SD3.5 pipeline: 64 x 64 images, two blocks of width 32; with other values of the `transformer`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_autoencoder()
        vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
        pipe = build_pipeline(vae, world)
        smaller = {
            "num_layers": 2,
            "dual_attention_layers": (0,),
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "caption_projection_dim": 32,
            **transformer,
        }
        pipe.register_modules(transformer=SD3Transformer2DModel.from_config({**pipe.transformer.config, **smaller}))
    _strengthen(pipe.transformer)
    return pipe


def _build_unet() -> UNet2DConditionModel:
    """Return a small UNet of SDXL: two levels instead of three, attention in the lower one, both conditions."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=(1, 2),
        transformer_layers_per_block=[1, 2],
        use_linear_projection=True,
        cross_attention_dim=2 * CLIP_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + CLIP_WIDTH,
    )


def build_sdxl_pipeline() -> StableDiffusionXLPipeline:
    """Return a small SDXL pipeline: 64 x 64 images."""
    tokenizer, tokenizer_2 = (build_clip_tokenizer(pad, world) for pad in ("<|endoftext|>", "!"))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 32, 32, 32),
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=64,
            scaling_factor=0.13025,
            force_upcast=True,
        )
        unet, text_encoder_2 = _build_unet(), build_clip_encoder(tokenizer_2)
        text_encoder = CLIPTextModel(build_clip_encoder(tokenizer).config)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():  # see _strengthen
            if name.startswith(("time_embedding", "add_embedding")) or "time_emb_proj" in name or "attn2" in name:
                parameter.mul_(2)
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


# A turn of the user and the beginning of the answer, as Qwen3's own template writes them with thinking switched on.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_qwen_tokenizer(known: str = "") -> Qwen2Tokenizer:
    """Return a Qwen tokenizer: a token for each byte and for each word of `known`, and the special tokens of a chat."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = Qwen2Tokenizer(vocab={}, merges=[])._tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=5000, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator([known], trainer)
    learnt = json.loads(raw.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=learnt["vocab"], merges=[tuple(pair) for pair in learnt["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _build_kl_vae(channels: int, shift: float) -> AutoencoderKL:
    """Return a small autoencoder in FLUX.1's layout: four levels, no convolutions beside the latent."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.3611,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_zimage_pipeline() -> ZImagePipeline:
    """Return a small Z-Image pipeline: one refiner of each kind and two joint blocks of width 32."""
    tokenizer = build_qwen_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        text_encoder = Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=24,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=12,
                max_position_embeddings=1024,
            )
        )
        transformer = ZImageTransformer2DModel(
            in_channels=16,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=24,
            axes_dims=[4, 6, 6],
            axes_lens=[768, 32, 32],
        )
        vae = _build_kl_vae(16, shift=0.1159)
        for token in (transformer.x_pad_token, transformer.cap_pad_token):  # zeros would hide a wrong padding
            nn.init.normal_(token)
        with torch.no_grad():
            for name, parameter in transformer.named_parameters():  # see _strengthen
                if name.startswith(("t_embedder", "cap_embedder")) or "adaLN_modulation" in name:
                    parameter.mul_(2)
    return ZImagePipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
    )


def build_qwen_image_pipeline() -> QwenImagePipeline:
    """Return a small Qwen-Image pipeline: two blocks of width 64, a text encoder with its vision tower."""
    tokenizer = build_qwen_tokenizer(PROMPT_START)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 24}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        text_encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
        transformer = QwenImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=24,
            axes_dims_rope=(4, 6, 6),
        )
        vae = AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1)
        with torch.no_grad():
            for name, parameter in transformer.named_parameters():  # see _strengthen
                if name.startswith(("time_text_embed", "txt_in", "norm_out")) or "_mod." in name or "to_out.0" in name:
                    parameter.mul_(2)
                if "add_v_proj" in name:
                    parameter.mul_(3)
    return QwenImagePipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
    )


def build_gemma_tokenizer() -> GemmaTokenizer:
    """Return a Gemma tokenizer without merges: a token for each ASCII character, and for each byte of others.

    The long words of Lumina's system prompt are tokens too. Prompts would hardly differ behind 170 common letters.
    """
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    tokens += [chr(code) for code in range(33, 127)]
    tokenizer = GemmaTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[])
    tokenizer.add_tokens(["assistant", "designed", "generate", "superior", "images", "degree", "image-text"])
    tokenizer.add_tokens(["alignment", "based", "textual", "prompts", "<Prompt Start>"])
    tokenizer.add_bos_token = True  # as the official files say; without it an empty prompt has no token
    return tokenizer


def build_lumina2_pipeline() -> Lumina2Pipeline:
    """Return a small Lumina-Image 2.0 pipeline: one refiner of each kind and two joint blocks of width 32."""
    tokenizer = build_gemma_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        text_encoder = Gemma2Model(
            Gemma2Config(
                vocab_size=len(tokenizer),
                hidden_size=24,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=12,
                query_pre_attn_scalar=12,
            )
        )
        transformer = Lumina2Transformer2DModel(
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            ffn_dim_multiplier=0.5,
            cap_feat_dim=24,
            axes_dim_rope=[4, 6, 6],
            axes_lens=[300, 32, 32],
        )
        vae = _build_kl_vae(4, shift=0.1159)
        with torch.no_grad():
            for name, parameter in transformer.named_parameters():  # see _strengthen
                if name.startswith("time_caption_embed"):
                    parameter.mul_(3)
                elif ".norm1.linear" in name:
                    parameter.mul_(2)
    return Lumina2Pipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
    )


def build_flux2_klein_pipeline() -> Flux2KleinPipeline:
    """Return a small FLUX.2-klein pipeline: two double and two single blocks of width 32."""
    tokenizer = build_qwen_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template += "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        text_encoder = Qwen3Model(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=29,  # one more than the pipeline reads
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                max_position_embeddings=1024,
            )
        )
        transformer = Flux2Transformer2DModel(
            in_channels=32,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=3 * 16,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        )
        vae = AutoencoderKLFlux2(
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            latent_channels=8,
            norm_num_groups=4,
            sample_size=64,
        )
        vae.bn.running_mean.normal_()  # zeros and ones would hide a forgotten norm
        vae.bn.running_var.uniform_(0.5, 4)
        with torch.no_grad():
            for name, parameter in transformer.named_parameters():  # see _strengthen
                if name.startswith(("time_guidance_embed", "context_embedder", "norm_out")):
                    parameter.mul_(2)
                elif "_modulation" in name:
                    parameter.mul_(3)
    return Flux2KleinPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


def save_tiny_sd35(folder: Path) -> None:
    """Write the SD3.5 pipeline with its sampling defaults."""
    build_sd35_pipeline().save_pretrained(folder)
    SamplingDefaults(steps=30, guidance_scale=3.5, max_sequence_length=MAX_LENGTH).write(folder)


def save_tiny_sd35_large(folder: Path) -> None:
    """Write a small SD3.5-Large: one attention in each block, three heads."""
    shape = {"num_layers": 3, "num_attention_heads": 3, "caption_projection_dim": 48, "dual_attention_layers": ()}
    build_sd35_pipeline(**shape).save_pretrained(folder)


def save_tiny_sd3_medium(folder: Path) -> None:
    """Write a small SD3-Medium, whose attention does not norm q and k, with the file of its first version."""
    build_sd35_pipeline(qk_norm=None, dual_attention_layers=()).save_pretrained(folder)
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in ("qk_norm", "dual_attention_layers")}))


def save_tiny_sdxl(folder: Path, **scheduler: Any) -> None:
    """Write the SDXL pipeline, with other values of the `scheduler`."""
    pipe = build_sdxl_pipeline()
    pipe.register_modules(scheduler=EulerDiscreteScheduler.from_config(pipe.scheduler.config, **scheduler))
    pipe.save_pretrained(folder)


def save_tiny_sdxl_trailing(folder: Path) -> None:
    """Write the SDXL pipeline with the other spacing of the times."""
    save_tiny_sdxl(folder, timestep_spacing="trailing")


def save_tiny_sdxl_v(folder: Path) -> None:
    """Write an SDXL pipeline that predicts v, with zero terminal SNR, as NoobAI-XL does."""
    save_tiny_sdxl(folder, prediction_type="v_prediction", rescale_betas_zero_snr=True)


def save_tiny_sdxl_v_trailing(folder: Path) -> None:
    """Write an SDXL pipeline that predicts v and samples from the last time on, where there is noise alone."""
    spaced = {"timestep_spacing": "trailing", "steps_offset": 0}
    save_tiny_sdxl(folder, prediction_type="v_prediction", rescale_betas_zero_snr=True, **spaced)


def save_tiny_zimage(folder: Path) -> None:
    """Write the Z-Image pipeline with a short text length."""
    build_zimage_pipeline().save_pretrained(folder)
    SamplingDefaults(steps=50, guidance_scale=5.0, max_sequence_length=96).write(folder)


def save_tiny_qwen_image(folder: Path) -> None:
    """Write the Qwen-Image pipeline with a short text length."""
    build_qwen_image_pipeline().save_pretrained(folder)
    SamplingDefaults(steps=50, guidance_scale=4.0, max_sequence_length=96).write(folder)


def save_tiny_lumina2(folder: Path) -> None:
    """Write the Lumina-Image 2.0 pipeline with a short text length."""
    build_lumina2_pipeline().save_pretrained(folder)
    SamplingDefaults(steps=30, guidance_scale=4.0, max_sequence_length=160).write(folder)


def save_tiny_flux2_klein(folder: Path) -> None:
    """Write the FLUX.2-klein pipeline with a short text length."""
    build_flux2_klein_pipeline().save_pretrained(folder)
    SamplingDefaults(steps=50, guidance_scale=4.0, max_sequence_length=96).write(folder)


def save_scorers(root: Path) -> None:
    """Write the in-loop scorers, one folder each."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        scorer_models.save_model(root / "clip", *scorer_models.build_clip())
        scorer_models.save_model(root / "pickscore", *scorer_models.build_clip())
        scorer_models.save_model(root / "dinov2", *scorer_models.build_dinov2())
        network, med_config, tokenizer = scorer_models.build_imagereward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(
                    0.05 * torch.randn_like(parameter)
                )  # as initialised, its score hardly depends on its input
        scorer_models.save_imagereward(root / "ImageReward", network, med_config, tokenizer)


def save_open_clip(folder: Path, **vision: Any) -> nn.Module:
    """Save a CLIP in OpenCLIP's layout, and return it.

    Args:
        vision: entries of its image encoder in place of a ViT's.
    """
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16, **vision},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    preprocess = {
        "mean": [0.48, 0.46, 0.41],
        "std": [0.27, 0.26, 0.28],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    torch.manual_seed(0)
    model = open_clip.CLIP(
        **{
            **config,
            "vision_cfg": open_clip.CLIPVisionCfg(**config["vision_cfg"]),
            "text_cfg": open_clip.CLIPTextCfg(**config["text_cfg"]),
        }
    ).eval()
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return model
