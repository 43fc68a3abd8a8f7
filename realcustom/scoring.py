"""The adaptive scoring module: which image tokens act, and how strongly (paper, section 3.2, eq. 5-10).

Letters: B rows, T text tokens, c_t their width, S image tokens, c_i their width, c latent channels, n selected tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from realcustom.settings import Activation, Fusion, TextMask, TokenSettings

ACTIVATIONS = {Activation.SILU: nn.SiLU, Activation.GELU: nn.GELU, Activation.RELU: nn.ReLU}


class AdaptiveScoring(nn.Module):
    """Scores every image token from the text and from the noised latent; shared by all layers, run once per forward.

    Args:
        text_dim: c_t.
        latent_channels: c, of the latent, or of the first convolution's features.
        image_dim: c_i.
        settings: fusion, the MLPs' hidden width and activation.
    """

    def __init__(self, text_dim: int, latent_channels: int, image_dim: int, settings: TokenSettings) -> None:
        super().__init__()
        self.fusion, self.text_mask_mode = settings.fusion, settings.text_mask_mode
        self.text_attention = nn.Linear(text_dim, 1, bias=False)  # W_at, eq. 5
        self.latent_attention = nn.Linear(latent_channels, 1, bias=False)  # W_av, eq. 5
        self.text_scorer = _scorer(image_dim + text_dim, settings)
        self.latent_scorer = _scorer(image_dim + latent_channels, settings)

    def forward(
        self,
        encoder_hidden_states: Tensor,  # (B, T, c_t)
        latents: Tensor,  # (B, c, h, w), what the UNet sees, times the influence mask at inference
        image_embeds: Tensor,  # (B, S, c_i)
        alphas_cumprod: Tensor,  # (B,) of the timestep, variance-preserving
        words: Tensor | None = None,  # (B, T) the target word's tokens; None while training
    ) -> Tensor:
        """S, (B, S): positive, fp32 also under autocast; the sum over the tokens is one."""
        with torch.autocast(latents.device.type, enabled=False):  # bf16 scores tie, and ties go to the lower index
            return self._scores(encoder_hidden_states, latents, image_embeds, alphas_cumprod, words)

    def _scores(
        self,
        encoder_hidden_states: Tensor,
        latents: Tensor,
        image_embeds: Tensor,
        alphas_cumprod: Tensor,
        words: Tensor | None,
    ) -> Tensor:
        text, image = encoder_hidden_states.float(), image_embeds.float()
        cells = latents.float().flatten(2).mT  # (B, h*w, c)
        text_score = self._score(self.text_scorer, image, self._text_context(text, words))  # (B, S)
        visual = torch.softmax(self.latent_attention(cells), 1)  # (B, h*w, 1)
        visual_score = self._score(self.latent_scorer, image, (visual * cells).sum(1))  # (B, S)
        return torch.softmax(self._fuse(text_score, visual_score, alphas_cumprod.float()), -1)

    def _text_context(self, text: Tensor, words: Tensor | None) -> Tensor:
        """C_text, (B, c_t): eq. 6; the word's mask is used as in the settings (figure 3b)."""
        if words is None or self.text_mask_mode is TextMask.NONE:
            logits = self.text_attention(text)  # (B, T, 1)
        elif self.text_mask_mode is TextMask.MULTIPLY:
            text = text * words[..., None].float()
            logits = self.text_attention(text)
        else:
            other = (words == 0) & (words > 0).any(1, keepdim=True)  # an absent subject's row has no word token
            logits = self.text_attention(text).masked_fill(other[..., None], -torch.inf)
        return (torch.softmax(logits, 1) * text).sum(1)

    @staticmethod
    def _score(scorer: Callable[[Tensor], Tensor], image: Tensor, context: Tensor) -> Tensor:
        """(B, S): the context is replicated beside every token (eq. 7)."""
        repeated = context[:, None].expand(-1, image.shape[1], -1)
        return scorer(torch.cat([image, repeated], -1)).squeeze(-1)

    def _fuse(self, text: Tensor, visual: Tensor, alphas_cumprod: Tensor) -> Tensor:
        """Eq. 8: early steps (large t) weigh the text score more, late ones the visual score."""
        if self.fusion is Fusion.TEXT:
            return text
        if self.fusion is Fusion.VISUAL:
            return visual
        if self.fusion is Fusion.MEAN:
            return (text + visual) / 2
        late = alphas_cumprod.sqrt()[:, None]  # (B, 1)
        return (1 - late) * text + late * visual


def _scorer(width: int, settings: TokenSettings) -> nn.Sequential:
    # non-linear, else the replicated context would cancel in the softmax; a last bias would cancel too, so there is
    # none
    hidden, act = settings.hidden, ACTIVATIONS[settings.act]
    return nn.Sequential(nn.Linear(width, hidden), act(), nn.Linear(hidden, 1, bias=False))


def select_tokens(scores: Tensor, influence_quantity: float) -> tuple[Tensor, Tensor]:
    """The max(1, int(influence_quantity * S)) tokens with the largest score (eq. 9); equal ones by lower index.

    Args:
        scores: (B, S).
    Returns:
        Indices (B, n) in ascending order, and the gate 1 + score of each, (B, n) fp32, which passes the gradient to the
        scorer.
    """
    count = max(1, int(influence_quantity * scores.shape[1]))
    order = torch.sort(scores.detach(), dim=1, descending=True, stable=True).indices
    index = order[:, :count].sort(dim=1).values
    return index, 1 + scores.gather(1, index)
