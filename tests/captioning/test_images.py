"""Reading pictures: any format becomes upright RGB, or an error that names the file."""

import io
import os
import struct
import subprocess
import zlib
from dataclasses import asdict
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps

from captioning.data.images import MAX_PIXELS, ImageError, Transform, data_uri, load_image
from captioning.search.generate import caption_files
from captioning.settings import DecodeConfig


def save(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode, name, color, expected", [
    ("L", "gray.png", 100, (100, 100, 100)),
    ("LA", "gray_alpha.png", (100, 0), (255, 255, 255)),
    ("1", "bits.png", 1, (255, 255, 255)),
    ("RGBA", "clear.png", (10, 20, 30, 0), (255, 255, 255)),
    ("RGBA", "solid.png", (10, 20, 30, 255), (10, 20, 30)),
    ("CMYK", "print.tif", (0, 255, 255, 0), (255, 0, 0)),
    ("I;16", "deep.png", 65535, (255, 255, 255)),
    ("F", "float.tif", 7.5, (255, 255, 255)),
    ("RGB", "plain.bmp", (1, 2, 3), (1, 2, 3)),
])  # fmt: skip
def test_every_mode_becomes_rgb(tmp_path, mode, name, color, expected):
    path = save(tmp_path / name, Image.new(mode, (5, 4), color))
    image = load_image(path)
    assert (image.mode, image.size, image.getpixel((2, 2))) == ("RGB", (5, 4), expected)


def test_a_palette_with_a_transparent_color_is_put_on_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 200, 0, 0])
    path = save(tmp_path / "p.gif", image, transparency=1)
    assert load_image(path).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(save(tmp_path / "q.png", image)).getpixel((0, 0)) == (200, 0, 0)


