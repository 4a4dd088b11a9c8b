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
from actors.images.jpeg import ended
from actors.images.pixels import fit, resized, strips
from actors.images.settings import PictureSettings
from actors.looks import HEAD_BYTES, look_of, picture_format

if TYPE_CHECKING:
    from PIL import Image

MAX_DECODED_PIXELS = 178_956_970  # Pillow's own limit; an A0 scan at 300 dpi has 139 million
LIMIT_BYTES = 320_000_000  # of pixels; libraries and the resizing take up to 80 MB more
_WEBP_BYTES = 15  # of a pixel: its decoder keeps several frames in memory
_REDUCIBLE = ("JPEG", "MPO")

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")  # a plugin that is not listed never sees the bytes
_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF


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
    """Return the picture in a file, decoded and resized. A JPEG may lack its end mark.

    Raises:
        UnfitPicture: it is damaged, too large, of no area, or of a format that is not read.
    """
    try:
        return _decoded(data, settings)
    except UnfitPicture as error:
        if "truncated" not in error.error or picture_format(data) != "JPEG" or (whole := ended(data)) is None:
            raise
    return _decoded(whole, settings)


def _decoded(data: bytes, settings: PictureSettings) -> Picture:
    notes: list[str] = []
    with _opened(data) as image:
        height, width = resized(image.height, image.width, settings)  # refuses its shape before a pixel is decoded
        turned = settings.exif == "rotate" and _is_turned(image)
        is_reduced = _limit_memory(image, (width, height), turned=turned)
        plain = plain_image(image, settings, notes)
        size = (width, height) if turned else (height, width)  # also where it was decoded at a smaller size
        return Picture(fit(plain, settings, size if is_reduced else None), _frames(image), tuple(notes))


def _limit_memory(image: Image.Image, size: tuple[int, int], *, turned: bool) -> bool:
    """Let a JPEG that needs too much memory be decoded at a half, a quarter or an eighth of its width and height.

    Returns:
        Whether it is.

    Raises:
        UnfitPicture: it needs too much in each of these sizes that is at least twice `size`.
    """
    width, height = image.size
    scale, needed = 1, _decoded_bytes(image, 1, turned=turned)
    while needed > LIMIT_BYTES and scale < 8 and image.format in _REDUCIBLE:
        scale *= 2
        if width // scale < 2 * size[0] or height // scale < 2 * size[1]:
            break
        needed = _decoded_bytes(image, scale, turned=turned)
    if needed > LIMIT_BYTES:
        raise UnfitPicture(
            "too_many_pixels",
            f"{width} x {height} pixels of this {image.format} take {needed / 1e6:,.0f} MB, and a process that decodes "
            f"has {LIMIT_BYTES / 1e6:,.0f} MB for them",
        )
    if scale > 1:
        image.draft(None, (width // scale, height // scale))
    return scale > 1


def _decoded_bytes(image: Image.Image, scale: int, *, turned: bool) -> float:
    """Return the most memory that the pixels of an image take at once, by its header.

    Args:
        image: The image, before it is loaded.
        scale: It is decoded at this part of its width and height.
        turned: Whether it is turned.
    """
    loaded = {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if image.mode.startswith("I;16") else 4)
    converted = {"L": 0, "RGB": 0, "1": 1, "LA": 1}.get(image.mode, 1 if image.mode[0] in "IF" else 4)
    per_pixel = _WEBP_BYTES if image.format == "WEBP" else loaded + max(converted, loaded if turned else 0)
    layers: list[tuple[int, int, int, int]] = getattr(image, "layer", []) if image.info.get("progressive") else []
    largest = max((across * down for _, across, down, _ in layers), default=1)
    coefficients: float = sum(across * down for _, across, down, _ in layers) / largest  # of two bytes, at any scale
    return (per_pixel / scale**2 + 2 * coefficients) * image.width * image.height


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
        return (image.width, image.height) if exif == "rotate" and _is_turned(image) else (image.height, image.width)


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


def _is_turned(image: Image.Image) -> bool:
    """Return whether height and width change places, by the header alone."""
    # Pillow has obeyed the mark of a TIFF already. For a PNG without EXIF data in front it would decode the pixels.
    if image.format == "TIFF":
        return False
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return False
    return _orientation(image) >= 5


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
    is_unsigned = image.mode == "I" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1

    def parts() -> Iterator[tuple[tuple[int, int, int, int], npt.NDArray[Any]]]:
        for box in strips(image):
            values: npt.NDArray[Any] = np.asarray(image.crop(box))
            yield box, values.view(np.uint32) if is_unsigned else values  # Pillow reads unsigned numbers as signed ones

    if image.mode in ("I", "F"):
        top = max(float(np.nanmax(values, initial=0, where=np.isfinite(values))) for _, values in parts())
        steps = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((step for step in steps if top <= step), top)
    else:
        bits = tags.get(_BITS, (16,))[0]
        white = float(2 ** (bits if 8 < bits < 16 else 16) - 1)
    canvas = Image.new("L", image.size)
    for box, values in parts():
        part = np.nan_to_num(values.astype(np.float32), nan=0.0) * (255.0 / white)
        grey = np.clip(np.rint(part), 0, 255).astype(np.uint8)
        canvas.paste(Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC) == 0 else grey), box)  # 0: white is zero
    return canvas


def _opaque(image: Image.Image, settings: PictureSettings) -> Image.Image:
    """The image without transparency and palette, as L, RGB, CMYK or LAB."""
    from PIL import Image

    is_keyed = image.mode in ("1", "L", "RGB") and "transparency" in image.info
    if is_keyed and settings.alpha == "drop":
        return image.convert("RGB")
    if is_keyed or image.mode in ("P", "PA", "RGBa", "RGBA", "La", "LA"):
        mode = "L" if image.mode in ("La", "LA") else "RGB"
        canvas = Image.new(mode, image.size, "white")
        for box in strips(image):
            strip = image.crop(box).convert("LA" if mode == "L" else "RGBA")
            canvas.paste(strip.convert(mode), box, mask=strip if settings.alpha == "white" else None)
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
