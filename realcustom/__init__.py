"""RealCustom: a real word of the prompt narrowed to the subject of one picture. Does not use Ray.

from realcustom import RealCustomPipeline, SamplingParams, Subject
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realcustom.diffusion_pipeline import RealCustomPipeline, SamplingParams, Subject

# In a clone the parts are links to the folders beside this one. What a job takes along is a zip, which has no links: there they
# are these folders themselves.
_HERE = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_HERE, "preprocessing")):
    __path__.append(os.path.dirname(_HERE))

__version__: str

__all__ = ["RealCustomPipeline", "SamplingParams", "Subject"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        import importlib.metadata

        return importlib.metadata.version("realcustom")
    if name in __all__:  # torch is imported with the pipeline, not with the settings
        from realcustom.loading import without_warnings

        with without_warnings():  # of torchvision, which nothing here needs
            from realcustom import diffusion_pipeline

        return getattr(diffusion_pipeline, name)
    raise AttributeError(f"module 'realcustom' has no attribute {name!r}")
