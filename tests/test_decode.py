"""Images as files: what is learnt is what a viewer shows, for every kind that Pillow reads."""

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor

from data.decode import TURNS, Rendering, colour, crop_box, cut_off, eight_bit, render, seen_size
from data.errors import DataError

H, W = 24, 32
WHITE = Rendering((H, W), 3, "crop", (255, 255, 255))


def smooth(channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 (H, W, C) without sharp edges, so that lossy formats stay near it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, channels), dtype=np.uint8)
    planes = [
        Image.fromarray(coarse[..., c]).resize((W, H), Image.Resampling.BICUBIC)
        for c in range(channels)
    ]
    return np.stack([np.array(plane) for plane in planes], axis=-1)


def stored(image: Image.Image, kind: str, **options) -> Image.Image:
    """Written and opened again."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def pixels(x: Tensor) -> np.ndarray:
    """(C, H, W) as (H, W, C)."""
    return x.permute(1, 2, 0).numpy()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The mean difference, of 255."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


RGB = Image.fromarray(smooth())
EXACT = ["PNG", "BMP", "TIFF", "GIF", "PPM", "TGA", "PCX", "SGI", "QOI", "DDS"]
LOSSY = ["JPEG", "WEBP", "JPEG2000", "AVIF", "MPO"]


@pytest.mark.parametrize("kind", [*EXACT, *LOSSY])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
def test_every_format_and_mode_is_learnt_as_pillow_shows_it(kind, mode):
    image = RGB.convert(mode)
    try:
        opened = stored(image, kind, quality=95)
    except (OSError, KeyError, ValueError):
        pytest.skip(f"Pillow writes no {mode} as {kind}")
    shown = np.array(stored(image, kind, quality=95).convert("RGB"))
    learnt, size = render(opened, WHITE)
    assert size == (H, W)
    assert np.array_equal(pixels(learnt), shown)
    assert distance(pixels(learnt), np.array(image.convert("RGB"))) < (
        13 if kind in (*LOSSY, "GIF") else 0.1
    )
    assert distance(pixels(learnt), smooth(seed=1)) > 20  # control


@pytest.mark.parametrize("turn", [1, *TURNS])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_orientation_is_applied(kind, turn, mode):
    upright = np.array(RGB) if mode == "RGB" else smooth(1)[..., 0].astype(np.uint16) * 257
    if mode == "I;16" and kind in ("JPEG", "WEBP"):
        pytest.skip("8 bits a channel")
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(turn, turn)  # the inverse
    held = Image.fromarray(upright)
    held = held.transpose(TURNS[back]) if back in TURNS else held
    exif = Image.Exif()
    exif[0x0112] = turn
    learnt, size = render(stored(held, kind, exif=exif, quality=95), WHITE)
    assert size == (H, W)
    expected = upright if mode == "RGB" else (upright // 257)[..., None].repeat(3, -1)
    assert distance(pixels(learnt), expected) < 9
    if turn > 1:  # control: as it lies in the file
        assert distance(pixels(render(stored(held, kind), WHITE)[0]), expected) > 20


ALPHA = smooth(1, seed=2)[..., 0]


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 30)])
@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGBA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF"), ("LA", "PNG"), ("LA", "TGA")],
)
def test_transparency_is_composed_over_the_background(mode, kind, background):
    image = RGB.convert(mode[:-1])
    image.putalpha(Image.fromarray(ALPHA))
    assert image.mode == mode
    how = Rendering((H, W), 3, "crop", background)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    learnt = pixels(render(stored(image, kind, **options), how)[0])
    a = ALPHA[..., None] / 255
    over = np.array(image.convert("RGB")) * a + np.array(background) * (1 - a)
    assert np.abs(learnt - over).max() <= 1
    assert distance(learnt, np.array(image.convert("RGB"))) > 20  # control: what lies below


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_orientation_that_is_none_turns_nothing(value):
    exif = Image.Exif()
    exif[0x0112] = value
    for kind in ("PNG", "JPEG"):
        opened = stored(RGB, kind, exif=exif, quality=95)
        assert seen_size(opened) == (H, W)
        learnt, size = render(opened, WHITE)
        assert size == (H, W)
        assert distance(pixels(learnt), np.array(RGB)) < 9


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def png(rows: bytes, width: int, bits: int, colour_type: int, transparent: bytes) -> Image.Image:
    """One row of pixels, of depths that Pillow does not write."""
    header = width.to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([bits, colour_type, 0, 0, 0])
    parts = chunk(b"IHDR", header) + chunk(b"tRNS", transparent)
    parts += chunk(b"IDAT", zlib.compress(b"\0" + rows)) + chunk(b"IEND", b"")
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + parts))


def test_a_transparent_value_is_of_the_depth_of_the_file():
    how = Rendering((1, 2), 3, "crop", (1, 2, 3))
    deep = b"".join(v.to_bytes(2, "big") for v in (100, 100, 100, 25700, 25700, 25700))
    learnt, _ = render(png(deep, 2, 16, 2, b"\0d\0d\0d"), how)  # 100 of 65,535 is nearly black
    assert pixels(learnt).tolist() == [[[1, 2, 3], [100, 100, 100]]]
    near = b"".join(v.to_bytes(2, "big") for v in (25700, 25700, 25700, 25700, 25700, 25701))
    learnt, _ = render(png(near, 2, 16, 2, b"dddddd"), how)  # the second one is not it
    assert pixels(learnt).tolist() == [[[1, 2, 3], [100, 100, 100]]]
    learnt, _ = render(png(bytes([0b0110 << 4]), 2, 2, 0, b"\0\x01"), how)  # values 1 and 2 of 3
    assert pixels(learnt).tolist() == [[[1, 2, 3], [170, 170, 170]]]


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1", "I;16"])
def test_a_transparent_colour_shows_the_background(mode):
    if mode == "I;16":
        image, key = (
            Image.fromarray((np.arange(H * W).reshape(H, W) % 7 * 9000).astype(np.uint16)),
            0,
        )
        clear = np.array(image) == 0
    else:
        image = RGB.convert(mode)
        values = np.array(image)
        key = tuple(values[0, 0].tolist()) if mode == "RGB" else int(values[0, 0])
        clear = (values == values[0, 0]).all(-1) if mode == "RGB" else values == values[0, 0]
        key = 255 * key if mode == "1" else key
    how = Rendering((H, W), 3, "crop", (1, 2, 3))
    learnt = pixels(render(stored(image, "PNG", transparency=key), how)[0])
    assert (learnt[clear] == (1, 2, 3)).all()
    assert not (learnt[~clear] == (1, 2, 3)).all(-1).any()


def test_four_channels_keep_what_is_transparent():
    image = RGB.copy()
    image.putalpha(Image.fromarray(ALPHA))
    learnt, _ = render(stored(image, "PNG"), Rendering((H, W), 4, "crop", (255, 255, 255)))
    seen = ALPHA > 0
    assert np.array_equal(pixels(learnt)[seen], np.array(image)[seen])
    assert not seen.all()
    assert (pixels(learnt)[~seen] == 0).all()  # whatever lies under it
    opaque, _ = render(stored(RGB, "PNG"), Rendering((H, W), 4, "crop", (255, 255, 255)))
    assert (opaque[3] == 255).all()


def tiff(values: np.ndarray, **tags) -> Image.Image:
    from PIL import TiffImagePlugin

    names = {"white": 341, "black": 340, "photometric": 262}
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[names[name]] = value
    return stored(Image.fromarray(values), "TIFF", tiffinfo=info)


GREY = smooth(1)[..., 0]
DEEP = {
    "16-bit PNG": lambda: stored(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
    "16-bit TIFF": lambda: tiff(GREY.astype(np.uint16) * 257),
    "16-bit PGM": lambda: stored(Image.fromarray(GREY.astype(np.int32) * 257), "PPM"),
    "float TIFF with its range": lambda: tiff(GREY / np.float32(255), white=1.0, black=0.0),
    "32-bit TIFF with its range": lambda: tiff(GREY.astype(np.int32) * 10, white=2550, black=0),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_pixels_are_scaled_by_what_the_file_says(kind):
    learnt, _ = render(DEEP[kind](), Rendering((H, W), 1, "crop", (255, 255, 255)))
    assert np.array_equal(learnt[0].numpy(), GREY)
    assert DEEP[kind]().mode not in ("L", "RGB")  # control: it is deep


def test_a_white_zero_is_white():
    learnt, _ = render(tiff(GREY.astype(np.uint16) * 257, photometric=0), WHITE)
    assert np.array_equal(learnt[0].numpy(), 255 - GREY)


def test_signed_bytes_are_refused_instead_of_being_wrapped():
    """Pillow reads them as if they were unsigned: -1 would be white."""
    image = tiff(GREY)
    image.tag_v2[339] = 2
    with pytest.raises(ValueError, match="signed, of no stated range"):
        render(image, WHITE)
    learnt, _ = render(tiff(GREY), WHITE)  # control
    assert np.array_equal(learnt[0].numpy(), GREY)


@pytest.mark.parametrize(
    "values",
    [GREY / np.float32(255), GREY.astype(np.int32), np.full((H, W), np.nan, np.float32)],
    ids=["float", "32 bits", "NaN"],
)
def test_deep_pixels_of_unknown_range_are_refused(values):
    with pytest.raises(ValueError, match="no stated range"):
        render(tiff(values), WHITE)
    with pytest.raises(ValueError, match="outside the range"):
        render(
            tiff(values, white=0.5, black=0.25)
            if values.dtype == np.float32
            else tiff(values, white=9, black=0),
            WHITE,
        )


def test_cmyk_and_lab_become_rgb():
    for mode in ("CMYK", "YCbCr"):
        learnt, _ = render(stored(RGB.convert(mode), "TIFF"), WHITE)
        assert distance(pixels(learnt), np.array(RGB)) < 3
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(RGB, srgb, lab, outputMode="LAB")
    assert distance(pixels(render(stored(image, "TIFF"), WHITE)[0]), np.array(RGB)) < 8
    jpeg = stored(RGB.convert("CMYK"), "JPEG", quality=95)
    assert distance(pixels(render(jpeg, WHITE)[0]), np.array(RGB)) < 4


def test_an_animation_is_its_first_frame():
    frames = [Image.fromarray(smooth(seed=n)) for n in range(3)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        animated = stored(frames[0], kind, save_all=True, append_images=frames[1:])
        assert animated.n_frames == 3
        learnt = pixels(render(animated, WHITE)[0])
        assert distance(learnt, smooth()) < 8 < distance(learnt, smooth(seed=1))


def gif(screen: tuple[int, int], at: tuple[int, int], mode: str, **options) -> Image.Image:
    """RGB as an animation's first frame at (x, y) of a larger screen."""
    file = io.BytesIO()
    RGB.convert(mode).save(file, "GIF", optimize=False, **options)
    content = bytearray(file.getvalue())
    content[6:10] = b"".join(side.to_bytes(2, "little") for side in screen)
    table = 3 * 2 ** ((content[10] & 7) + 1) if content[10] & 128 else 0
    frame = content.index(b",", 13 + table)  # the image descriptor
    content[frame + 1 : frame + 5] = b"".join(side.to_bytes(2, "little") for side in at)
    return Image.open(io.BytesIO(content))


