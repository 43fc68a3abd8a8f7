"""data-juicer: image_shape_filter (decodes, size) and image_deduplicator (its hash: decodes, 64-bit DCT), one process."""

import sys
import types

# imagededup imports its CNN and with it torchvision, which the hash does not need
for module, name in (("imagededup.methods.cnn", "CNN"), ("imagededup.utils.models", "CustomModel")):
    sys.modules[module] = types.ModuleType(module)
    setattr(sys.modules[module], name, None)

from data_juicer.core.data import NestedDataset  # noqa: E402
from data_juicer.ops.deduplicator.image_deduplicator import ImageDeduplicator  # noqa: E402
from data_juicer.ops.filter.image_shape_filter import ImageShapeFilter  # noqa: E402

if len(sys.argv) > 1:
    dataset = NestedDataset.from_list([{"text": "", "images": [path]} for path in sys.argv[1:]])
    dataset = ImageShapeFilter(num_proc=1).run(dataset)
    dataset = dataset.map(ImageDeduplicator().compute_hash)  # without dropping copies: files occur more than once
    print(len(dataset))
