"""Pictures and documents for uploads, honest and hostile, made of bytes that are the same in every run."""

import struct
import zlib
from functools import cache
from io import BytesIO

from PIL import Image

PDF = b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n"
TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}


@cache
def picture(kind: str = "JPEG", size: tuple[int, int] = (48, 32), mode: str = "RGB", colour: int = 7) -> bytes:
    """A small picture with something in it."""
    image = Image.new(mode, size)
    image.putdata([_dot(mode, x * 5 + y * 3 + colour) for y in range(size[1]) for x in range(size[0])])
    out = BytesIO()
    image.save(out, kind)
    return out.getvalue()


def _dot(mode: str, value: int) -> object:
    bands = len(Image.new(mode, (1, 1)).getbands())
    return value % 256 if bands == 1 else tuple((value * (n + 1)) % 256 for n in range(bands))


@cache
def located(kind: str = "JPEG") -> bytes:
    """A picture whose EXIF says where it was taken, by whom and with what."""
    image = Image.open(BytesIO(picture(kind)))
    exif = Image.Exif()
    exif[0x010F] = "CanaryCamera"
    exif[0x013B] = "Canary Artist"
    exif[0x0112] = 6  # it is to be turned by a quarter
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2], gps[3], gps[4] = "N", (31.0, 13.0, 49.0), "E", (121.0, 28.0, 25.0)
    out = BytesIO()
    image.save(out, kind, exif=exif)
    return out.getvalue()


def png(
    width: int, height: int, data: bytes = b"", *more: tuple[bytes, bytes], depth: int = 8, colour: int = 2
) -> bytes:
    """A PNG of these chunks, whatever its head promises."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), *more, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, content) for kind, content in chunks)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG whose head promises so many pixels."""
    small = picture("JPEG")
    at = next(small.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in small)
    return small[: at + 5] + struct.pack(">HH", height, width) + small[at + 9 :]


def webp_of_size(width: int, height: int) -> bytes:
    """A WebP with the head of the extended format that promises so many pixels."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    inner = picture("WEBP")[12:]
    body = b"WEBP" + b"VP8X" + (10).to_bytes(4, "little") + bytes(4) + canvas + inner
    return b"RIFF" + len(body).to_bytes(4, "little") + body


@cache
def moving(kind: str, frames: int = 3, size: tuple[int, int] = (16, 16)) -> bytes:
    """A picture that moves."""
    images = [Image.new("RGB", size, (n * 40 % 256, 10, 200)) for n in range(frames)]
    out = BytesIO()
    images[0].save(out, kind, save_all=True, append_images=images[1:], duration=10)
    return out.getvalue()
