"""What a backbone's weights are known by; light to import."""

from __future__ import annotations

from pathlib import Path

from modules.diffusion.sources import resolve_backbone, snapshot_commit
from trainer.canonical import hash_tree


def hash_backbone(path: str, root: Path) -> str:
    """A hash of a backbone's weights and settings. path, root: see `resolve_backbone`."""
    folder = resolve_backbone(path, root)
    # Gigabytes from the hub need not be read: their commit stands for them.
    return snapshot_commit(folder) or hash_tree(folder, ("*.json", "*.safetensors", "*.bin", "*.txt"))
