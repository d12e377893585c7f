"""Pictures from disk to RGB to tensors."""

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

# The formats that are opened. Pillow reads others too; one of them (EPS) is a
# program that it would run in Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
EXTENSIONS = {name for name, kind in Image.registered_extensions().items() if kind in FORMATS}
MAX_PIXELS = 128_000_000  # above a camera's 108 million, below a decompression bomb


class ImageError(CaptioningError):
    """A picture that is missing, broken or too large."""


def image_files(folder: Path) -> list[Path]:
    """All files below `folder` with the extension of a picture."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    return sorted(path for path in found if path.is_file())


def load_image(
    path: str | Path | BinaryIO, min_side: int = 0, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Open a picture as RGB, upright (EXIF), transparency on white, any bit depth.

    The JPEG decoder may shrink it, to no less than `min_side`. It is an ImageError if the file is
    missing, in none of `FORMATS`, broken, or has more than `max_pixels` by its header.
    """
    where = f"{path}: " if isinstance(path, (str, Path)) else ""
    if where and os.path.exists(str(path)) and not os.path.isfile(str(path)):
        # Opening a named pipe would block.
        raise ImageError(f"{where}no file, but a folder, a pipe or a device")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(path, formats=FORMATS)
            width, height = image.size
            if isinstance(image, TiffImagePlugin.TiffImageFile):  # a tile can be larger
                width = max(width, image.tag_v2.get(TiffImagePlugin.TILEWIDTH, 0))
                height = max(height, image.tag_v2.get(TiffImagePlugin.TILELENGTH, 0))
            if width * height > max_pixels:
                raise ImageError(
                    f"{where}{width} x {height} pixels, expected at most {max_pixels:,} in all"
                )
            if min_side:
                image.draft("RGB", (min_side, min_side))
            image.load()
            with contextlib.suppress(Exception):  # by damaged EXIF; the pixels are fine
                ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        *first, last = FORMATS
        raise ImageError(f"{where}not a picture ({', '.join(first)} or {last})") from error
    except FileNotFoundError as error:
        raise ImageError(f"{where}no such file") from error
    except Exception as error:  # decoders raise anything, and one picture must not end a run
        raise ImageError(f"{where}broken picture ({str(error) or type(error).__name__})") from error


def data_uri(image: Image.Image) -> str:
    """A picture as a data URI; small ones as PNG, so that drawings stay crisp."""
    kind = "PNG" if max(image.size) < 160 or "A" in image.mode else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits and more, which Pillow clips
        top = max(cast(float, image.getextrema()[1]), 1e-9) if image.mode == "F" else 65535
        return image.point(lambda value: value * (255 / top)).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        white, image = Image.new("RGB", image.size, "white"), image.convert("RGBA")
        white.paste(image, (0, 0), image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclass(frozen=True)
class Transform:
    """The input of a pretrained CNN: a square of the picture or all of it, normalized.

    It is kept in every checkpoint, so that captioning treats pictures as training did.
    """

    resize_size: int  # length of the shorter side before the crop
    crop_size: int  # side of the square cut from the middle
    mean: tuple[float, ...]  # of each channel, whose values are in 0..1
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    squash: bool = False  # fit all of the picture into the square, instead of cropping

    def view(self, image: Image.Image) -> Image.Image:
        """The part of a picture that the CNN sees, before normalization."""
        # Resizing only what the crop keeps gives the same pixels and bounds the work.
        side = min(image.size) * self.crop_size / self.resize_size
        left, top = ((length - side) / 2 for length in image.size)
        return image.resize(
            (self.crop_size, self.crop_size),
            Image.Resampling[self.interpolation.upper()],
            box=None if self.squash else (left, top, left + side, top + side),
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB picture to float32 [3, crop_size, crop_size]."""
        pixels = torch.from_numpy(np.array(self.view(image))).permute(2, 0, 1).float().div(255)
        return self.normalize(pixels)

    def load(self, path: Path) -> Tensor | str:
        """The input of the CNN, of a picture's file; or what is wrong with that."""
        try:
            return self(load_image(path, 2 * self.resize_size))
        except ImageError as error:
            return str(error)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Pixels [...,3,H,W] from 0 to 1, normalized."""
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (pixels - mean) / std
