"""SDXL's conditions on the sizes of pictures, as diffusers' pipeline takes them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from realcustom.errors import UsageError
from realcustom.sampling import is_whole
from realcustom.settings import TimeIdsOrder
from realcustom.warning import warn

Size = tuple[int, int]  # (height, width) or (top, left), pixels


@dataclass(frozen=True, kw_only=True)
class PictureSizes:
    """What SDXL is told about the size and crop of the picture; None = the size that is drawn.

    The unconditional branch is told the same, unless both of its sizes are given.
    """

    original_size: Size | None = None
    crops_coords_top_left: Size | None = None  # None = (0, 0)
    target_size: Size | None = None
    negative_original_size: Size | None = None
    negative_crops_coords_top_left: Size | None = None  # None = (0, 0)
    negative_target_size: Size | None = None

    def check(self, is_sdxl: bool) -> None:
        """Raise UsageError for a value that is no pair of whole numbers, or for a base that reads none.

        Warns of a negative one that does nothing without the others.
        """
        given = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) is not None}
        for name, value in given.items():
            if not is_sdxl:
                raise UsageError(
                    f"{name} is a condition of SDXL; this base is of Stable Diffusion 1.x's shape and has none"
                )
            if not (isinstance(value, (tuple, list)) and len(value) == 2 and all(map(is_whole, value))):
                raise UsageError(f"{name} is a pair of whole numbers of pixels, got {value!r}")
        idle = [name for name in given if name.startswith("negative_")]
        if idle and (self.negative_original_size is None or self.negative_target_size is None):
            warn(f"{', '.join(idle)}: does nothing without both negative_original_size and negative_target_size")

    def time_ids(self, drawn: Size, order: TimeIdsOrder) -> tuple[list[int], list[int]]:
        """The six numbers of the conditional and of the unconditional branch.

        Args:
            drawn: the picture's (height, width).
            order: of each size's two numbers.
        """
        own = _six(self.original_size or drawn, self.crops_coords_top_left, self.target_size or drawn, order)
        if self.negative_original_size is None or self.negative_target_size is None:
            return own, own
        crop = self.negative_crops_coords_top_left
        return own, _six(self.negative_original_size, crop, self.negative_target_size, order)


def _six(original: Size, crop: Size | None, target: Size, order: TimeIdsOrder) -> list[int]:
    turn = -1 if order is TimeIdsOrder.WH_COMPAT else 1
    return [*original[::turn], *(crop or (0, 0)), *target[::turn]]
