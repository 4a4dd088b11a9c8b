"""Pictures as people have them: formats, modes, orientation, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from actors.images import decode
from actors.images.decode import Picture, decode_picture, picture_size
from actors.images.errors import UnfitPicture
from actors.images.jpeg import ended
from actors.images.pixels import unpack_pixels
from actors.images.settings import PictureSettings
from actors.looks import kind_of, look_of

# A picture of 84 x 56 pixels is not resized, so that pixels can be compared.
SETTINGS = PictureSettings(3136, 602_112)
IGNORED = PictureSettings(3136, 602_112, exif="ignore", alpha="drop")
SIZE = (84, 56)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decoded(data: bytes, settings: PictureSettings = SETTINGS) -> np.ndarray[Any, Any]:
    return unpack_pixels(decode_picture(data, settings).pixels)


def plain(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, SIZE, colour)


def cornered() -> Image.Image:
    """White, red at the upper left."""
    image = plain("RGB", "white")
    image.paste((255, 0, 0), (0, 0, 42, 28))
    return image


def grey_of(data: bytes) -> int:
    """The one level of a grey picture."""
    pixels = decoded(data)
    assert pixels.min() == pixels.max()
    return int(pixels[0, 0, 0])


def refused(data: bytes) -> UnfitPicture:
    with pytest.raises(UnfitPicture) as caught:
        decode_picture(data, SETTINGS)
    with pytest.raises(UnfitPicture):
        decode_picture(data, IGNORED)
    return caught.value


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_profile(image: Image.Image, kind: str, profile: bytes) -> bytes:
    return saved(image, kind, icc_profile=profile, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "MPO"])
def test_formats_are_decoded_and_sized_by_their_header(kind):
    options = (
        {"quality": 100, "lossless": True} if kind == "WEBP" else {"quality": 100} if kind in ("JPEG", "MPO") else {}
    )
    data = saved(cornered(), kind, **options)
    assert kind_of(data[:2048]) == "picture"
    assert picture_size(data) == picture_size(io.BytesIO(data)) == (56, 84)
    pixels = decoded(data).astype(int)
    assert abs(pixels[10, 10] - (255, 0, 0)).max() < 4
    assert abs(pixels[40, 60] - 255).max() < 4


@pytest.mark.parametrize(
    ("image", "kind", "level"),
    [
        (plain("1", 1), "PNG", 255),
        (plain("1", 0), "TIFF", 0),
        (plain("L", 77), "JPEG", 77),
        (plain("L", 77), "TIFF", 77),
        (plain("P", 9), "PNG", 9),
        (plain("LA", (0, 128)), "PNG", 127),
        (plain("RGBA", (0, 0, 0, 0)), "PNG", 255),
        (plain("RGBA", (0, 0, 0, 0)), "WEBP", 255),
        (plain("I;16", 77 * 257), "PNG", 77),
        (plain("I;16", 77 * 257), "TIFF", 77),
        (plain("I;16B", 77 * 257), "TIFF", 77),
        (plain("I", 77), "TIFF", 77),
        (plain("I", 77 * 257), "TIFF", 77),
        (plain("F", 77 / 255), "TIFF", 77),
        (plain("F", 77.0), "TIFF", 77),
        (plain("F", 77.0 * 257), "TIFF", 77),
        (plain("F", float("nan")), "TIFF", 0),
        (plain("CMYK", (0, 0, 0, 178)), "TIFF", 77),
        (plain("CMYK", (0, 0, 0, 178)), "JPEG", 77),
        (plain("YCbCr", (77, 128, 128)), "TIFF", 77),
        (plain("LAB", (128, 128, 128)), "TIFF", 119),
    ],
    ids=lambda value: getattr(value, "mode", str(value)),
)
def test_grey_of_every_mode_keeps_its_level(image, kind, level):
    options = {"palette": None} if image.mode == "P" else {"quality": 100} if kind == "JPEG" else {}
    if image.mode == "P":
        image.putpalette([step for grey in range(256) for step in (grey,) * 3])
    assert abs(grey_of(saved(image, kind, **options)) - level) <= 1


def test_sixteen_bits_of_colour_and_alpha_are_scaled():
    row = b"\x00" + struct.pack(">HHHH", 77 * 257, 77 * 257, 77 * 257, 65535) * 84
    assert grey_of(png(84, 56, 16, 6, row * 56)) == 77
    clear = b"\x00" + struct.pack(">HH", 77 * 257, 0) * 84
    assert grey_of(png(84, 56, 16, 4, clear * 56)) == 255


def test_a_tiff_whose_white_is_zero_is_turned_round():
    tiff = bytearray(saved(plain("I;16", 65535), "TIFF"))
    place = tiff.index(struct.pack("<HHI", 262, 3, 1))
    tiff[place + 8 : place + 10] = b"\x00\x00"
    assert grey_of(bytes(tiff)) == 0


def test_transparency_is_drawn_on_white_or_dropped():
    red = plain("RGBA", (255, 0, 0, 0))
    assert decoded(saved(red, "PNG")).min() == 255
    assert decoded(saved(red, "PNG"), IGNORED)[0, 0].tolist() == [255, 0, 0]
    keyed = saved(plain("RGB", (255, 0, 0)), "PNG", transparency=(255, 0, 0))
    assert decoded(keyed).min() == 255
    assert decoded(keyed, IGNORED)[0, 0].tolist() == [255, 0, 0]
    palette = plain("P", 0)
    palette.putpalette([255, 0, 0] * 256)
    for kind in ("PNG", "GIF"):
        data = saved(palette, kind, transparency=0)
        assert decoded(data).min() == 255
        assert decoded(data, IGNORED)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mark", range(10))
def test_pictures_are_turned_as_their_exif_data_say(kind, mark):
    """The mark says how the stored picture is turned to stand upright: Pillow's own transposing is the oracle."""
    exif = Image.Exif()
    exif[0x0112] = mark
    image = cornered()
    data = saved(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    turns = [None, None, *(Image.Transpose(turn) for turn in (0, 3, 1, 5, 4, 6, 2)), None]
    turn = turns[mark]
    wanted = np.asarray(image if turn is None else image.transpose(turn))
    pixels = decoded(data)
    assert pixels.shape == wanted.shape
    assert picture_size(data) == wanted.shape[:2]
    assert abs(pixels[::9, ::9].astype(int) - wanted[::9, ::9]).mean() < 5
    if kind != "TIFF":  # there the mark is part of the format
        assert decoded(data, IGNORED).shape == (56, 84, 3)
        assert picture_size(data, "ignore") == (56, 84)


def test_damaged_exif_data_do_not_cost_the_picture():
    for damaged in (b"Exif\x00\x00", b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff"):
        assert decoded(saved(cornered(), "JPEG", exif=damaged)).shape == (56, 84, 3)
        assert picture_size(saved(cornered(), "PNG", exif=damaged)) == (56, 84)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colours_of_another_profile_become_srgb(kind):
    swapped = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for place in range(128, len(swapped)):  # a profile whose red and blue are exchanged
        name = bytes(swapped[place : place + 4])
        if name in (b"rXYZ", b"bXYZ") and place < 500:
            swapped[place : place + 4] = b"bXYZ" if name == b"rXYZ" else b"rXYZ"
    swapped = bytearray(bytes(swapped).replace("sRGB".encode("utf-16-be"), "BGRs".encode("utf-16-be")))
    red = plain("RGB", (255, 0, 0))
    assert abs(decoded(with_profile(red, kind, bytes(swapped)))[0, 0].astype(int) - (0, 0, 255)).max() < 12
    broken = decode_picture(with_profile(red, kind, b"no profile at all" * 20), SETTINGS)
    assert abs(unpack_pixels(broken.pixels)[0, 0].astype(int) - (255, 0, 0)).max() < 12
    assert "colour profile" in broken.notes[0]


@pytest.mark.parametrize("mark", [1, 6])
def test_a_jpeg_that_needs_too_much_memory_is_decoded_at_a_smaller_size(monkeypatch, mark):
    exif = Image.Exif()
    exif[0x0112] = mark
    image = cornered().resize((671, 447), Image.Resampling.BICUBIC)
    small = PictureSettings(3136, 10_000)
    data = saved(image, "JPEG", exif=exif, quality=95)
    full = decoded(data, small)
    monkeypatch.setattr(decode, "LIMIT_BYTES", 671 * 447 * 3)
    assert picture_size(data) == ((447, 671) if mark == 1 else (671, 447))
    half = decoded(data, small)
    assert half.shape == full.shape
    assert 0 < abs(half.astype(int) - full).max() < 24
    assert "671 x 447 pixels of this JPEG take" in str(refused(data))  # half is not twice as large as the result
    assert refused(saved(image, "PNG")).reason == "too_many_pixels"
    assert decoded(saved(image.convert("L"), "PNG")).shape == (448, 672, 3)


def test_a_picture_in_srgb_is_left_as_it_is():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decoded(with_profile(noise, "PNG", profile)), np.asarray(noise))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_decoded_and_frames_are_counted(kind):
    frames = [plain("RGB", colour) for colour in ("red", "blue", "lime")]
    data = saved(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    picture = decode_picture(data, SETTINGS)
    assert picture.frames == 3
    assert unpack_pixels(picture.pixels)[0, 0].tolist() == [255, 0, 0]
    assert decode_picture(saved(frames[0], "PNG"), SETTINGS) == Picture(picture.pixels, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_what_follows_a_picture_does_not_matter_but_what_is_cut_does(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8))
    data = saved(noise, kind)
    assert np.array_equal(decoded(data + b"junk" * 100), decoded(data))
    for part in (2, 3):
        assert refused(data[: len(data) // part]).reason == "bad_picture"


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 1}])
def test_a_jpeg_may_lack_its_end_mark_and_no_pixel(options):
    noise = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    noise[:, 42:] = 99
    data = saved(Image.fromarray(noise), "JPEG", **options)
    whole = decoded(data)
    for cut in (data[:-1], data[:-2]):
        assert np.array_equal(decoded(cut), whole)
    ends = [*range(data.index(b"\xff\xda"), len(data) - 20, 13), *range(len(data) - 20, len(data) - 3)]
    assert [end for end in ends if ended(data[:end]) is not None] == []
    assert ended(data[:-200] + bytes(200)) is None


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", "bad_picture", "empty"),
        (b"plain text, named .png", "bad_picture", "the file is text"),
        (b"<html><body>404", "bad_picture", "an HTML page"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "bad_picture", "an SVG drawing"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "bad_picture", "a HEIC picture"),
        (b"\x1f\x8b\x08\x00", "bad_picture", "gzip data"),
        (b"version https://git-lfs.github.com/spec/v1", "bad_picture", "a Git LFS pointer"),
        (b"%PDF-1.7", "bad_picture", "a PDF"),
        (bytes(range(256)), "bad_picture", "no known format"),
        (b"\x89PNG\r\n\x1a\n", "bad_picture", "damaged"),
        (b"BM" + bytes(12) + b"\x28" + bytes(40), "bad_picture", "damaged"),
        (png(0, 10, 8, 0, b""), "bad_picture", "damaged"),
        (png(60_000, 60_000, 1, 0, b""), "too_many_pixels", "178,956,970"),
        (png(2_010, 10, 8, 0, bytes(20_110)), "bad_shape", "200 times"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8L\x00\x00\x00\x00\x2f\xff\xff\xff\x0f" + bytes(9), "too_many_pixels", "16384 x 16384"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8X\x00\x00\x00\x00" + bytes(4) + b"\xff" * 6, "too_many_pixels", "16777216"),
    ],
    ids=lambda value: repr(value)[:24],
)  # fmt: skip
def test_what_cannot_be_embedded_is_refused_with_a_reason(data, reason, words):
    error = refused(data)
    assert error.reason == reason
    assert words in str(error)


def test_a_gif_named_otherwise_is_told_by_its_bytes(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved(cornered(), "GIF"))
    assert picture_size(str(path)) == (56, 84)
    assert look_of(path.read_bytes()) == "a GIF picture"
    assert kind_of(b"BM is how this text begins") is None
    assert kind_of(b"junk\n%PDF-1.4\n") == "pdf"
    for archive in (b"PK\3\4 a.pdf", b"a.pdf".ljust(257, b"\0") + b"ustar\0"):
        assert kind_of(archive + b"%PDF-1.4\n") is None
    assert kind_of(b"text that names %PDF without a version") is None
