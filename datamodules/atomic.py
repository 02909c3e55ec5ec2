"""Files that are either complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from modules.errors import UserError


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing what is there; the folder is created. UserError when the disk refuses."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            # mkstemp makes files private; results are meant to be read like any other file of the user.
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); choose an output folder that is writable and has room"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
