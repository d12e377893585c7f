"""Whatever people have on disk becomes upright RGB, or a message that names the file."""

import ast
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import asdict
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps

import captioning
from captioning.config import from_dict
from captioning.data.images import MAX_PIXELS, ImageError, Transform, load_image
from captioning.search.generate import DecodeConfig, caption_files

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


def test_ten_thousand_pixels_a_side_are_read_and_more_is_refused(tmp_path):
    path = save(tmp_path / "big.jpg", Image.new("L", (10_000, 10_000), 128))
    image = load_image(path, min_side=256)
    assert 256 <= min(image.size) < 2000  # the JPEG decoder shrank it
    with pytest.raises(ImageError, match="big.jpg: 10000 x 10000 pixels"):
        load_image(path, max_pixels=99_999_999)


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (MAX_PIXELS // 10, "broken picture"),  # its size is fine, its pixels are missed
        (MAX_PIXELS // 10 + 1, f"12800001 x 10 pixels, expected at most {MAX_PIXELS:,} in all$"),
        (2**24, "16777216 x 10 pixels"),  # Pillow warns
        (2**25, f"too many pixels, expected at most {MAX_PIXELS:,}$"),  # Pillow refuses
    ],
)
def test_the_limit_of_pixels_is_the_one_that_is_told(tmp_path, width, message):
    """A PNG of its header alone."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, 10, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    png += struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT"
    (tmp_path / "x.png").write_bytes(png + struct.pack(">I", zlib.crc32(b"IDAT")))
    with pytest.raises(ImageError, match=f"x.png: {message}"):
        load_image(tmp_path / "x.png")


def tiled_tiff(side: int) -> bytes:
    """A TIFF of 100 x 100 pixels in one tile of `side` x `side`, all black."""
    data = zlib.compress(bytes(side * side))
    tags = {256: 100, 257: 100, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side}
    tags |= {324: 8 + 2 + 12 * 10 + 4, 325: len(data)}  # where the data begin, how many
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


@pytest.fixture(scope="module")
def growth(tmp_path_factory):
    """What loading large pictures gives in another process, and how many MB it takes."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc")
    folder = tmp_path_factory.mktemp("large")
    save(folder / "first.tif", Image.new("RGBA", (1, 1)))  # so that Pillow imports its formats
    save(folder / "red.png", Image.new("RGB", (10_000, 10_000), (255, 0, 0)))
    save(folder / "clear.png", Image.new("LA", (4000, 4000)))
    save(folder / "deep.png", Image.new("I;16", (4000, 4000)))
    save(folder / "bomb.png", Image.new("1", (13_300, 13_300)))
    (folder / "tile.tif").write_bytes(tiled_tiff(12_000))
    assert max((folder / name).stat().st_size for name in ("bomb.png", "tile.tif")) < 200_000
    script = """if True:
        import json, sys
        from pathlib import Path
        from captioning.data.images import ImageError, Transform, load_image
        transform = Transform(256, 224, (0.5,) * 3, (0.5,) * 3)
        def grows(path):
            Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
            peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
            before = peak()
            try:
                said = transform(load_image(path, 512)).mean((1, 2)).tolist()
            except ImageError as error:
                said = str(error)
            return said, (peak() - before) / 1024
        print(json.dumps({Path(path).name: grows(path) for path in sys.argv[1:]}))"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # what one picture leaves, no other one uses
    command = [sys.executable, "-c", script, folder / "first.tif", *folder.iterdir()]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_a_large_png_is_held_once(growth):
    """Nothing shrinks a PNG while it is read: 10,000 x 10,000 pixels are 400 MB in Pillow."""
    said, megabytes = growth["red.png"]
    assert said == [1, -1, -1] and 350 < megabytes < 600


@pytest.mark.parametrize("name", ["clear.png", "deep.png"])
def test_a_conversion_holds_no_more_than_what_goes_in_and_comes_out(growth, name):
    said, megabytes = growth[name]
    assert len(said) == 3 and megabytes < 2 * 4 * 16 + 30


@pytest.mark.parametrize(
    ("name", "message"),
    [("bomb.png", "13300 x 13300 pixels"), ("tile.tif", "12000 x 12000 pixels")],
)
def test_a_bomb_is_refused_before_it_is_decoded(growth, name, message):
    said, megabytes = growth[name]
    assert f"{message}, expected at most 128,000,000 in all" in said and megabytes < 5


def test_a_tile_larger_than_its_picture_is_fine(tmp_path):
    (tmp_path / "x.tif").write_bytes(tiled_tiff(128))
    assert load_image(tmp_path / "x.tif").size == (100, 100)


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


@pytest.fixture
def eps(tmp_path, monkeypatch):
    """A program in PostScript called holiday.jpg; and a Ghostscript that leaves a trace."""
    (tmp_path / "bin").mkdir()
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch '{tmp_path}/was_run'\nexit 1\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # as in a new process
    path = tmp_path / "holiday.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    yield path
    assert not (tmp_path / "was_run").exists()


def test_a_picture_is_never_a_program(eps):
    with pytest.raises(ImageError, match=r"holiday.jpg: not a picture \(JPEG, .* or TIFF\)"):
        load_image(eps)


def test_a_failing_picture_does_not_end_a_run(eps, attentive, grid_cnn, data, monkeypatch):
    good = data.val.images[0].path
    first, second = caption_files(attentive, grid_cnn, [eps, good], DecodeConfig("greedy"))
    assert "not a picture" in first.error and second.captions
    # Whatever a decoder raises.
    for error in (MemoryError(), subprocess.CalledProcessError(1, "gs"), ZeroDivisionError("0")):
        monkeypatch.setattr(Image.Image, "load", Mock(side_effect=error))
        with pytest.raises(ImageError, match=f"{good.name}: broken picture \\(.+\\)"):
            load_image(good)


def test_every_picture_is_opened_as_one_of_the_formats():
    """`Image.open` alone takes what Pillow gives to other programs."""
    opened = [
        ast.unparse(node)
        for file in Path(captioning.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open")
    ]
    assert opened and all("formats=FORMATS" in call for call in opened), opened


def test_the_two_pictures_of_a_camera_are_one_jpeg(tmp_path):
    """Phones write MPO, which is a JPEG with another behind it."""
    path = tmp_path / "phone.jpg"
    save(path, Image.new("RGB", (16, 8)), format="MPO", save_all=True,
         append_images=[Image.new("RGB", (16, 8))])  # fmt: skip
    assert load_image(path).size == (16, 8)


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
    again = from_dict(Transform, asdict(Transform(232, 224, mean, std)), "transform")
    assert torch.equal(again(image), ours)
