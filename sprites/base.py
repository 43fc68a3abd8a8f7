"""The world's diffusion model: a diffusers Stable Diffusion folder for 32 px pictures, trained from scratch on a CPU.

Latents are the picture's 2 x 2 pixel blocks as 12 channels on a 16 x 16 grid: an AutoencoderTiny whose encoder is that
rearrangement exactly and whose decoder is trained to invert it. The UNet predicts v on a cosine schedule. A
localisation term makes the noun's token attend to the object (the idea is FastComposer's, arXiv 2305.10431, sec. 4.2).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from realcustom.sprites import text
from realcustom.sprites.resume import Checkpoint, report_progress
from realcustom.sprites.world import SIZE, Drawing, Scene, Split, draw, scene

LATENT_CHANNELS = 12
SCALING_FACTOR = 1.8  # one over the standard deviation of pixels in [-1, 1]
GRID = SIZE // 2


@dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """How the diffusion model is trained."""

    steps: int = 30_000  # of `batch_size` pictures each
    cycle: int = 20_000  # steps after which the learning rate starts again (warm restarts, arXiv 1608.03983)
    batch_size: int = 16  # 16 is better than 64 for an equal number of pictures: the number of steps matters
    lr: float = 1.5e-3
    ema: float = 0.999
    drop_caption: float = 0.1  # probability, for classifier-free guidance
    describe: float = 0.6  # probability that a caption names the attributes, see `captions_of`
    timestep_shift: float = 2.0  # t = s u / (1 + (s - 1) u): more = noisier, where colours and shapes are decided
    inside_weight: float = 3.0  # of the loss inside the object
    localisation: float = 0.05  # weight of the attention term
    seed: int = 0


def make_vae() -> AutoencoderTiny:
    """An AutoencoderTiny whose encoder rearranges pixels [-1, 1] to latents [-1, 1] without loss; decoder untrained."""
    vae = AutoencoderTiny(
        encoder_block_out_channels=(LATENT_CHANNELS, LATENT_CHANNELS),
        decoder_block_out_channels=(48, 48),
        num_encoder_blocks=(0, 0),
        num_decoder_blocks=(2, 2),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=SCALING_FACTOR,
    )
    first, strided, last = (layer for layer in vae.encoder.layers if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        for weight in (first.weight, strided.weight, last.weight):
            weight.zero_()
        for colour in range(3):
            first.weight[colour, colour, 1, 1] = 1
            for phase in range(4):  # a 3 x 3 kernel at stride 2 and padding 1 has the block in its lower right
                strided.weight[4 * colour + phase, colour, 1 + phase // 2, 1 + phase % 2] = 1
        for channel in range(LATENT_CHANNELS):
            last.weight[channel, channel, 1, 1] = 2  # AutoencoderTiny hands its encoder pixels in [0, 1]
        for layer, bias in ((first, 0.0), (last, -1.0)):
            assert layer.bias is not None
            layer.bias.fill_(bias)
    vae.encoder.requires_grad_(False)
    return vae


def make_unet() -> UNet2DConditionModel:
    """A UNet of SD 1.x's shape with 1.3 million parameters: cross-attention at 8 x 8 and, going up, 16 x 16."""
    return UNet2DConditionModel(
        sample_size=GRID,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(48, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,  # diffusers uses this as the number of heads
        cross_attention_dim=text.WIDTH,
        norm_num_groups=8,
    )


def make_scheduler() -> DDIMScheduler:
    """v-prediction on a cosine schedule."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        steps_offset=1,  # diffusers requires it of Stable Diffusion folders; "trailing" does not use it
    )


def to_latents(pixel_values: torch.Tensor) -> torch.Tensor:
    """Pixels [-1, 1] (B, 3, 32, 32) -> scaled latents (B, 12, 16, 16): what the autoencoder's encoder computes."""
    return nn.functional.pixel_unshuffle(pixel_values, 2) * SCALING_FACTOR


def to_pixel_values(drawings: list[Drawing]) -> torch.Tensor:
    """Pictures as (B, 3, 32, 32) in [-1, 1]."""
    stacked = np.stack([drawing.image for drawing in drawings]).astype(np.float32)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2) / 127.5 - 1


