"""GroundingDINO, SAM and SAM 2 at tiny size: real classes, saved and loaded as those of the hub are."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.segmentation.config import GroundedSamConfig
from datamodules.segmentation.detections import prompt_text
from datamodules.segmentation.grounded_models import Detector, Segmenter, choose_device
from modules.errors import UserError
from tests.unit.datamodules.segmentation.tiny_models import save_grounding_dino, save_sam, save_sam2

PROMPTS = ("person", "face", "hair", "t-shirt", "tank top")
BOXES = [(4.0, 6.0, 40.0, 50.0), (10.0, 0.0, 60.0, 29.5), (0.0, 0.0, 70.0, 80.0)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "dino": save_grounding_dino(root / "dino"),
        "sam": save_sam(root / "sam"),
        "sam2": save_sam2(root / "sam2"),
    }


@pytest.fixture
def pictures() -> list[np.ndarray]:
    """The first and the last have the same shape."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (*size, 3), np.uint8) for size in ((80, 70), (60, 90), (50, 50), (80, 70))]


def config(**settings: Any) -> GroundedSamConfig:
    return GroundedSamConfig(device="cpu", **settings)


def test_boxes_and_scores_are_those_of_transformers(models, pictures):
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    processor = AutoProcessor.from_pretrained(models["dino"])
    model = AutoModelForZeroShotObjectDetection.from_pretrained(models["dino"]).eval()
    sizes = [picture.shape[:2] for picture in pictures]
    theirs = []
    for picture, size in zip(pictures, sizes, strict=True):
        inputs = processor(images=picture, text=prompt_text(PROMPTS), return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
        # Both thresholds alike: every box that counts has a phrase.
        theirs += processor.post_process_grounded_object_detection(
            output, threshold=0.5, text_threshold=0.5, target_sizes=[size]
        )
    detector = Detector(models["dino"], config(box_threshold=0.5, text_threshold=0.5))
    with detector.at_work():
        ours = detector.find(pictures, PROMPTS)
    for mine, other, (height, width) in zip(ours, theirs, sizes, strict=True):
        boxes = np.clip(other["boxes"].numpy(), 0, (width, height, width, height))
        # They also name the periods, and the token behind the last.
        phrases = [phrase.replace(".", "").replace("[SEP]", "").strip() for phrase in other["text_labels"]]
        sides = (boxes[:, 2:] - boxes[:, :2]).min(1)
        there = [index for index, phrase in enumerate(phrases) if phrase and sides[index] >= 1]
        assert len(mine) == len(there) > 0
        for detection in mine:
            index = min(there, key=lambda one: float(np.abs(boxes[one] - detection.box).max()))
            np.testing.assert_allclose(detection.box, boxes[index], atol=1e-3)
            phrase = phrases[index].replace(" ", "")
            # Some token of every prompt that is named is in the phrase which transformers reads off.
            assert all(any(word in phrase for word in re.findall(r"\w+|-", name)) for name in detection.scores)


def test_what_is_found_does_not_depend_on_the_other_pictures(models, pictures, monkeypatch):
    detector = Detector(models["dino"], config(batch_size=4))
    forward = type(detector.model).forward
    sizes = []

    def counted(self: Any, pixel_values: torch.Tensor, **rest: Any) -> Any:
        sizes.append(len(pixel_values))
        return forward(self, pixel_values=pixel_values, **rest)

    monkeypatch.setattr(type(detector.model), "forward", counted)
    with detector.at_work():
        together = detector.find(pictures, PROMPTS)
        assert sizes == [2, 1, 1]
        alone = [detector.find([picture], PROMPTS)[0] for picture in pictures]
    for first, second in zip(together, alone, strict=True):
        assert [detection.name for detection in first] == [detection.name for detection in second]
        for mine, other in zip(first, second, strict=True):
            np.testing.assert_allclose(mine.box, other.box, atol=1e-3)
            assert mine.score == pytest.approx(other.score, abs=1e-4)


def boxes_that_reach(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the model is given, call by call: masks of random weights hardly depend on it."""
    forward = type(segmenter.model).forward
    given: list[torch.Tensor] = []

    def noted(self: Any, **inputs: Any) -> Any:
        given.append(inputs["input_boxes"])
        return forward(self, **inputs)

    monkeypatch.setattr(type(segmenter.model), "forward", noted)
    return given


def test_masks_are_those_of_transformers(models, pictures, monkeypatch):
    from transformers import SamModel, SamProcessor
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    square = {"height": 64, "width": 64}
    processor = SamProcessor(SamImageProcessorPil(size={"longest_edge": 64}, pad_size=square))
    model = SamModel.from_pretrained(models["sam"]).eval()
    segmenter = Segmenter(models["sam"], config())
    given = boxes_that_reach(segmenter, monkeypatch)
    for picture in pictures:
        inputs = processor(picture, input_boxes=[[list(box) for box in BOXES]], return_tensors="pt")
        with torch.no_grad():
            output = model(
                **{key: inputs[key].float() for key in ("pixel_values", "input_boxes")}, multimask_output=False
            )
        theirs = processor.post_process_masks(
            output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )[0][:, 0]
        with segmenter.at_work():
            ours = segmenter.masks(picture, BOXES)
        torch.testing.assert_close(given[-1], inputs["input_boxes"].float(), atol=1e-3, rtol=0)
        assert ours.shape == (3, *picture.shape[:2])
        assert 0 < ours.mean() < 1
        assert (ours != theirs.numpy()).mean() < 0.002


def test_sam_2_gives_masks_of_the_photos_size(models, pictures, monkeypatch):
    segmenter = Segmenter(models["sam2"], config())
    given = boxes_that_reach(segmenter, monkeypatch)
    with segmenter.at_work():
        masks = segmenter.masks(pictures[1], BOXES)
        # The photo of 90 x 60 pixels is stretched to 128 x 128.
        scale = torch.tensor([128 / 90, 128 / 60] * 2)
        torch.testing.assert_close(given[0], torch.tensor([BOXES]) * scale, atol=1e-3, rtol=0)
        segmenter.batch_size = 2
        assert (segmenter.masks(pictures[1], BOXES) == masks).mean() > 0.999
        assert segmenter.masks(pictures[1], []).shape == (0, 60, 90)
    assert masks.shape == (3, 60, 90)
    assert masks.dtype == bool
    assert 0 < masks.mean() < 1


def test_sam_2_sees_what_its_processor_makes(models, pictures):
    pytest.importorskip("torchvision", reason="Sam2Processor needs torchvision")
    from transformers import Sam2ImageProcessor, Sam2Processor

    processor = Sam2Processor(Sam2ImageProcessor(size={"height": 128, "width": 128}))
    segmenter = Segmenter(models["sam2"], config())
    inputs = processor(pictures[1], return_tensors="pt")
    frame, _ = segmenter._frame(pictures[1])
    assert (frame - inputs["pixel_values"]).abs().max() < 0.05


def test_sam_2_gets_the_box_where_it_is(models):
    """The frame is stretched: a box's corners and the picture's pixels go the same way."""
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[10:20, 40:60] = 255
    frame, inner = Segmenter(models["sam2"], config())._frame(picture)
    assert inner == (128, 128)
    bright = (frame[0, 0] > 0).nonzero()
    assert bright.min(0).values.tolist() == pytest.approx([10 * 128 / 40, 40 * 128 / 80], abs=2)
    assert bright.max(0).values.tolist() == pytest.approx([20 * 128 / 40, 60 * 128 / 80], abs=2)


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_half_precision_stays_close(models, pictures, kind):
    half = Segmenter(models[kind], config(precision="bf16"))
    full = Segmenter(models[kind], config())
    with half.at_work(), full.at_work():
        assert half.model.dtype == torch.bfloat16
        assert full.model.dtype == torch.float32
        assert (half.masks(pictures[0], BOXES) == full.masks(pictures[0], BOXES)).mean() > 0.9
    detector = Detector(models["dino"], config(precision="bf16"))
    with detector.at_work():
        assert len(detector.find(pictures, PROMPTS)) == len(pictures)


def test_too_little_memory_halves_the_batch_and_goes_on(models, pictures, monkeypatch):
    detector = Detector(models["dino"], config(batch_size=3))
    forward = type(detector.model).forward
    sizes = []

    def small(self: Any, pixel_values: torch.Tensor, **rest: Any) -> Any:
        sizes.append(len(pixel_values))
        if len(pixel_values) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, pixel_values=pixel_values, **rest)

    monkeypatch.setattr(type(detector.model), "forward", small)
    with detector.at_work():
        assert len(detector.find([pictures[0]] * 3, PROMPTS)) == 3
        assert sizes == [3, 1, 1, 1]
        assert detector.batch_size == 1
        monkeypatch.setattr(type(detector.model), "forward", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(
            UserError, match=r"too little memory for album\.segmentor\.grounded_sam\.detector .*device=cpu"
        ):
            detector.find(pictures, PROMPTS)


def test_a_model_leaves_the_gpu_after_its_work(models, monkeypatch):
    """Without a GPU: where the model would be sent is written down."""
    moves: list[str] = []
    for offload, expected in ((True, ["cuda", "cpu"]), (False, ["cuda"])):
        segmenter = Segmenter(models["sam"], config(offload=offload))
        segmenter.device = torch.device("cuda")
        monkeypatch.setattr(segmenter.model, "to", lambda device: moves.append(torch.device(device).type))
        with pytest.raises(RuntimeError, match="halfway"), segmenter.at_work():
            raise RuntimeError("halfway")
        assert moves == expected
        moves.clear()


def test_weights_load_at_the_first_use(models, monkeypatch):
    from transformers import SamModel

    loaded = []
    load = SamModel.from_pretrained
    monkeypatch.setattr(SamModel, "from_pretrained", lambda *args, **rest: loaded.append(args) or load(*args, **rest))
    segmenter = Segmenter(models["sam"], config())
    assert segmenter.identity.startswith("sam ")
    assert not loaded
    with segmenter.at_work():
        pass
    with segmenter.at_work():
        pass
    assert len(loaded) == 1


def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("sam", lambda path: path.write_bytes(path.read_bytes()[:500]), "the model of .* cannot be loaded"),
        ("sam2", lambda path: path.write_bytes(b""), "the model of .* cannot be loaded"),
        ("dino", lambda path: (path.parent / "tokenizer.json").unlink(), "the processor of .* cannot be loaded"),
        ("dino", lambda path: (path.parent / "config.json").write_text("{"), "config.json is damaged"),
        ("dino", lambda path: (path.parent / "config.json").write_text("[]"), "config.json is damaged"),
    ],
)
def test_a_damaged_model_is_named(models, pictures, tmp_path, kind, damage, message):
    folder = copy(models[kind], tmp_path)
    for vocabulary in folder.glob("vocab.txt"):
        vocabulary.unlink()
    damage(folder / "model.safetensors")

    def work() -> None:
        network = Detector(folder, config()) if kind == "dino" else Segmenter(folder, config())
        with network.at_work():
            if isinstance(network, Detector):
                network.find(pictures, PROMPTS)

    with pytest.raises(UserError, match=message) as caught:
        work()
    assert str(folder) in str(caught.value)
    assert "album.segmentor.method=mini" in str(caught.value)


def test_weights_that_lack_tensors_are_not_filled_with_noise(models, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy(models["sam"], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["mask_decoder.iou_token.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"the weights lack 1 tensors, such as mask_decoder\.iou_token\.weight"):
        _ = Segmenter(folder, config()).model


def test_a_model_of_another_kind_is_named(models):
    with pytest.raises(UserError, match="holds a model of type grounding-dino, but one of sam, sam2, sam2_video was"):
        Segmenter(models["dino"], config())
    with pytest.raises(UserError, match="holds a model of type sam2, but one of grounding-dino"):
        Detector(models["sam2"], config())


def test_prompts_that_the_detector_cannot_read_are_named(models, pictures):
    detector = Detector(models["dino"], config())
    with detector.at_work(), pytest.raises(UserError, match=r"are 150 phrases of 302 tokens, but .* reads 256"):
        detector.find(pictures[:1], ["cap"] * 150)


def test_the_identity_is_that_of_the_files(models, tmp_path):
    folder = copy(models["sam"], tmp_path)
    base = Segmenter(models["sam"], config()).identity
    assert Segmenter(folder, config()).identity == base
    assert Segmenter(folder, config(precision="bf16")).identity != base
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert Segmenter(folder, config()).identity != base


def test_a_device_that_is_not_there_is_named():
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(UserError, match=rf"device is {absent}, but torch finds no such device"):
        choose_device(GroundedSamConfig(device=absent))
    assert choose_device(config()) == (torch.device("cpu"), torch.float32)
    assert choose_device(config(precision="bf16"))[1] == torch.bfloat16
