"""GroundingDINO, SAM and SAM 2 of a few thousand random weights, saved as those of the hub are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

# Words as BERT's vocabulary has them; "haircut" comes in two pieces.
WORDS = [
    "person",
    "face",
    "hair",
    "##cut",
    "t",
    "-",
    "shirt",
    "jumper",
    "jacket",
    "tank",
    "top",
    "dress",
    "skirt",
    "shorts",
    "trousers",
    "shoes",
    "cap",
    "glasses",
]
# Ids that GroundingDINO knows by heart, to tell phrases apart.
FIXED = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}


def save_grounding_dino(folder: Path) -> Path:
    """For pictures of 96 to 144 pixels."""
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoProcessor,
        SwinConfig,
    )
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    folder.mkdir(parents=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([FIXED.get(index, f"[unused{index}]") for index in range(1030)] + WORDS) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(vocabulary))
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 144})
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        ),
        num_queries=12,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=32,
    )
    torch.manual_seed(0)
    model = GroundingDinoForObjectDetection(config)
    with torch.no_grad():
        for embed in model.bbox_embed:
            # Boxes as large as things in a photo; untrained ones are specks.
            embed.layers[-1].bias[2:] = 2.0
    model.save_pretrained(folder)
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def _excited(model: Any) -> Any:
    """With weights so large that masks depend on boxes and on pixels."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def save_sam(folder: Path) -> Path:
    """For pictures of 64 pixels."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=16,
            output_channels=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
            window_size=4,
            global_attn_indexes=[0],
            num_pos_feats=4,
            mlp_dim=32,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(hidden_size=8, image_size=64, patch_size=8, mask_input_channels=4),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=8, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=8
        ),
    )
    torch.manual_seed(0)
    _excited(SamModel(config)).save_pretrained(folder)
    return folder


def save_sam2(folder: Path) -> Path:
    """For pictures of 128 pixels."""
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2MaskDecoderConfig,
        Sam2Model,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[128, 128],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 2],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )
    config = Sam2Config(
        vision_config=Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=[64, 32, 16, 8],
            backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
            fpn_hidden_size=32,
        ),
        prompt_encoder_config=Sam2PromptEncoderConfig(
            hidden_size=32, image_size=128, patch_size=16, mask_input_channels=4
        ),
        mask_decoder_config=Sam2MaskDecoderConfig(
            hidden_size=32, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=8
        ),
    )
    torch.manual_seed(0)
    _excited(Sam2Model(config)).save_pretrained(folder)
    return folder