class RecordingProcessor:
    """Plain attention that keeps its probabilities (B x heads, N, T) for the localisation term."""

    def __init__(self) -> None:
        self.probabilities: torch.Tensor | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))  # (B x heads, N, d)
        key, value = attn.head_to_batch_dim(attn.to_k(context)), attn.head_to_batch_dim(attn.to_v(context))
        probabilities = torch.softmax(query @ key.transpose(1, 2) * attn.scale, -1)
        if encoder_hidden_states is not None:
            self.probabilities = probabilities
        output: torch.Tensor = attn.to_out[0](attn.batch_to_head_dim(probabilities @ value))
        return output


class Objective(nn.Module):
    """v-prediction loss, heavier inside the object, plus the localisation of the noun's attention."""

    alphas_cumprod: torch.Tensor

    def __init__(self, unet: UNet2DConditionModel, settings: BaseSettings) -> None:
        super().__init__()
        self.unet, self.settings = unet, settings
        self.register_buffer("alphas_cumprod", make_scheduler().alphas_cumprod)
        self.recorders = {name: RecordingProcessor() for name in unet.attn_processors}
        unet.set_attn_processor(dict(self.recorders))

    def forward(
        self,
        latents: torch.Tensor,  # (B, 12, 16, 16)
        noise: torch.Tensor,  # (B, 12, 16, 16)
        timesteps: torch.Tensor,  # (B,)
        text_features: torch.Tensor,  # (B, T, 64)
        inside: torch.Tensor,  # (B, 1, 16, 16): share of each cell that the object covers
        noun_token: torch.Tensor,  # (B, T): one at the noun's token, all zero where the caption was dropped
    ) -> tuple[torch.Tensor, torch.Tensor]:
        signal = self.alphas_cumprod[timesteps].sqrt()[:, None, None, None]
        sigma = (1 - signal**2).sqrt()
        predicted = self.unet(signal * latents + sigma * noise, timesteps, text_features, return_dict=False)[0]
        weight = 1 + (self.settings.inside_weight - 1) * inside
        loss = (weight * (predicted - (signal * noise - sigma * latents)) ** 2).mean()
        return loss, self._localisation(inside, noun_token)

    def _localisation(self, inside: torch.Tensor, noun_token: torch.Tensor) -> torch.Tensor:
        """Mean attention of the noun's token outside the object minus inside it; finest layers only."""
        batch, cells = inside.shape[0], inside.shape[-1] ** 2
        total = inside.new_zeros(())
        area = inside.flatten(1)  # (B, N)
        for recorder in self.recorders.values():
            probabilities, recorder.probabilities = recorder.probabilities, None
            if probabilities is None or probabilities.shape[1] != cells:
                continue
            maps = probabilities.unflatten(0, (batch, -1)).mean(1)  # (B, N, T)
            noun = torch.einsum("bnt,bt->bn", maps, noun_token)
            within = (noun * area).sum(1) / area.sum(1)
            without = (noun * (1 - area)).sum(1) / (1 - area).sum(1)
            total = total + (without - within).mean()
        return total


@functools.lru_cache(maxsize=65536)
def _tokens(tokenizer: CLIPTokenizer, caption: str) -> torch.Tensor:
    return text.tokenize(tokenizer, [caption])[0]


def captions_of(scenes: list[Scene], settings: BaseSettings, generator: torch.Generator) -> list[str]:
    """A caption for each scene: dropped, with the subject's attributes, or without.

    If no caption named a colour, the base model's cross-attentions could not change a subject's colours, and an
    adapter, which acts only through them, could not either.
    """
    dropped = torch.rand(len(scenes), generator=generator) < settings.drop_caption
    described = torch.rand(len(scenes), generator=generator) < settings.describe
    return [
        "" if drop else item.attribute_caption() if describe else item.caption
        for item, drop, describe in zip(scenes, dropped.tolist(), described.tolist(), strict=True)
    ]


def batch_of(
    scenes: list[Scene], captions: list[str], tokenizer: CLIPTokenizer, encoder: CLIPTextModel
) -> tuple[torch.Tensor, ...]:
    """Latents, text features, object share per cell and the noun's token of scenes; no noun in an empty caption."""
    drawings = [draw(item) for item in scenes]
    ids = torch.stack([_tokens(tokenizer, caption) for caption in captions])
    with torch.no_grad():
        features = encoder(ids).last_hidden_state
    nouns = [tokenizer.convert_tokens_to_ids(item.subjects[0].identity.noun + "</w>") for item in scenes]
    masks = torch.from_numpy(np.stack([drawing.masks[0] for drawing in drawings])).float()[:, None]
    inside = nn.functional.avg_pool2d(masks, 2)
    return to_latents(to_pixel_values(drawings)), features, inside, (ids == torch.tensor(nouns)[:, None]).float()


