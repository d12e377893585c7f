"""Reads picture files, and prepares pictures for a CNN."""

import base64
import contextlib
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from captioning.errors import CaptioningError

# The formats that are opened. Pillow reads others too, but not all are safe: an EPS file is a
# program, which Pillow would run in Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
EXTENSIONS = {name for name, kind in Image.registered_extensions().items() if kind in FORMATS}
MAX_PIXELS = 128_000_000  # cameras have up to 108 million; decompression bombs have more


class ImageError(CaptioningError):
    """A picture that is missing, broken or too large."""


def load_image(
    path: str | Path | BinaryIO, min_side: int = 0, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Reads any picture as 8-bit RGB: turned upright by its EXIF data, on white if transparent.

    If `min_side` > 0, a JPEG may be decoded at a smaller size, with sides of at least `min_side`.
    Raises `ImageError` if the file is missing, broken or in none of `FORMATS`, or if the picture
    has more than `max_pixels` pixels by the header of its file.
    """
    where = f"{path}: " if isinstance(path, (str, Path)) else ""
    if where and os.path.exists(str(path)) and not os.path.isfile(str(path)):
        # To open a named pipe would block.
        raise ImageError(f"{where}not a file, but a folder, a pipe or a device")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if isinstance(image, TiffImagePlugin.TiffImageFile):  # a tile may be larger
                    width = max(width, image.tag_v2.get(TiffImagePlugin.TILEWIDTH, width))
                    height = max(height, image.tag_v2.get(TiffImagePlugin.TILELENGTH, height))
                if width * height > max_pixels:
                    size = f"{width} x {height} pixels"
                    raise ImageError(f"{where}{size}, expected at most {max_pixels:,} in all")
                if min_side:
                    image.draft("RGB", (min_side, min_side))
                image.load()
                with contextlib.suppress(Exception):  # EXIF data may be damaged; the pixels are not
                    ImageOps.exif_transpose(image, in_place=True)
                return _to_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        *first, last = FORMATS
        raise ImageError(f"{where}not a picture ({', '.join(first)} or {last})") from error
    except FileNotFoundError as error:
        raise ImageError(f"{where}no such file") from error
    except Exception as error:  # decoders raise exceptions of many kinds
        raise ImageError(f"{where}broken picture ({str(error) or type(error).__name__})") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Returns a PIL picture as `load_image` would read it from a file; does not change it."""
    try:
        image.load()  # Pillow reads a file only when its pixels are needed
        with contextlib.suppress(Exception):  # EXIF data may be damaged; the pixels are not
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except Exception as error:  # decoders raise exceptions of many kinds
        raise ImageError(f"broken picture ({str(error) or type(error).__name__})") from error


def data_uri(image: Image.Image) -> str:
    """Returns a picture as a data URI: a JPEG, or a PNG if it is small or has transparency."""
    file_format = "PNG" if max(image.size) < 160 or "A" in image.mode else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, file_format, quality=85)  # PNG ignores the quality
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _to_rgb(image: Image.Image) -> Image.Image:
    # Pillow would clip values of 16 bits and more, so they are scaled first.
    if image.mode.startswith("I") or image.mode == "F":
        largest = max(cast(float, image.getextrema()[1]), 1e-9) if image.mode == "F" else 65535
        return image.point(lambda value: value * (255 / largest)).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        white, image = Image.new("RGB", image.size, "white"), image.convert("RGBA")
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True)
class Transform:
    """Prepares pictures for a pretrained CNN: a square of `crop_size` pixels, normalized.

    Every checkpoint holds its transform, so that captioning prepares pictures as training did.
    """

    resize_size: int  # length of the shorter side of the picture before the crop
    crop_size: int  # side of the square that is cut from the middle
    mean: tuple[float, ...]  # of each channel; values v from 0 to 1 become (v - mean) / std
    std: tuple[float, ...]  # of each channel
    interpolation: str = "bilinear"
    squash: bool = False  # whether to squash the whole picture into the square instead of a crop

    def view(self, image: Image.Image) -> Image.Image:
        """Returns the square that the CNN sees, before normalization."""
        # Only the crop is resized, so the work is bounded even for a very long picture.
        side = min(image.size) * self.crop_size / self.resize_size
        left, top = ((length - side) / 2 for length in image.size)
        box = None if self.squash else (left, top, left + side, top + side)
        resampling = Image.Resampling[self.interpolation.upper()]
        return image.resize((self.crop_size, self.crop_size), resampling, box)

    def __call__(self, image: Image.Image) -> Tensor:
        """Returns the input of the CNN for an RGB picture: float32 [3,crop_size,crop_size]."""
        pixels = torch.from_numpy(np.array(self.view(image))).permute(2, 0, 1).float().div(255)
        return self.normalize(pixels)

    def load(self, picture: Path | Image.Image) -> Tensor | str:
        """Returns the input of the CNN for a picture or its file, or what is wrong with it."""
        try:
            if isinstance(picture, Image.Image):
                return self(upright_rgb(picture))
            # A large JPEG is decoded at twice the size or more, so that resizing averages pixels.
            return self(load_image(picture, 2 * self.resize_size))
        except ImageError as error:
            return str(error)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalizes pixels [...,3,H,W] with values from 0 to 1."""
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (pixels - mean) / std
