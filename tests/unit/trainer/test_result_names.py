"""Names of output folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from modules.errors import UserError
from trainer.pipeline import check_names


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", ".hidden", "x" * 300, "ü" * 130])
def test_names_that_no_folder_can_have_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be an output folder's name") as refused:
        check_names([name], tmp_path)
    assert len(str(refused.value)) < 200


def test_two_albums_need_two_names(tmp_path: Path) -> None:
    check_names(["anna", "ben", "x" * 240], tmp_path)
    with pytest.raises(UserError, match="Two albums"):
        check_names(["anna", "anna"], tmp_path)