def webp(screen: tuple[int, int], at: tuple[int, int], alpha: bool) -> Image.Image:
    """RGB as an animation's first frame at even (x, y) of a larger canvas with a red background."""
    file = io.BytesIO()
    RGB.save(file, "WEBP", lossless=True)
    sides = (at[0] // 2, at[1] // 2, W - 1, H - 1, 100)
    frame = b"".join(n.to_bytes(3, "little") for n in sides) + b"\0" + file.getvalue()[12:]
    canvas = b"".join((side - 1).to_bytes(3, "little") for side in screen)
    parts = [(b"VP8X", bytes([2 + 16 * alpha, 0, 0, 0]) + canvas)]
    parts += [(b"ANIM", b"\0\0\xff\xff\0\0"), (b"ANMF", frame), (b"ANMF", frame)]
    body = b"".join(
        name + len(part).to_bytes(4, "little") + part + bytes(len(part) % 2) for name, part in parts
    )
    length = (len(body) + 4).to_bytes(4, "little")
    return Image.open(io.BytesIO(b"RIFF" + length + b"WEBP" + body))


FRAMES = {
    "GIF": lambda screen, at: gif(screen, at, "P"),
    "grey GIF": lambda screen, at: gif(screen, at, "L"),
    "GIF with a transparent colour": lambda screen, at: gif(screen, at, "P", transparency=255),
    "WebP": lambda screen, at: webp(screen, at, alpha=False),
    "WebP with alpha": lambda screen, at: webp(screen, at, alpha=True),
}


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 30)])
def test_a_first_frame_smaller_than_the_canvas_lies_on_the_background(kind, background):
    """As viewers show it; within the frame it is Pillow's own rendering."""
    size, (x, y) = (H + 8, W + 6), (4, 2)
    how = Rendering(size, 3, "crop", background)
    learnt, shown = render(FRAMES[kind]((W + 6, H + 8), (x, y)), how)
    assert shown == size
    above = FRAMES[kind]((W + 6, H + 8), (x, y)).convert("RGBA")
    canvas = Image.new("RGBA", above.size, (*background, 255))
    canvas.alpha_composite(above)
    inside = np.zeros(size, bool)
    inside[y : y + H, x : x + W] = True
    assert np.array_equal(pixels(learnt)[inside], np.array(canvas.convert("RGB"))[inside])
    assert (pixels(learnt)[~inside] == background).all()
    if kind in ("GIF", "grey GIF", "WebP"):  # control: Pillow alone fills the rest
        assert not (np.array(canvas.convert("RGB"))[~inside] == background).all()
    clear, _ = render(
        FRAMES[kind]((W + 6, H + 8), (x, y)), Rendering(size, 4, "crop", (255, 255, 255))
    )
    assert not clear[3].numpy()[~inside].any()
    whole, _ = render(FRAMES[kind]((W, H), (0, 0)), Rendering((H, W), 3, "crop", background))
    assert np.array_equal(pixels(whole), pixels(learnt)[y : y + H, x : x + W])


