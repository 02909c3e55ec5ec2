"""Which album each row of a batch belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

# Rows with this index use the frozen model as it is.
NO_ALBUM = -1


class AlbumRouting:
    """Shared by all adapted layers of a backbone; set around each forward pass.

    albums: (B,) int64, the album index of every row, or NO_ALBUM.
    """

    def __init__(self) -> None:
        self.albums: Tensor | None = None

    @contextmanager
    def rows(self, albums: Tensor | None) -> Iterator[None]:
        """Within the block, row i of every batch belongs to albums[i]; None means no row is personalised."""
        before, self.albums = self.albums, albums
        try:
            yield
        finally:
            self.albums = before
