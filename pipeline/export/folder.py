"""Write an adapter as a folder: `adapter.safetensors`, `settings.yaml`, `pipeline.py`, and README.md, the model card."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from realcustom.pipeline import output_folder
from realcustom.pipeline.configure import to_yaml
from realcustom.store import Store

ADAPTER, SETTINGS, PIPELINE, CARD = "adapter.safetensors", "settings.yaml", "pipeline.py", "README.md"
OURS = re.compile("|".join(map(re.escape, (ADAPTER, SETTINGS, PIPELINE, CARD))))


def check(output: str, overwrite: bool) -> None:
    """Raise UsageError unless `output` is new, empty, or holds an earlier export to overwrite."""
    output_folder.check(output, overwrite, OURS)


def write(adapter: str, output: str, name: str, *, card: bool, overwrite: bool = False) -> list[str]:
    """Write the folder and return its files' paths or URIs. The adapter's bytes stay as they are.

    Args:
        adapter: path or URI of an adapter checkpoint.
        name: the heading of the card.
    Raises:
        UsageError: there is no adapter, or `output` holds other files.
    """
    from realcustom.checkpoint import read_header  # imports torch
    from realcustom.pipeline.export.card import is_of_hub, model_card

    check(output, overwrite)
    store = Store()
    header, data = read_header(adapter, store), store.read(adapter)
    base = {"base": header.base} if is_of_hub(header.base) else {}
    files = {
        ADAPTER: data,
        SETTINGS: to_yaml({**base, "method": header.settings}).encode(),
        PIPELINE: Path(__file__).with_name(PIPELINE).read_bytes(),
    }
    if card:
        files[CARD] = model_card(name, header, hashlib.sha256(data).hexdigest()).encode()
    return output_folder.write(files, output, overwrite, OURS)
