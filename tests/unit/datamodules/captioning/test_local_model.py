"""The local captioner with real models of a few thousand weights, saved and loaded as those of the hub are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.captioning.answer import make_question
from datamodules.captioning.captioner import CaptionFailed, CaptionRequest, make_captioner
from datamodules.captioning.config import CaptionerConfig
from datamodules.captioning.local_model import LocalCaptioner
from datamodules.captioning.photos import person_crop
from modules.errors import UserError
from tests.unit.datamodules.captioning.conftest import GOOD, NAMES, album_of_two

TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
)


def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([make_question(NAMES), json.dumps(GOOD)] * 5, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


def tiny_llava() -> tuple[Any, Any]:
    """A processor and a LLaVA of one layer and random weights, for pictures of 16 x 16 pixels."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = tiny_tokenizer()
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, vision_feature_layer=-1)
    return processor, LlavaForConditionalGeneration(config)


def teach(processor: Any, model: Any, request: CaptionRequest, answer: str) -> None:
    """Let the model learn by heart what it is to say of an album."""
    pictures = [{"type": "image", "image": person_crop(request, index, 768)} for index in range(len(request.photos))]
    content = [*pictures, {"type": "text", "text": make_question(request.asset_names)}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    said = processor.tokenizer(answer + "</s>", return_tensors="pt").input_ids
    tokens = torch.cat([inputs["input_ids"], said], dim=1)
    labels = tokens.clone()
    labels[:, : inputs["input_ids"].shape[1]] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(200):
        output = model(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            pixel_values=inputs["pixel_values"],
            labels=labels,
        )
        # Each token follows from the right ones before it, so greedy decoding says them all.
        if output.loss.item() < 0.1 and torch.equal(output.logits[:, -said.shape[1] - 1 : -1].argmax(dim=-1), said):
            return
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    raise AssertionError(f"the tiny model did not learn its answer: {output.loss.item():.3f}")


@pytest.fixture(scope="module")
def taught_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    processor, model = tiny_llava()
    teach(processor, model, album_of_two(), json.dumps(GOOD))
    # As the folders of the hub: settings of sampling that greedy decoding must not follow.
    model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.9, top_k=3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(taught_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(taught_folder, tmp_path / "model"))


def captioner(folder: Path | str, **settings: Any) -> LocalCaptioner:
    return LocalCaptioner(CaptionerConfig(method="local", model=str(folder), **settings), device="cpu")


def test_a_model_names_the_assets(taught_folder, request_of_two):
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    words = captioner(taught_folder).caption(request_of_two)
    assert words.gender == "woman"
    assert words.names == {"face": "face", "hair": "haircut", "upper": "jumper"}
    assert words.words == {"face": "oval", "haircut": "short curly", "jumper": "loose"}
    assert words.notes == ()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert captioner(taught_folder, seed=5).caption(request_of_two) == words


def test_the_model_is_dropped_afterwards(taught_folder, request_of_two):
    import gc

    from transformers import LlavaForConditionalGeneration

    captioner(taught_folder).caption(request_of_two)
    assert not any(type(thing) is LlavaForConditionalGeneration for thing in gc.get_objects())


def test_nonsense_ends_in_a_message_or_in_the_segmentors_names(folder, request_of_two, monkeypatch):
    monkeypatch.setattr("datamodules.captioning.local_model.MAX_NEW_TOKENS", 20)
    _, model = tiny_llava()
    model.save_pretrained(folder)
    with pytest.raises(CaptionFailed, match="the model's answer cannot be used: it is no JSON"):
        captioner(folder).caption(request_of_two)
    words = make_captioner(CaptionerConfig(method="local", model=str(folder))).caption(request_of_two)
    assert words.fallback
    assert words.names == {"face": "face", "hair": "haircut", "upper": "upper"}
    assert "it is no JSON" in words.notes[0]


def test_another_family_is_asked_the_same_way(tmp_path, request_of_two, monkeypatch):
    """Idefics3, the family of SmolVLM, cuts a picture into tiles and has a processor of another kind."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    monkeypatch.setattr("datamodules.captioning.local_model.MAX_NEW_TOKENS", 5)
    tokenizer = tiny_tokenizer()
    template = TEMPLATE.replace("</s>", "<end_of_utterance>")
    images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=1, chat_template=template)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Idefics3Config(
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        text_config={
            **sizes,
            "model_type": "llama",
            "num_key_value_heads": 2,
            "vocab_size": len(processor.tokenizer),
            "max_position_embeddings": 2048,
            "pad_token_id": 0,
        },
        image_token_id=processor.image_token_id,
        scale_factor=2,
        pad_token_id=0,
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(CaptionFailed, match="cannot be used: it is no JSON"):
        captioner(tmp_path).caption(request_of_two)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("model.safetensors", "its model cannot be loaded"),
        ("tokenizer.json", "its processor cannot be loaded"),
        ("chat_template.jinja", "it has no chat template"),
    ],
)
def test_a_folder_that_lacks_a_part_is_named(folder, request_of_two, damage, message):
    (folder / damage).unlink()
    with pytest.raises(UserError, match=message) as caught:
        captioner(folder).caption(request_of_two)
    assert str(folder) in str(caught.value)
    assert not isinstance(caught.value, CaptionFailed)


def test_weights_that_are_cut_short_are_named(folder, request_of_two):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="its model cannot be loaded"):
        captioner(folder).caption(request_of_two)


def test_a_template_that_fails_is_a_failure_of_the_model(folder, request_of_two):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('one picture only') }}")
    with pytest.raises(CaptionFailed, match=r"it fails on these photos \(TemplateError: one picture only\)"):
        captioner(folder).caption(request_of_two)


def test_too_little_memory_is_said(taught_folder, request_of_two, monkeypatch):
    from transformers import LlavaForConditionalGeneration

    def generate(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", generate)
    with pytest.raises(CaptionFailed, match="too little memory"):
        captioner(taught_folder).caption(request_of_two)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere", r"is neither a folder \(looked for .*nowhere\) nor a hub id"),
        ("a/b/c", "is neither a folder"),
        ("owner/name", "`hf download owner/name`, or set album.captioner.allow_network=true"),
        ("owner/name@main", "`hf download owner/name`"),
    ],
)
@pytest.mark.parametrize("allow_network", [False, True])
def test_a_model_that_is_not_there_is_named(request_of_two, tmp_path, monkeypatch, model, message, allow_network):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        captioner(model, allow_network=allow_network).caption(request_of_two)


def test_the_identity_is_that_of_the_files(folder, tmp_path):
    base = captioner(folder).identity
    assert captioner(shutil.copytree(folder, tmp_path / "elsewhere")).identity == base
    assert captioner(folder, max_photos=1).identity != base
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert captioner(folder).identity != base
    assert "owner/name@main" in captioner("owner/name@main").identity
