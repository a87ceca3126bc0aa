"""Pictures as they are kept: decoded, and written anew from their pixels alone.

What is no pixel is left behind: places and cameras (EXIF, XMP, IPTC), comments, colour profiles, and whatever somebody hung
on to the end of a file. How large a picture is in pixels is read from its head; nothing is decoded that has too many.
"""

import struct
import warnings
from io import BytesIO
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

from domain.errors import Refusal, invalid
from domain.uploads import PDF

_FORMATS: Final = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
_JPEG_QUALITY: Final = 88
_WEBP_QUALITY: Final = 88
_SIDE_MOST: Final = 16_383
"""No side of a WebP is longer; nor is any of a picture here, so that a line of pixels is never huge."""
BODY: Final = "body"
"""The field that refusals name."""

Image.MAX_IMAGE_PIXELS = None  # the limit is a setting, and is checked here before anything is decoded


def sniffed(content: bytes) -> str:
    """The media type that the first bytes say; empty for what is not taken."""
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return PDF if content.startswith((b"%PDF-1.", b"%PDF-2.")) else ""


def cleaned(content: bytes, media_type: str, pixels_most: int) -> bytes:
    """The picture in the same format, upright, without anything else. Takes about eight bytes of memory a pixel.

    Raises:
        Refusal: `invalid` for what is no such picture, is cut off, moves, or has more than `pixels_most`.
    """
    if media_type == "image/webp":
        _require_size(*_webp_size(content), pixels_most)  # its decoder makes room for all of it when it is opened
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(content), formats=(_FORMATS[media_type],)) as opened:
                _require_size(*opened.size, pixels_most)
                # A JPEG may hold further pictures, such as a preview: only the first one is kept.
                if media_type != "image/jpeg" and getattr(opened, "is_animated", False):
                    raise invalid(BODY, "animated", "a picture that moves is not taken")
                opened.load()
                return _written(ImageOps.exif_transpose(opened), media_type)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise _damaged() from error
    except (IndexError, KeyError, TypeError, OverflowError, AttributeError, ZeroDivisionError) as error:
        # What Pillow's readers raise for some malformed files.
        raise _damaged() from error


def _written(image: Image.Image, media_type: str) -> bytes:
    out = BytesIO()
    transparency = image.info.get("transparency") if image.mode == "P" else None
    image.info = {} if transparency is None else {"transparency": transparency}
    match media_type:
        case "image/jpeg":
            plain = image if image.mode in ("L", "RGB") else image.convert("RGB")
            plain.info = {}
            plain.save(out, "JPEG", quality=_JPEG_QUALITY)
        case "image/png":
            image.save(out, "PNG")
        case _:
            image.save(out, "WEBP", quality=_WEBP_QUALITY)
    return out.getvalue()


def _require_size(width: int, height: int, pixels_most: int) -> None:
    if width < 1 or height < 1:
        raise _damaged()
    if width * height > pixels_most or max(width, height) > _SIDE_MOST:
        raise invalid(BODY, "too_many_pixels", f"{width} x {height} pixels, and {pixels_most} is the most")


def _webp_size(content: bytes) -> tuple[int, int]:
    """From the first chunk (RFC 9649, section 2.5 on): of the canvas, or of the only picture."""
    kind, head = content[12:16], content[20:30]
    if len(head) < 10:
        raise _damaged()
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L" and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    raise _damaged()


def _damaged() -> Refusal:
    return invalid(BODY, "damaged", "this is no whole picture of its type")