# Sizes.


def test_an_image_of_the_size_that_is_learnt_is_not_touched():
    for fit in ("crop", "pad", "stretch"):
        learnt, _ = render(stored(RGB, "PNG"), Rendering((H, W), 3, fit, (0, 0, 0)))
        assert np.array_equal(pixels(learnt), np.array(RGB))


def test_cropping_keeps_the_middle():
    learnt, _ = render(stored(RGB, "PNG"), Rendering((H, 16), 3, "crop", (0, 0, 0)))
    assert np.array_equal(pixels(learnt), np.array(RGB)[:, 8:24])
    assert crop_box((32, 24), (24, 16)) == (8, 0, 24, 24)
    assert cut_off((24, 32), (24, 16)) == pytest.approx(0.5)
    assert cut_off((24, 32), (48, 64)) == pytest.approx(0)


def test_padding_keeps_all_and_fills_with_the_background():
    learnt, _ = render(stored(RGB, "PNG"), Rendering((40, W), 3, "pad", (9, 8, 7)))
    assert np.array_equal(pixels(learnt)[8:32], np.array(RGB))
    assert (pixels(learnt)[:8] == (9, 8, 7)).all()
    clear, _ = render(stored(RGB, "PNG"), Rendering((40, W), 4, "pad", (9, 8, 7)))
    assert (clear[3, :8] == 0).all()
    grey, _ = render(stored(RGB, "PNG"), Rendering((40, W), 1, "pad", (9, 9, 9)))
    assert (grey[0, :8] == 9).all()


