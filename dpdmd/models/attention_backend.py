"""`--attention_backend`: the attention of a diffusers network through one of diffusers' attention backends.

diffusers' own processors of SD3, of UNets and of Lumina-Image 2.0 call torch's scaled_dot_product_attention directly.
Our processor computes the same and calls diffusers' dispatcher. The processors of newer networks call the dispatcher
themselves, and get the name of the backend. Without the flag a network keeps its own processors.

diffusers takes seconds to import: only when a backend is given.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

TRIAL_TOKENS, TRIAL_HEADS, TRIAL_HEAD_SIZE = 128, 2, 64  # SD3.5's and SDXL's heads have 64 numbers
TRIAL_MASKED = 32  # tokens
TRIAL_TOLERANCE = 0.05  # relative, of an attention in bf16


class BackendAttention:
    """An attention processor of diffusers' `Attention` layers: joint (SD3), cross (UNet) or self attention."""

    def __init__(self, backend: str):
        from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
        from diffusers.models.embeddings import apply_rotary_emb

        self.backend, self.dispatch = AttentionBackendName(backend), dispatch_attention_fn
        self.rotate = partial(apply_rotary_emb, use_real=False)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend from `hidden_states` [B, T, D]; joint attention returns the outputs of image and text.

        Lumina-Image 2.0 adds a mask of the tokens [B, T], complex rotations [B, T, D / 2H], and fewer heads of k and v.
        """
        joint = encoder_hidden_states is not None and attn.added_kv_proj_dim is not None
        source = hidden_states if encoder_hidden_states is None or joint else encoder_hidden_states
        query = _heads(attn, attn.to_q(hidden_states), attn.norm_q)
        key = _heads(attn, attn.to_k(source), attn.norm_k)
        value = _heads(attn, attn.to_v(source))
        if joint:  # the image's tokens first
            query = torch.cat([query, _heads(attn, attn.add_q_proj(encoder_hidden_states), attn.norm_added_q)], dim=1)
            key = torch.cat([key, _heads(attn, attn.add_k_proj(encoder_hidden_states), attn.norm_added_k)], dim=1)
            value = torch.cat([value, _heads(attn, attn.add_v_proj(encoder_hidden_states))], dim=1)
        if image_rotary_emb is not None:
            query, key = (self.rotate(each, image_rotary_emb) for each in (query, key))
        # Under autocast the norms leave q and k in fp32; torch's attention would cast them, other kernels do not.
        query, key = query.to(value.dtype), key.to(value.dtype)
        if (shared := query.shape[2] // key.shape[2]) > 1:  # several heads of q have one of k and v
            key, value = (each.repeat_interleave(shared, dim=2) for each in (key, value))
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None]
        output = self.dispatch(query, key, value, attn_mask=mask, backend=self.backend).flatten(2).to(query.dtype)
        image = attn.to_out[0](output[:, : hidden_states.shape[1]])
        if not joint:
            return image
        text = output[:, hidden_states.shape[1] :]
        return image, text if attn.context_pre_only else attn.to_add_out(text)


def _heads(attn: Any, projected: Tensor, norm: nn.Module | None = None) -> Tensor:
    """Divide [B, T, D] into heads [B, T, H, D / H], each normed; k and v may have fewer heads, of the same size."""
    heads = projected.unflatten(-1, (-1, attn.inner_dim // attn.heads))
    return heads if norm is None else norm(heads)


def use_attention_backend(network: nn.Module, backend: str, compute_dtype: torch.dtype) -> None:
    """Let every attention layer of a diffusers network compute with a backend that `check_attention_backend` passed.

    Args:
        compute_dtype: type of the computations under autocast.

    Raises:
        ValueError: a layer does more than attention, which `BackendAttention` would leave out.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName
    from diffusers.models.attention_processor import Attention

    for name, layer in network.named_modules():
        processor = getattr(layer, "processor", None)
        if hasattr(processor, "_attention_backend"):
            processor._attention_backend = AttentionBackendName(backend)
            norms = (getattr(layer, name, None) for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"))
            for norm in filter(None, norms):
                norm.register_forward_hook(lambda _, __, output: output.to(compute_dtype))
        elif isinstance(layer, Attention):
            more = (layer.group_norm, layer.spatial_norm, layer.norm_cross, layer.residual_connection)
            if any(more) or layer.rescale_output_factor != 1:
                raise ValueError(f"--attention_backend {backend}: not possible with layer {name} of this network")
            layer.set_processor(BackendAttention(backend))


def check_attention_backend(backend: str, device: torch.device, dtype: torch.dtype, *, masked: bool = False) -> None:
    """Try a backend on random numbers, with gradient, and compare its result with torch's own attention.

    Args:
        masked: the network leaves tokens that only fill the batch out of its attention.

    Raises:
        ValueError: diffusers does not know it, it would fetch code, or it does not work here: a package, the device or
            the type is wrong, it has no gradient, or it takes no mask.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    names = [each.value for each in AttentionBackendName if not each.value.endswith("_hub")]
    if backend.endswith("_hub"):
        raise ValueError(f"--attention_backend {backend}: would fetch code from the Hub and run it; give another")
    if backend not in names:
        raise ValueError(f"--attention_backend {backend}: choose one of {', '.join(names)}")
    try:
        with attention_backend(backend):  # checks packages
            found, gradients = _attend(backend, device, dtype, masked)
    except Exception as error:  # kernels raise anything
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise ValueError(f"--attention_backend {backend}: does not work here ({reason}); give another") from None
    expected = _attend("native", device, dtype, masked)
    pairs = zip([found, *gradients], [expected[0], *expected[1]], strict=True)
    if any(not torch.allclose(ours, theirs, rtol=0, atol=TRIAL_TOLERANCE) for ours, theirs in pairs):
        raise ValueError(f"--attention_backend {backend}: its result is not torch's own attention's; give another")


def _attend(backend: str, device: torch.device, dtype: torch.dtype, masked: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the output of attention to random q, k and v, and their gradients, in fp32 on the CPU."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    random = torch.Generator().manual_seed(0)
    shape = (1, TRIAL_TOKENS, TRIAL_HEADS, TRIAL_HEAD_SIZE)
    inputs = [torch.randn(shape, generator=random).to(device, dtype).requires_grad_() for _ in range(3)]
    mask = (torch.arange(TRIAL_TOKENS, device=device) < TRIAL_TOKENS - TRIAL_MASKED)[None, None, None]
    with torch.enable_grad():
        output = dispatch_attention_fn(
            *inputs, attn_mask=mask if masked else None, backend=AttentionBackendName(backend)
        )
    if not output.requires_grad:
        raise ValueError("it has no gradient, so it cannot train")
    gradients = torch.autograd.grad(output.float().square().mean() * TRIAL_TOKENS, inputs)
    return output.detach().float().cpu(), tuple(gradient.float().cpu() for gradient in gradients)
