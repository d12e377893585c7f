"""Whatever people have on disk becomes upright RGB, or a message that names the file."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from captioning.images import MAX_PIXELS, ImageError, Transform, load_image

HALF = (0.5, 0.5, 0.5)


def save(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "name", "color", "expected"),
    [
        ("L", "gray.png", 100, (100, 100, 100)),
        ("LA", "gray_alpha.png", (100, 0), (255, 255, 255)),
        ("1", "bits.png", 1, (255, 255, 255)),
        ("RGBA", "clear.png", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", "solid.png", (10, 20, 30, 255), (10, 20, 30)),
        ("CMYK", "print.tif", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", "deep.png", 25700, (100, 100, 100)),
        ("F", "float.tif", 7.5, (255, 255, 255)),
        ("RGB", "plain.bmp", (1, 2, 3), (1, 2, 3)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, name, color, expected):
    path = save(tmp_path / name, Image.new(mode, (5, 4), color))
    image = load_image(path)
    assert (image.mode, image.size, image.getpixel((2, 2))) == ("RGB", (5, 4), expected)


def test_a_jpeg_for_print_becomes_rgb(tmp_path):
    path = save(tmp_path / "print.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)))
    for min_side in (0, 8):
        image = load_image(path, min_side)
        assert image.mode == "RGB"
        np.testing.assert_allclose(image.getpixel((4, 4)), (255, 0, 0), atol=3)


def test_a_palette_with_a_transparent_colour_is_put_on_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 200, 0, 0])
    path = save(tmp_path / "p.gif", image, transparency=1)
    assert load_image(path).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(save(tmp_path / "q.png", image)).getpixel((0, 0)) == (200, 0, 0)


def test_exif_rotation_is_undone(tmp_path):
    image = Image.new("RGB", (20, 10), "white")
    image.paste((255, 0, 0), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    path = save(tmp_path / "turned.png", image, exif=exif)
    upright = load_image(path)
    assert upright.size == (10, 20)
    assert upright.getpixel((5, 2)) == (255, 0, 0) and upright.getpixel((5, 17)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_the_one_of_pillow(tmp_path, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "x.png", Image.fromarray(pixels), exif=exif)
    expected = ImageOps.exif_transpose(Image.open(path))
    np.testing.assert_array_equal(np.array(load_image(path)), np.array(expected))


def test_damaged_exif_does_not_hide_a_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10)).save(buffer, "JPEG", exif=exif)
    good = buffer.getvalue()
    # The maker's name is called the picture's height: reading works, writing it again does not.
    (tmp_path / "tag.jpg").write_bytes(good.replace(b"\x01\x0f\x00\x02", b"\x01\x01\x00\x02"))
    assert load_image(tmp_path / "tag.jpg").size == (10, 20)
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(Image.open(tmp_path / "tag.jpg"))
    # What cannot be read at all does not say how the camera was held.
    path = save(tmp_path / "junk.png", Image.new("RGB", (20, 10)), exif=b"junk")
    assert load_image(path).size == (20, 10)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (10_000, 3)])
def test_extreme_shapes_go_through_the_transform(tmp_path, size):
    path = save(tmp_path / "x.png", Image.new("RGB", size, (255, 0, 0)))
    out = Transform(10, 8, HALF, HALF)(load_image(path))
    assert out.shape == (3, 8, 8)
    torch.testing.assert_close(out[:, 4, 4], torch.tensor([1.0, -1.0, -1.0]))


def test_ten_thousand_pixels_a_side_are_read_and_more_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "big.jpg", Image.new("L", (10_000, 10_000), 128))
    image = load_image(path, min_side=256)
    assert 256 <= min(image.size) < 2000  # the JPEG decoder shrank it
    monkeypatch.setattr("captioning.images.MAX_PIXELS", 99_999_999)
    with pytest.raises(ImageError, match="big.jpg: 10000 x 10000 pixels"):
        load_image(path)


@pytest.mark.parametrize("extra", [0, 1])
def test_the_limit_of_pixels_is_the_one_that_is_told(tmp_path, extra):
    """A PNG of its header alone: its size is refused, or its pixels are missed."""
    header = struct.pack(">IIBBBBB", MAX_PIXELS // 10 + extra, 10, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    png += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT"
    (tmp_path / "x.png").write_bytes(png + struct.pack(">I", zlib.crc32(b"IDAT")))
    message = f"too many pixels, expected at most {MAX_PIXELS:,}$" if extra else "broken picture"
    with pytest.raises(ImageError, match=f"x.png: {message}"):
        load_image(tmp_path / "x.png")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc/self/status")
def test_a_large_png_is_held_once(tmp_path):
    """Nothing shrinks a PNG while it is read: 10,000 x 10,000 pixels are 400 MB in Pillow."""
    script = """if True:
        import sys
        from captioning.images import Transform, load_image
        peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
        before = peak()
        out = Transform(256, 224, (0.5,) * 3, (0.5,) * 3)(load_image(sys.argv[1], 512))
        print(peak() - before, out.min().item(), out.max().item())"""
    path = save(tmp_path / "big.png", Image.new("RGB", (10_000, 10_000), (255, 0, 0)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(path)]
    out = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    megabytes, *ends = map(float, out.stdout.split())
    assert ends == [-1, 1] and 350 < megabytes < 600


def test_broken_files_are_named(tmp_path):
    good = save(tmp_path / "good.jpg", Image.fromarray(np.random.rand(64, 64, 3).astype("u1")))
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:300])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, message in (
        ("cut.jpg", "broken picture"),
        ("text.jpg", "not a picture"),
        ("empty.png", "not a picture"),
        ("absent.png", "no such file"),
    ):
        with pytest.raises(ImageError, match=f"{name}: {message}"):
            load_image(tmp_path / name)
    with pytest.raises(ImageError):
        load_image(tmp_path)


def test_open_files_are_read_too():
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3)).save(buffer, "PNG")
    buffer.seek(0)
    assert load_image(buffer).size == (3, 3)


def test_the_transform_does_what_torchvision_does():
    from torchvision.transforms._presets import ImageClassification

    pixels = np.random.default_rng(0).integers(0, 255, (464, 580, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)  # sides for which torchvision has nothing to round
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    theirs = ImageClassification(crop_size=224, resize_size=232, mean=mean, std=std)(image)
    ours = Transform(232, 224, mean, std)(image)
    torch.testing.assert_close(ours, theirs)
    again = Transform.from_dict(Transform(232, 224, mean, std).to_dict())
    assert torch.equal(again(image), ours)
