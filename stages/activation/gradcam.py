"""GradCAM on a cross-attention layer: which patches of the image support a word of its caption.

Frame: maps have the patch grid of the model's input, row 0 at the top.
Shape legend: B images, M captions per image, L tokens, P = h·w patches, A heads.
"""

import torch
from jaxtyping import Float, Float32, Int

from stages.models.vision_language.base import VisionLanguageModel


def token_activation(
    model: VisionLanguageModel,
    images: Float[torch.Tensor, "B 3 H W"],
    tokens: Int[torch.Tensor, "B M L"],
    fusion_layer: int,
) -> tuple[Float32[torch.Tensor, "B M L h w"], Float32[torch.Tensor, "B M"]]:
    """Return the activation of every caption token and the matching scores.

    φ = X · max(∂S/∂X, 0), averaged over the heads, where X is the layer's attention and S the
    matching logit. A caption's S depends on its own attention only, so one backward pass of the sum
    of all S gives all gradients. The pass runs from the matching head to X. Each image is encoded
    once for all its captions. Columns of X that do not belong to patches are dropped.

    Args:
        model: in evaluation mode.
        images: normalised pixels; their sides are multiples of the model's `patch_side`.
        tokens: ids, padded with 0; a row of padding alone stands for a missing caption.
        fusion_layer: 0-based index among the fusion layers. The last layer cannot be used: only its
            [CLS] row reaches the matching head, so the words get no gradient.

    Returns:
        φ ≥ 0, and the matching logits.

    Source: Mask-free OVIS eq. 1-3. The mean over heads follows the official code; eq. 3 does not
    say how heads are combined.
    """
    with torch.no_grad():
        context = model.fusion_context(model.encode_image(images))
        flat = tokens.flatten(0, 1)
        text = model.fusion_text(flat)
    with torch.enable_grad():
        states, attentions = model.fuse(text.requires_grad_(), flat, context)
        score = model.matching_score(states[-1]).float()
        attention = attentions[fusion_layer]
        (gradient,) = torch.autograd.grad(score.sum(), attention)
    phi = (attention.detach().float() * gradient.float().clamp(min=0)).mean(1)
    phi = phi[..., model.leading_context :]
    rows = images.shape[2] // model.patch_side
    return phi.view(*tokens.shape, rows, -1), score.detach().view(tokens.shape[:2])


def normalise_maps(maps: Float[torch.Tensor, "*T h w"]) -> Float[torch.Tensor, "*T h w"]:
    """Rescale each map to [0, 1]; a constant map becomes 0."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp(min=1e-12), 0.0)
