"""The `custom_pipeline` file of diffusers: a base with an adapter of RealCustom, loaded by diffusers itself.

    pipe = DiffusionPipeline.from_pretrained(
        BASE, custom_pipeline=FOLDER, trust_remote_code=True, adapter="FOLDER/adapter.safetensors"
    )
    pipe("a dog in the snow", subjects=[Subject(image=photo, word="dog")]).images[0]

FOLDER is the one that holds this file. The package realcustom must be installed.
"""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.errors import UsageError
from realcustom.output import RealCustomOutput


class RealCustomStockPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is not typed
    """A stock pipeline whose calls are those of `RealCustomPipeline`, which is its attribute `realcustom`.

    The names of the arguments below are those of a base's parts, by which diffusers hands them over.
    """

    _optional_components: ClassVar[list[str]] = ["text_encoder_2", "tokenizer_2", "image_encoder"]

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        text_encoder_2: Any = None,
        tokenizer_2: Any = None,
        adapter: str | None = None,
        image_encoder: str | None = None,
    ) -> None:
        """Put the adapter on the parts of a base.

        Args:
            text_encoder_2, tokenizer_2: of a base of SDXL's shape.
            adapter: path or storage URI of an adapter checkpoint.
            image_encoder: folder or hub id; None = the one that the adapter names, which must then be a hub id.
        Raises:
            UsageError: there is no adapter, or it does not fit.
        """
        super().__init__()
        if adapter is None:
            raise UsageError("adapter: none given; name the checkpoint, as adapter='FOLDER/adapter.safetensors'")
        parts = {
            "vae": vae,
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "unet": unet,
            "scheduler": scheduler,
        }
        if text_encoder_2 is None:
            stock: Any = StableDiffusionPipeline(
                **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        else:
            parts |= {"text_encoder_2": text_encoder_2, "tokenizer_2": tokenizer_2}
            stock = StableDiffusionXLPipeline(**parts, add_watermarker=False)
        self.realcustom = RealCustomPipeline.from_pretrained(stock, adapter, image_encoder)
        self.register_modules(**parts)

    def __call__(self, *arguments: Any, **named: Any) -> RealCustomOutput:
        """Draw, with the arguments and errors of `RealCustomPipeline`."""
        self._hand_over_parts()
        return self.realcustom(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        """What diffusers' base class has not, such as `load_lora_weights`."""
        if name in ("realcustom", "config") or name.startswith("__"):  # while it is made or copied
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return getattr(self.realcustom, name)

    def to(self, *where: Any, **named: Any) -> RealCustomStockPipeline:
        """Move every model, those of the adapter included."""
        self.realcustom.to(*where, **named)
        return self

    def save_pretrained(self, save_directory: str, **options: Any) -> None:
        """Write the folder that `RealCustomPipeline.from_pretrained` loads, adapter and image encoder included."""
        self._hand_over_parts()
        self.realcustom.save_pretrained(save_directory, **options)

    def enable_model_cpu_offload(self, *where: Any, **named: Any) -> None:
        """As `RealCustomPipeline.enable_model_cpu_offload`."""
        self.realcustom.enable_model_cpu_offload(*where, **named)

    def enable_sequential_cpu_offload(self, *where: Any, **named: Any) -> None:
        """As `RealCustomPipeline.enable_sequential_cpu_offload`."""
        self.realcustom.enable_sequential_cpu_offload(*where, **named)

    def _hand_over_parts(self) -> None:
        """Parts that were assigned here. Raises UsageError for a UNet, which holds the adapter."""
        own = self.realcustom.diffusers
        for name, part in own.components.items():
            given = vars(self).get(name, part)
            if given is not part:
                setattr(self.realcustom, name, given)

    def set_progress_bar_config(self, **config: Any) -> None:
        """As in diffusers."""
        super().set_progress_bar_config(**config)
        self.realcustom.set_progress_bar_config(**config)