def train_unet(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModel, work: Path, settings: BaseSettings, compiled: bool = True
) -> UNet2DConditionModel:
    """Train the UNet, resuming from `work`; returns it with its averaged weights."""
    torch.manual_seed(settings.seed)
    unet = make_unet()
    objective = Objective(unet, settings)
    average = {name: value.clone() for name, value in unet.state_dict().items()}
    optimizer = torch.optim.AdamW(unet.parameters(), lr=settings.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, functools.partial(_rate, steps=settings.steps, cycle=settings.cycle)
    )
    checkpoint = Checkpoint(work / "unet.pt", unet=unet, optimizer=optimizer, schedule=schedule, average=average)
    step_of = torch.compile(objective) if compiled else objective
    for step in report_progress("unet", range(checkpoint.restore(), settings.steps), settings.batch_size):
        generator = torch.Generator().manual_seed(settings.seed * 2**32 + step)
        first = step * settings.batch_size
        scenes = [scene(Split.ZOO, first + i) for i in range(settings.batch_size)]
        captions = captions_of(scenes, settings, generator)
        latents, features, inside, noun_token = batch_of(scenes, captions, tokenizer, encoder)
        time, shift = torch.rand(settings.batch_size, generator=generator), settings.timestep_shift
        timesteps = (1000 * shift * time / (1 + (shift - 1) * time)).long()
        noise = torch.randn(latents.shape, generator=generator)
        loss, localisation = step_of(latents, noise, timesteps, features, inside, noun_token)
        optimizer.zero_grad()
        (loss + settings.localisation * localisation).backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        _update(average, unet, settings.ema, step)
        checkpoint.step(step, every=250, loss=loss.item(), localisation=localisation.item())
    checkpoint.save(settings.steps)
    unet.load_state_dict(average)
    unet.set_attn_processor(AttnProcessor2_0())
    return unet.eval()


def train_decoder(work: Path, steps: int = 6000, batch_size: int = 16) -> AutoencoderTiny:
    """Train the autoencoder's decoder on slightly noisy latents, resuming from `work`."""
    torch.manual_seed(0)
    vae = make_vae()
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, functools.partial(_rate, steps=steps, cycle=steps))
    checkpoint = Checkpoint(work / "decoder.pt", vae=vae, optimizer=optimizer, schedule=schedule)
    for step in report_progress("decoder", range(checkpoint.restore(), steps), batch_size):
        generator = torch.Generator().manual_seed(step)
        drawings = [draw(scene(Split.ZOO, 2 * 10**8 + step * batch_size + i)) for i in range(batch_size)]
        pixel_values = to_pixel_values(drawings)
        latents = vae.encode(pixel_values).latents
        noise = torch.randn(latents.shape, generator=generator)
        loss = (vae.decode(latents + 0.03 * noise).sample - pixel_values).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        checkpoint.step(step, every=250, loss=loss.item())
    checkpoint.save(steps)
    return vae.eval().requires_grad_(False)


def train(output: Path, work: Path, steps: int | None = None) -> None:
    """Train all parts of the diffusion model and save them as a diffusers folder at `output`."""
    settings = BaseSettings() if steps is None else BaseSettings(steps=steps)
    tokenizer, encoder = text.pretrain_text_encoder()
    vae = train_decoder(work)
    unet = train_unet(tokenizer, encoder, work, settings)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(output)


def _rate(step: int, steps: int, cycle: int) -> float:
    """In each cycle: warm-up over 200 steps, constant, then falling linearly to a tenth over the last third."""
    begun = step - step % cycle
    length = min(cycle, steps - begun) or cycle  # 0 in the schedule's call after the last step
    done = step - begun
    return min(1.0, (done + 1) / 200) * min(1.0, 0.1 + 0.9 * (length - done) / (length / 3))


@torch.no_grad()
def _update(average: dict[str, torch.Tensor], unet: nn.Module, decay: float, step: int) -> None:
    decay = min(decay, (step + 1) / (step + 10))
    for name, value in unet.state_dict().items():
        average[name].lerp_(value, 1 - decay)