def test_exif_rotation_is_undone(tmp_path):
    image = Image.new("RGB", (20, 10), "white")
    image.paste((255, 0, 0), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned, so a viewer must turn the picture clockwise
    path = save(tmp_path / "turned.png", image, exif=exif)
    upright = load_image(path)
    assert upright.size == (10, 20)
    assert upright.getpixel((5, 2)) == (255, 0, 0) and upright.getpixel((5, 17)) == (255, 255, 255)


def test_damaged_exif_does_not_hide_a_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    good = save(tmp_path / "good.jpg", Image.new("RGB", (20, 10)), exif=exif).read_bytes()
    # The maker's name gets the tag of the height. Pillow can read such EXIF data, but not write it.
    (tmp_path / "tag.jpg").write_bytes(good.replace(b"\x01\x0f\x00\x02", b"\x01\x01\x00\x02"))
    assert load_image(tmp_path / "tag.jpg").size == (10, 20)
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(Image.open(tmp_path / "tag.jpg"))
    # Unreadable EXIF data do not turn the picture.
    path = save(tmp_path / "junk.png", Image.new("RGB", (20, 10)), exif=b"junk")
    assert load_image(path).size == (20, 10)


def test_ten_thousand_pixels_a_side_are_read_and_more_is_refused(tmp_path):
    path = save(tmp_path / "big.jpg", Image.new("L", (10_000, 10_000), 128))
    image = load_image(path, min_side=256)
    assert 256 <= min(image.size) < 2000  # the JPEG decoder shrank it
    with pytest.raises(ImageError, match="big.jpg: 10000 x 10000 pixels"):
        load_image(path, max_pixels=99_999_999)


@pytest.mark.parametrize("width, message", [
    (MAX_PIXELS // 10, "broken picture"),  # the size is allowed, but the pixels are missing
    (MAX_PIXELS // 10 + 1, f"12800001 x 10 pixels, expected at most {MAX_PIXELS:,} in all$"),
    (2**24, "16777216 x 10 pixels"),  # Pillow warns of this size
    (2**25, "broken picture .*exceeds limit"),  # Pillow refuses this size
])  # fmt: skip
def test_too_many_pixels_are_refused_with_the_limit(tmp_path, width, message):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, 10, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    png += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT"
    (tmp_path / "x.png").write_bytes(png + struct.pack(">I", zlib.crc32(b"IDAT")))
    with pytest.raises(ImageError, match=f"x.png: {message}"):
        load_image(tmp_path / "x.png")


def tiled_tiff(side):
    """Makes a black TIFF of 100 x 100 pixels that is stored as one tile of `side` x `side`."""
    data = zlib.compress(bytes(side * side))
    tags = {256: 100, 257: 100, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side}
    tags |= {324: 8 + 2 + 12 * 10 + 4, 325: len(data)}  # offset and size of the data
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def test_a_tile_larger_than_its_picture_is_refused(tmp_path):
    (tmp_path / "x.tif").write_bytes(tiled_tiff(128))
    assert load_image(tmp_path / "x.tif").size == (100, 100)
    (tmp_path / "x.tif").write_bytes(tiled_tiff(12000))
    with pytest.raises(ImageError, match="12000 x 12000 pixels"):
        load_image(tmp_path / "x.tif")


def test_broken_files_are_named(tmp_path):
    good = save(tmp_path / "good.jpg", Image.fromarray(np.random.rand(64, 64, 3).astype("u1")))
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:300])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    told = {"cut.jpg": "broken picture", "text.jpg": "not a picture", "empty.png": "not a picture"}
    for name, message in (told | {"absent.png": "no such file"}).items():
        with pytest.raises(ImageError, match=f"{name}: {message}"):
            load_image(tmp_path / name)
    with pytest.raises(ImageError, match="not a file, but a folder, a pipe or a device"):
        load_image(tmp_path)


@pytest.fixture
def eps(tmp_path, monkeypatch):
    """A PostScript program called holiday.jpg, and a Ghostscript that must not be run."""
    (tmp_path / "bin").mkdir()
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch '{tmp_path}/was_run'\nexit 1\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # makes Pillow search PATH for it again
    path = tmp_path / "holiday.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    yield path
    assert not (tmp_path / "was_run").exists()


def test_a_picture_is_never_a_program(eps):
    with pytest.raises(ImageError, match=r"holiday.jpg: not a picture \(JPEG, .* or TIFF\)"):
        load_image(eps)


def test_a_bad_picture_does_not_end_a_run(eps, attention_checkpoint, grid_cnn, data, monkeypatch):
    files, search = [eps, data.val.images[0].path], DecodeConfig("greedy")
    first, second = caption_files(attention_checkpoint, grid_cnn, files, search, batch_size=1)
    assert "not a picture" in first.error and second.captions
    # Decoders raise exceptions of many kinds.
    for error in (MemoryError(), subprocess.CalledProcessError(1, "gs"), ZeroDivisionError("0")):
        monkeypatch.setattr(Image.Image, "load", Mock(side_effect=error))
        with pytest.raises(ImageError, match=f"{files[1].name}: broken picture \\(.+\\)"):
            load_image(files[1])


@pytest.mark.filterwarnings("error")
def test_open_files_are_read_too(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)  # Pillow warns; our limit is max_pixels
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3)).save(buffer, "PNG")
    buffer.seek(0)
    assert load_image(buffer).size == (3, 3)


def test_the_transform_does_what_torchvision_does():
    from torchvision.transforms._presets import ImageClassification

    pixels = np.random.default_rng(0).integers(0, 255, (464, 580, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)  # resized to 232 x 290 without rounding
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    theirs = ImageClassification(crop_size=224, resize_size=232, mean=mean, std=std)(image)
    ours = Transform(232, 224, mean, std)(image)
    torch.testing.assert_close(ours, theirs)
    again = Transform(**asdict(Transform(232, 224, mean, std)))
    assert torch.equal(again(image), ours)


def test_only_small_and_transparent_pictures_are_png_in_a_page():
    start = lambda mode, side: data_uri(Image.new(mode, (9, side)))[:27]
    assert start("RGB", 159) == start("RGBA", 160) == "data:image/png;base64,iVBOR"
    assert start("RGB", 160) == "data:image/jpeg;base64,/9j/"


def test_each_batch_draws_its_own_samples(attention_checkpoint, grid_cnn, data):
    pictures, config = [data.val.images[0].path] * 8, DecodeConfig("sample", temperature=3.0)
    found = caption_files(attention_checkpoint, grid_cnn, pictures, config, batch_size=1)
    assert len({item.captions[0].text for item in found}) > 4
