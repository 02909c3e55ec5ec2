"""npm's gltf-validator, where node has it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

_VALIDATE = """
const fs = require('fs'), validator = require('gltf-validator');
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])))
  .then(report => console.log(JSON.stringify(report.issues)));
"""


def has_validator() -> bool:
    node = shutil.which("node")
    return (
        node is not None
        and not subprocess.run([node, "-e", "require('gltf-validator')"], capture_output=True).returncode
    )


def validator_issues(path: Path) -> dict[str, Any]:
    """What Khronos' validator says of a GLB file: {"numErrors": 0, "numWarnings": 0, ..., "messages": [...]}."""
    done = subprocess.run(["node", "-e", _VALIDATE, str(path)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
