"""The shipped parser, and a bare folder of photos through all stages with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from skimage import data

from datamodules.album import AlbumConfig
from datamodules.album_reader import read_album
from datamodules.assets import PreparedAlbum, load_assets, prepare_assets
from datamodules.assistants import make_assistants
from datamodules.segmentation.classes import COARSE_PARTS, FINE_CLASSES
from datamodules.segmentation.config import SegmentorConfig
from datamodules.segmentation.mini import MiniParser
from datamodules.studio.album_writer import write_album
from datamodules.studio.parser_pictures import held_out_pictures
from datamodules.studio.person import HELD_OUT_SEED
from datamodules.views import EIGHT_VIEWS
from modules.parser import load_parser
from tests.integration.smoke import config_of
from trainer.config import PROJECT_ROOT
from trainer.parser_card import score_parser
from trainer.pipeline import run_pack

WEIGHTS = PROJECT_ROOT / "weights" / "mini_parser"
CONFIG = AlbumConfig(working_resolution=256, min_view_confidence=0.4)
PART_OF = {name: part for part, names in COARSE_PARTS.items() for name in names}


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A held-out person's album, with masks and truth."""
    return write_album(
        tmp_path_factory.mktemp("albums") / "person", seed=HELD_OUT_SEED + 6, num_photos=8, resolution=256
    )


@pytest.fixture(scope="module")
def bare(person: Path) -> Path:
    """The same photos and nothing else."""
    return Path(shutil.copytree(person / "image", person.parent / "bare"))


def test_the_weights_are_small_and_of_these_classes() -> None:
    _, names = load_parser(WEIGHTS)
    assert names == FINE_CLASSES
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 10_000_000


def test_people_it_has_never_seen_are_parsed_as_the_card_says() -> None:
    network, _ = load_parser(WEIGHTS)
    scores = score_parser(network, held_out_pictures(24, 4, 192))
    # The card has the figures of more people; here few are looked at, and the test shall fail when weights are damaged.
    assert scores["miou"] > 0.65
    assert scores["iou"]["face"] > 0.7
    assert scores["view_within_45_deg"] > 0.85


def part_mask(album: PreparedAlbum, photo: int, part: str) -> np.ndarray:
    """(R, R) bool, all garments of one coarse part."""
    chosen = [index for index, name in enumerate(album.asset_names) if PART_OF.get(name) == part]
    return album.masks[photo, chosen].any(0)


def test_masks_lie_where_the_studio_put_the_garments(person: Path, bare: Path, tmp_path: Path) -> None:
    truth = prepare_assets(read_album(person, CONFIG), tmp_path / "truth")
    found = prepare_assets(read_album(bare, CONFIG, make_assistants(CONFIG, PROJECT_ROOT)), tmp_path / "found")
    assert len(found.stems) >= 7
    for part in ("upper", "lower", "hair"):
        overlap, union = 0, 0
        for index, stem in enumerate(found.stems):
            theirs, ours = part_mask(truth, truth.stems.index(stem), part), part_mask(found, index, part)
            overlap += int((theirs & ours).sum())
            union += int((theirs | ours).sum())
        assert overlap / union > 0.6, part
    views = dict(zip(truth.stems, truth.views, strict=True))
    said = [(view, views[stem]) for stem, view in zip(found.stems, found.views, strict=True) if view]
    turns = [abs((EIGHT_VIEWS.index(view) - EIGHT_VIEWS.index(true) + 4) % 8 - 4) for view, true in said if true]
    assert len(turns) >= 5
    assert np.mean(np.array(turns) <= 1) >= 0.8, "an eighth of a turn is what a view may be wrong by"


def test_a_bare_folder_ends_in_an_avatar(bare: Path, backbone: Path, tmp_path: Path) -> None:
    result = run_pack([bare], config_of(tmp_path, backbone))[0]
    assert result.failed is None
    assert (result.folder / "avatar.glb").stat().st_size > 0
    album = load_assets(result.folder / "assets")
    assert "face" in album.asset_names
    assert len(album.asset_names) >= 3
    assert any("mini parser" in note for note in album.notes)


def test_a_real_photograph_shows_one_person() -> None:
    """The NASA portrait that comes with scikit-image; the parser's card says what is made of it."""
    people = MiniParser.load(WEIGHTS, SegmentorConfig()).people(data.astronaut())
    assert people
    assert people[0].box.holds(224, 115), "the face lies in the largest person's box"
