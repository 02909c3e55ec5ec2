"""The mini prior's autoencoder: an `AutoencoderTiny` whose encoder is exactly space-to-depth.

A learned encoder would throw detail away that a 64^2 image cannot spare, and would stand between the renders and the
prior's gradient. `AutoencoderTiny` without blocks is a chain of linear convolutions, so its weights can be written
down: two stride-2 convolutions gather each 4 x 4 block of pixels into 48 channels. Diffusers loads it like any other
autoencoder. The decoder is a normal learned one, since nearest-neighbour upsampling cannot undo space-to-depth exactly;
it is used to look at samples, never in a loss.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny

NUM_LATENT_CHANNELS = 48


def build_pixel_codec(decoder_channels: int = 64, decoder_blocks: tuple[int, int, int] = (2, 1, 1)) -> AutoencoderTiny:
    """An autoencoder from images (B, 3, H, W) in [-1, 1] to latents (B, 48, H/4, W/4) in [-1, 1].

    Latent channel 12 * p + 3 * q + c holds colour c at sub-pixel p of the inner 2 x 2 cell q; the encoder's weights are
    fixed, the decoder's are random until trained.
    """
    channels = NUM_LATENT_CHANNELS
    codec = AutoencoderTiny(
        in_channels=3,
        out_channels=3,
        latent_channels=channels,
        encoder_block_out_channels=(channels,) * 3,
        decoder_block_out_channels=(decoder_channels,) * 3,
        num_encoder_blocks=(0, 0, 0),
        num_decoder_blocks=decoder_blocks,
        scaling_factor=1.0,
    )
    first, inner, outer, last = codec.encoder.layers
    with torch.no_grad():
        for layer in (first, inner, outer, last):
            layer.weight.zero_()
            if layer.bias is not None:
                layer.bias.zero_()
        for color in range(3):
            first.weight[color, color, 1, 1] = 1
        for layer, width in ((inner, 3), (outer, 12)):
            # A stride-2 kernel with padding 1 sees columns 2i-1, 2i, 2i+1: its taps 1 and 2 are the cell's two pixels.
            for row in range(2):
                for column in range(2):
                    for channel in range(width):
                        layer.weight[(2 * row + column) * width + channel, channel, 1 + row, 1 + column] = 1
        # The encoder maps [-1, 1] to [0, 1] on entry; undo that here.
        for channel in range(channels):
            last.weight[channel, channel, 1, 1] = 2
        last.bias.fill_(-1)
    codec.encoder.requires_grad_(False)
    return codec
