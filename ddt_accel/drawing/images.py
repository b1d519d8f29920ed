"""Images that were drawn, and the labels they were drawn of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Some images in the order of their indices, `first` being the lowest."""

    first: int
    rows: NDArray[np.uint8] | NDArray[np.float32]  # pictures [B, H, W, 3] uint8, or latents [B, C, H, W] float32
    labels: NDArray[np.int64]  # [B]

    @property
    def stop(self) -> int:
        return self.first + len(self.rows)

    @classmethod
    def joined(cls, parts: list[Images]) -> Images:
        """Neighbours as one."""
        return cls(
            first=parts[0].first,
            rows=np.concatenate([part.rows for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
        )
