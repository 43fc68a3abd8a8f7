"""The verb `realcustom serve`."""

from __future__ import annotations

from functools import partial

import typer

from realcustom.errors import require_all
from realcustom.inference.keys import find_keys
from realcustom.pipeline.cli.options import Address, ModelOptions, SettingsOptions
from realcustom.pipeline.devices import check_serving
from realcustom.pipeline.inputs import image_encoder_for, require_base, require_model, require_path


def serve(*, models: ModelOptions, given: SettingsOptions, address: Address = None) -> None:
    """Answer POST /v1/images/generations until Ctrl-C."""
    settings = given.resolve("serve", ("base", "adapter", "serve", "method.image_encoder"))
    base, adapter = models.base_and_adapter(settings)
    detector = settings.serve.detector
    require_all(
        partial(require_base, base),
        *([partial(require_path, adapter, "--adapter", "adapter checkpoint")] if adapter is not None else []),
        *(
            [partial(require_model, models.image_encoder, "--image-encoder")]
            if models.image_encoder is not None
            else []
        ),
        *([partial(require_model, detector, "serve.detector")] if detector is not None else []),
        partial(find_keys, settings.serve),
    )
    check_serving(settings.serve, address)
    from realcustom.pipeline.serving import serve_until_interrupted

    image_encoder = image_encoder_for(adapter, models.image_encoder, settings.method.image_encoder.model)
    raise typer.Exit(serve_until_interrupted(settings.serve, base, adapter, image_encoder, address))


VERBS = {
    serve: ("realcustom serve", "realcustom serve --adapter adapter.safetensors --set serve.port=8080"),
}
