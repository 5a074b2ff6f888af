"""Trains the small ALBEF on image-caption pairs: first align words and patches, then fuse.

Phase `align` trains the trunk and the word embeddings by word alignment alone. Its first half uses
all content words. Half-way, the words whose scores tell images apart are kept as visible words; the
others are noise and leave the loss. Phase `fuse` trains all parts with all losses.

Shape legend: N captions, B pairs per batch, L tokens, C words, H W pixels.
"""

import torch
from jaxtyping import Float, Float32, Int64
from torch.nn import functional

from stages.common.runtime.curves import Curve
from stages.common.runtime.devices import autocast, send
from stages.common.runtime.progress import track
from stages.models.solver import cosine, make_optimizer, update
from stages.models.vision_language.small_albef import SmallAlbef
from stages.models.vision_language.tokenizer import CaptionTokenizer
from stages.vlm import losses
from stages.vlm.fusion import draw_texts, fused_losses
from stages.vlm.pairs import PairSampler
from stages.vlm.params import VlmParams
from stages.vlm.words import VisibilityMeter, WordSwapper, substitution_weights

BETAS = (0.9, 0.98)  # of AdamW
LAST_RATE = 0.05  # fraction of the learning rate at the end of each phase
LARGEST_GRADIENT = 1.0  # norm at which gradients are clipped


def train_vlm(
    model: SmallAlbef,
    tokenizer: CaptionTokenizer,
    sampler: PairSampler,
    all_tokens: Int64[torch.Tensor, "N L"],
    params: VlmParams,
    generator: torch.Generator,
    curve: Curve,
) -> dict[str, float]:
    """Train in place; return the numbers of words as {"content_words", "visible_words"}.

    Args:
        model: has fresh weights; is left in evaluation mode.
        tokenizer: the model's.
        sampler: draws the batches.
        all_tokens: every caption, for the statistics of words.
        params: section `vlm` of params.yaml.
        generator: on the CPU, for negatives, swapped and masked words, dropped patches and windows.
        curve: records the losses of every step.

    Raises:
        ValueError: fewer than two words are visible half-way through `align`.
    """
    content = words = tokenizer.content_words().to(model.device)
    optimizer = make_optimizer(model, params.weight_decay, betas=BETAS)
    align, fuse = (
        cosine(phase.learning_rate, phase.steps, params.warmup_steps, LAST_RATE)
        for phase in (params.align, params.fuse)
    )
    model.train()
    meter = VisibilityMeter(len(content))
    for step in track(range(params.align.steps), "vlm align"):
        if step == params.align.steps // 2:
            words = _visible_words(content, meter, params)
        images, tokens = sampler.draw()
        images, tokens = send(images, model.device), send(tokens, model.device)
        with autocast(model.device, params.bfloat16):
            patches = model.encode_patches(images)
            scores, present = _word_scores(model, patches, tokens, words, params)
            loss = losses.word_alignment(scores, present)
        if params.align.steps // 4 <= step < params.align.steps // 2:
            meter.add(scores, present)
        update(model, optimizer, loss, align(step), LARGEST_GRADIENT)
        curve.add(step + 1, loss_word_alignment=loss.detach())
    swapper = WordSwapper(
        words.cpu(), substitution_weights(all_tokens, words.cpu(), len(tokenizer)), len(tokenizer)
    )
    for step in track(range(params.fuse.steps), "vlm fuse"):
        batch = sampler.draw()
        with autocast(model.device, params.bfloat16):
            terms = _fuse_losses(model, batch, words, swapper, params, generator)
        total = sum(getattr(params.weights, name) * term for name, term in terms.items())
        update(model, optimizer, total, fuse(step), LARGEST_GRADIENT)
        curve.add(
            params.align.steps + step + 1,
            **{f"loss_{name}": term.detach() for name, term in terms.items()},
        )
    model.eval()
    return {"content_words": len(content), "visible_words": len(words)}


def _visible_words(
    content: torch.Tensor, meter: VisibilityMeter, params: VlmParams
) -> torch.Tensor:
    """Return the ids of the visible words, a subset of the content words."""
    visible = content[meter.separation().to(content.device) > params.visible_threshold]
    if len(visible) < 2:
        raise ValueError(
            f"half-way through vlm.align only {len(visible)} of {len(content)} words can be told"
            f" apart in the images (d' > vlm.visible_threshold = {params.visible_threshold});"
            " train longer (vlm.align.steps) or lower the threshold"
        )
    return visible


def _fuse_losses(
    model: SmallAlbef,
    batch: tuple[Float32[torch.Tensor, "B 3 H W"], Int64[torch.Tensor, "B L"]],
    words: Int64[torch.Tensor, " C"],
    swapper: WordSwapper,
    params: VlmParams,
    generator: torch.Generator,
) -> dict[str, Float[torch.Tensor, ""]]:
    """Return the five losses of images and their captions, named as in `vlm.weights`.

    Everything random is drawn on the CPU, so that all devices draw the same.
    """
    images, tokens = batch
    window = _random_window(model, images, generator)
    encoded = model.encode_image(send(images, model.device), window)
    seen = send(tokens, model.device)
    scores, present = _word_scores(model, encoded[:, 1:], seen, words, params)
    similarity = _similarity(model, encoded, model.encode_text(seen))
    texts = draw_texts(tokens, similarity, swapper, params, generator).to(model.device)
    context = _drop_context(model.fusion_context(encoded), params.context_drop, generator)
    return {
        "word_alignment": losses.word_alignment(scores, present),
        "contrastive": losses.contrastive(similarity),
        **fused_losses(model, texts, context),
    }


def _word_scores(
    model: SmallAlbef,
    patches: torch.Tensor,
    tokens: torch.Tensor,
    words: torch.Tensor,
    params: VlmParams,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the words' pooled scores (B, C), and whether the caption has the word, bool (B, C)."""
    scores = losses.pool_patches(model.word_patch_logits(patches, words), params.pool_sharpness)
    named = torch.zeros(
        len(tokens), model.config.vocabulary_size, dtype=torch.bool, device=tokens.device
    )
    return scores, named.scatter_(1, tokens, True)[:, words]


def _similarity(model: SmallAlbef, encoded: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Return image-text similarities (B, B) of the class tokens, divided by the temperature."""
    images = functional.normalize(model.image_projection(encoded[:, 0]).float(), dim=-1)
    texts = functional.normalize(model.text_projection(text[:, 0]).float(), dim=-1)
    return images @ texts.T * model.log_inverse_temperature.exp().clamp(max=50)


def _drop_context(context: torch.Tensor, rate: float, generator: torch.Generator) -> torch.Tensor:
    """Drop a fraction `rate` of the patches at random, so that no single patch suffices."""
    kept = max(1, int(context.shape[1] * (1 - rate)))
    draw = torch.rand(context.shape[:2], generator=generator, device=generator.device)
    order = draw.argsort(1)[:, :kept, None]
    order = send(order, context.device)
    return torch.gather(context, 1, order.expand(-1, -1, context.shape[2]))


def _random_window(
    model: SmallAlbef, images: torch.Tensor, generator: torch.Generator
) -> tuple[int, int]:
    """Return a random (top, left) of the images in the position table, in patches."""
    free = model.config.max_patches_side - images.shape[-1] // 8 + 1
    top, left = torch.randint(0, max(free, 1), (2,), generator=generator).tolist()
    return top, left