def test_stretching_keeps_the_corners():
    learnt, _ = render(stored(RGB, "PNG"), Rendering((48, 32), 3, "stretch", (0, 0, 0)))
    assert distance(pixels(learnt)[[0, -1], [0, -1]], np.array(RGB)[[0, -1], [0, -1]]) < 3


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size():
    """A mean difference under one of 255 from decoding it in full."""
    large = Image.fromarray(smooth()).resize((16 * W, 16 * H), Image.Resampling.BICUBIC)
    jpeg = stored(large, "JPEG", quality=95)
    whole = stored(large, "JPEG", quality=95).resize((W, H), Image.Resampling.BICUBIC)
    learnt, size = render(jpeg, WHITE)
    assert size == (16 * H, 16 * W)
    assert jpeg.size == (2 * W, 2 * H)  # decoded so
    assert distance(pixels(learnt), np.array(whole)) < 1


def test_background_colours():
    assert colour("white") == (255, 255, 255)
    assert colour("#0a1b2c") == (10, 27, 44)
    with pytest.raises(DataError, match="--background takes white"):
        colour("whitish")


def test_eight_bit_leaves_eight_bits_alone():
    assert eight_bit(RGB) is RGB
    assert torch.equal(render(RGB.copy(), WHITE)[0], render(RGB.copy(), WHITE)[0])
