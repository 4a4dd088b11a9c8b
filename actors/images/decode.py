"""Pictures as files: decoded by Pillow to the pixels that a model gets.

Formats and modes that Pillow converts to black, white or noise are handled here: more than eight bits, transparency,
colour profiles, EXIF orientation. Pillow is imported on use.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from actors.images.errors import UnfitPicture
from actors.images.pixels import fit, resized
from actors.images.settings import PictureSettings
from actors.looks import HEAD_BYTES, look_of, picture_format

if TYPE_CHECKING:
    from PIL import Image

MAX_DECODED_PIXELS = 178_956_970  # Pillow's own limit; an A0 scan at 300 dpi has 139 million

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")  # a plugin that is not listed never sees the bytes
_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Picture:
    """Decoded picture or page.

    Attributes:
        pixels: Binary form of the resized pixels (`actors.images.pixels`).
        frames: Number of frames of an animation, or pages of a TIFF; only the first is decoded.
        notes: Sentences about what could not be obeyed, such as a damaged colour profile.
        text: Text layer of a page of a PDF, if it was asked for.
    """

    pixels: bytes
    frames: int = 1
    notes: tuple[str, ...] = ()
    text: str | None = None


def decode_picture(data: bytes, settings: PictureSettings) -> Picture:
    """Return the picture in a file, decoded and resized.

    Raises:
        UnfitPicture: it is damaged, too large, of no area, or of a format that is not read.
    """
    notes: list[str] = []
    with _opened(data) as image:
        resized(image.height, image.width, settings)  # refuses its shape before a pixel is decoded
        plain = plain_image(image, settings, notes)
        return Picture(fit(plain, settings), _frames(image), tuple(notes))


def plain_image(image: Image.Image, settings: PictureSettings, notes: list[str]) -> Image.Image:
    """Return an image of Pillow upright, without transparency, in sRGB, as L or RGB of eight bits; may change the image."""
    image.load()
    profile = image.info.get("icc_profile")
    plain = image if settings.exif == "ignore" else _upright(image)
    return _in_srgb(_opaque(_eight_bits(plain, image), settings), profile, notes)


def picture_size(source: bytes | str | BinaryIO, exif: str = "rotate") -> tuple[int, int]:
    """Return height and width by the header of a file, turned as its EXIF data say; decodes no pixel.

    Raises:
        UnfitPicture: the header is damaged, or says that the picture is too large.
    """
    with _opened(source) as image:
        # Pillow has obeyed the mark of a TIFF already. For a PNG without EXIF data in front it would decode the pixels.
        looks = exif == "rotate" and image.format != "TIFF"
        if looks and (image.format != "PNG" or {"exif", "Raw profile type exif"} & image.info.keys()):
            return (image.width, image.height) if _orientation(image) >= 5 else (image.height, image.width)
        return image.height, image.width


@contextmanager
def _opened(source: bytes | str | BinaryIO) -> Iterator[Image.Image]:
    """Open a picture by its header, and turn all that Pillow raises or warns of meanwhile into `UnfitPicture`."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, bytes | str):
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file, _opened(file) as image:
            yield image
        return
    head = source.read(HEAD_BYTES)
    source.seek(0)
    name = picture_format(head)
    if name is None:
        raise UnfitPicture("bad_picture", f"the file is {look_of(head)}; read are JPEG, PNG, WebP, TIFF, GIF and BMP")
    if name == "WebP":  # Pillow's plugin allocates the whole canvas when it opens the file
        _check_size(*_webp_size(head))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(source, formats=_FORMATS) as image:
                _check_size(image.width, image.height)
                yield image
        except UnfitPicture:
            raise
        except Image.DecompressionBombError:
            raise UnfitPicture("too_many_pixels", f"more than {MAX_DECODED_PIXELS:,} pixels") from None
        except UnidentifiedImageError:
            raise UnfitPicture("bad_picture", f"the header of the {name} is damaged") from None
        except MemoryError:
            raise UnfitPicture("too_many_pixels", f"the {name} does not fit into the memory of its process") from None
        except Exception as error:  # noqa: BLE001  (Pillow raises OSError, SyntaxError, struct.error and more)
            raise UnfitPicture("bad_picture", f"the {name} is damaged: {str(error) or type(error).__name__}") from None


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height in the header of a WebP."""
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_DECODED_PIXELS:
        raise UnfitPicture("too_many_pixels", f"{width} x {height} pixels are more than {MAX_DECODED_PIXELS:,}")


def _frames(image: Image.Image) -> int:
    """Number of frames; 1 if those behind the first are damaged. The image cannot be used afterwards."""
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # noqa: BLE001  (the first frame is whole)
        return 1


def _orientation(image: Image.Image) -> int:
    """Orientation in the EXIF data; 1 is upright."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  (Pillow raises even SyntaxError for EXIF data that are cut; the pixels are whole)
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    turn = turns.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Grey of more than eight bits as eight bits; other images unchanged.

    16 bits are scaled by their full range, or by that of fewer bits that a TIFF names. Numbers of 32 bits have no known
    range: their largest value decides whether white is 1 (floats only), 255, 65,535 or that value itself.
    """
    from PIL import Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    tags: Any = getattr(opened, "tag_v2", {})
    values: npt.NDArray[Any] = np.asarray(image)
    if image.mode == "I" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1:
        values = values.view(np.uint32)  # Pillow reads unsigned numbers as signed ones
    if image.mode in ("I", "F"):
        top = float(np.nanmax(values, initial=0, where=np.isfinite(values)))
        steps = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((step for step in steps if top <= step), top)
    else:
        bits = tags.get(_BITS, (16,))[0]
        white = float(2 ** (bits if 8 < bits < 16 else 16) - 1)
    grey = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _ROWS_AT_ONCE):
        part = np.nan_to_num(values[start : start + _ROWS_AT_ONCE].astype(np.float32), nan=0.0) * (255.0 / white)
        grey[start : start + _ROWS_AT_ONCE] = np.clip(np.rint(part), 0, 255)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero
        np.subtract(255, grey, out=grey)
    return Image.fromarray(grey)


def _opaque(image: Image.Image, settings: PictureSettings) -> Image.Image:
    """The image without transparency and palette, as L, RGB, CMYK or LAB."""
    from PIL import Image

    if image.mode in ("1", "L", "RGB") and "transparency" in image.info:
        image = image.convert("RGBA" if settings.alpha == "white" else "RGB")
    elif image.mode in ("P", "PA", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "RGBA"):
        mode = "L" if image.mode == "LA" else "RGB"
        if settings.alpha == "drop":
            return image.convert(mode)
        canvas = Image.new(mode, image.size, "white")
        canvas.paste(image.convert("L") if mode == "L" else image, mask=image)
        return canvas
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _in_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """The image as L or RGB, converted to sRGB if it has another colour profile."""
    if image.mode == "LAB":
        profile = b"LAB"
    if profile:
        from PIL import ImageCms

        try:
            transform = _to_srgb(profile, image.mode)
            if transform is None:
                return image
            if image.mode == "RGB":
                ImageCms.applyTransform(image, transform, inPlace=True)
                return image
            converted = ImageCms.applyTransform(image, transform)
            if converted is not None:
                return converted
        except Exception as error:  # noqa: BLE001  (a profile never costs the picture)
            notes.append(f"Its colours are as stored, because its colour profile cannot be used: {error}.")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


@lru_cache(maxsize=8)
def _to_srgb(profile: bytes, mode: str) -> Any:
    """The transform of a colour profile to sRGB; None if it is sRGB already."""
    from PIL import ImageCms

    if mode == "LAB":
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    else:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
