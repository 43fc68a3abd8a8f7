"""The model card of an adapter: what it is, how it is used, what it was trained with. Only what the file itself says."""

from __future__ import annotations

import yaml

from realcustom.checkpoint import Header
from realcustom.settings import EncoderKind

HASHED = "@sha256-"  # in the identity of a model that is a folder


def model_card(name: str, header: Header, sha256: str) -> str:
    """The card in Markdown, with the metadata that the hub reads at its head.

    Args:
        name: its heading.
        sha256: of the adapter's file.
    """
    return f"{_metadata(header)}\n# {name}\n\n{_ABOUT}\n## Use\n\n{_use(header)}\n{_trained_with(header, sha256)}"


_ABOUT = """\
An adapter of [RealCustom](https://arxiv.org/abs/2403.00483): it narrows a word of the prompt to the subject of one picture,
and lets the picture act only where the word does. No training is needed for a new subject.
"""


def is_of_hub(identity: str) -> bool:
    """Whether a model's identity is an id of the hub, and not a folder's content."""
    return HASHED not in identity and "/" in identity


def _metadata(header: Header) -> str:
    base = header.base.partition("@")[0]
    metadata: dict[str, object] = {"library_name": "diffusers", "pipeline_tag": "text-to-image"}
    if is_of_hub(header.base):
        metadata |= {"base_model": base, "base_model_relation": "adapter"}
    metadata["tags"] = ["realcustom", "subject-driven", "text-to-image"]
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n"


def _use(header: Header) -> str:
    base = repr(header.base.partition("@")[0]) if is_of_hub(header.base) else "BASE"
    encoder = "" if all(map(is_of_hub, header.image_encoder.split(","))) else ", image_encoder=IMAGE_ENCODER"
    unknown = [f"`{word}` is {what}" for word, what in (
        ("BASE", f"the base's folder or hub id ({header.base})"),
        ("IMAGE_ENCODER", f"that of the image encoder ({header.image_encoder})"),
    ) if word in base + encoder]  # fmt: skip
    where = f"\n{' and '.join(unknown)}." if unknown else ""
    return f"""\
`FOLDER` is this folder, or `huggingface_hub.snapshot_download(...)` of this repository.{where}

```python
from PIL import Image
from realcustom import RealCustomPipeline, Subject

pipe = RealCustomPipeline.from_pretrained({base}, adapter="FOLDER/adapter.safetensors"{encoder})
out = pipe("a dog in the snow", subjects=[Subject(image=Image.open("photo.jpg"), word="dog")])
out.images[0].save("dog.png")
```

Or by diffusers itself, with the file `pipeline.py` of this folder:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(
    {base}, custom_pipeline="FOLDER", trust_remote_code=True, adapter="FOLDER/adapter.safetensors"{encoder}
)
```

The package `realcustom` must be installed for both.
"""


def _trained_with(header: Header, sha256: str) -> str:
    encoder = header.settings.image_encoder
    kind = {EncoderKind.CLIP: "CLIP", EncoderKind.SIGLIP_DINO: "SigLIP and DINOv2"}[encoder.kind]
    train = header.provenance.get("train")
    settings = f"\n\n```yaml\n{yaml.safe_dump(train, sort_keys=True)}```\n" if train else " not recorded.\n"
    numbers = sum(_count(shape) for shape in header.shapes.values())
    return f"""\
## What it was made with

| | |
|---|---|
| base | `{header.base}` |
| image encoder | `{header.image_encoder}` ({kind}) |
| records | `{header.provenance.get("records") or "not recorded"}` |
| weights | {numbers:,} numbers in {len(header.shapes)} tensors |
| sha256 | `{sha256}` |

The method's settings are in `settings.yaml`, and in the adapter itself. Of the training:{settings}"""


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
