"""COCO captions files, good and bad, and batches of captions."""

import itertools
import json
from dataclasses import FrozenInstanceError

import pytest
import torch
from PIL import Image

from captioning.data.batches import Batch, EncodedCaptions
from captioning.data.coco import CaptionDataset, CaptionedImage, load_coco, load_coco_unchanged
from captioning.data.convert import Shares
from captioning.data.images import Transform
from captioning.data.vocabulary import END, PAD, START, Vocabulary
from captioning.errors import CaptioningError
from captioning.search.generate import Caption, CaptionedFile

DEEP = json.loads("[" * 900 + "]" * 900)


@pytest.fixture
def coco(tmp_path):
    """A function that writes a COCO file of three pictures; returns it and the pictures' folder."""

    def write(change=lambda data: None, text=None):
        for i in (1, 2, 3):
            Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
        images = [{"id": i, "file_name": f"{i}.png"} for i in (1, 2, 3)]
        text_of, pairs = "picture {} caption {}".format, itertools.product((1, 2, 3), (1, 2))
        captions = [{"id": 10 * i + k, "image_id": i, "caption": text_of(i, k)} for i, k in pairs]
        data = {"images": images, "annotations": captions}
        change(data)
        path = tmp_path / "captions.json"
        path.write_text(json.dumps(data) if text is None else text)
        return path, tmp_path

    return write


def test_values_do_not_change():
    for kind in (Batch, Caption, CaptionDataset, CaptionedFile, CaptionedImage, Shares, Transform):
        with pytest.raises(FrozenInstanceError):
            object.__new__(kind).path = "another"


def test_reads_pictures_with_their_captions(coco):
    dataset = load_coco(*coco())
    assert [image.id for image in dataset.images] == [1, 2, 3]
    assert dataset.images[1].captions == ["picture 2 caption 1", "picture 2 caption 2"]
    assert dataset.references[3] == dataset.images[2].captions and not dataset.skipped


WRONG = [("images", {"id": "x49"}), ("images", {"id": 1.0}), ("images", {"file_name": ["1.png"]})]
WRONG += [("annotations", {name: DEEP}) for name in ("id", "image_id", "caption")]
WRONG += [("annotations", {"image_id": "1"}), ("annotations", {"caption": None})]


@pytest.mark.parametrize("change, message", [
    *((lambda d, t=t, v=v: d[t][0].update(v), "expected a COCO captions file") for t, v in WRONG),
    (lambda d: d.pop("images"), "expected a COCO captions file"),
    (lambda d: d.update(annotations=5), "expected a COCO captions file"),
    (lambda d: d["images"][0].pop("file_name"), "expected a COCO captions file"),
    (lambda d: d["images"][0].update(file_name="x" * 5000), "1 x missing picture: .*xxx"),
    (lambda d: d["images"][0].update(file_name="\0.png"), r"missing picture: .*/\\x00.png"),
    (lambda d: d["images"][0].update(file_name="\ud800"), r"missing picture: .*/\\ud800"),
    (lambda d: d["images"].append({"id": 1, "file_name": "1.png"}), "once in 'images'"),
    (lambda d: d["annotations"].append(d["annotations"][0]), "more than once in 'annotations'"),
    (lambda d: d["annotations"][0].update(image_id=99), "unknown pictures: .99."),
    (lambda d: d["images"][0].update(file_name="x.png"), "1 x missing picture: .*x.png"),
    (lambda d: d["annotations"][3].update(caption=" ... "), "without words: .*2.png"),
])  # fmt: skip
def test_bad_files_are_refused_by_name(coco, change, message):
    with pytest.raises(CaptioningError, match=message):
        load_coco(*coco(change))


def test_truncated_json_says_where(coco):
    with pytest.raises(CaptioningError, match=r"captions.json is not valid JSON .*line 1 column 2"):
        load_coco(*coco(text='{"images'))
    with pytest.raises(FileNotFoundError):
        load_coco("nowhere.json", ".")


def test_the_folder_of_pictures(coco):
    path, folder = coco(lambda d: d.update(info={"image_folder": "."}))
    assert load_coco(path).images == load_coco(path, folder).images
    names = [str(image.path) for image in load_coco_unchanged(path).images]
    assert names == ["1.png", "2.png", "3.png"]
    with pytest.raises(CaptioningError, match="images: .*captions.json is not a folder"):
        load_coco(path, path)
    for info in (None, {}, *({"image_folder": place} for place in (5, ["a"], {}, True))):
        path, _ = coco(lambda d, info=info: d.update(info=info))
        with pytest.raises(CaptioningError, match="does not say where its pictures are"):
            load_coco(path)


def test_skipping_counts_and_names(coco):
    def change(data):
        data["images"][0]["file_name"] = "x.png"
        data["annotations"][2]["caption"] = ""

    dataset = load_coco(*coco(change), on_error="skip")
    assert [image.id for image in dataset.images] == [2, 3]
    assert dataset.images[0].captions == ["picture 2 caption 2"]
    (missing,) = dataset.skipped["missing picture"]
    assert missing.endswith("x.png")
    assert dataset.skipped["caption without words"][0].endswith("2.png")
    nowhere = [{"id": i, "file_name": "x"} for i in (1, 2, 3)]
    with pytest.raises(CaptioningError, match="captions.json: no picture is left"):
        load_coco(*coco(lambda d: d.update(images=nowhere)), "skip")


def test_pictures_without_captions_are_skipped_where_captions_are_needed(coco):
    def change(data):
        data["annotations"] = data["annotations"][:3]  # no caption of picture 3
        data["annotations"][2]["caption"] = "..."

    path, folder = coco(change)
    dataset = load_coco(path, folder, "skip", need_captions=True)
    assert [image.id for image in dataset.images] == [1]
    assert dataset.skipped["no caption"] == [str(folder / name) for name in ("2.png", "3.png")]
    with pytest.raises(CaptioningError, match=r"2 x no caption: .*2\.png"):
        load_coco(path, folder, need_captions=True)
    assert [image.id for image in load_coco(path, folder, "skip").images] == [1, 2, 3]


def test_batches_are_sorted_and_share_pictures():
    vocabulary = Vocabulary.build(["a b c d e"])
    encoded = EncodedCaptions([["a", "a b c"], [], ["b c"]], vocabulary, 50)
    batch = encoded.make_batch(torch.tensor([0, 1, 2]))
    assert batch.indices.tolist() == [1, 2, 0] and batch.pictures.tolist() == [0, 2]
    assert batch.lengths.tolist() == [5, 4, 3] and batch.rows.tolist() == [0, 1, 0]
    a, b, c = (vocabulary.index[w] for w in "abc")
    rows = [START, a, b, c, END], [START, b, c, END, PAD], [START, a, END, PAD, PAD]
    assert batch.captions.tolist() == [*rows]


def test_long_captions_are_cut_and_still_end():
    vocabulary = Vocabulary.build(["a"])
    encoded = EncodedCaptions([["a " * 200, "a a a"]], vocabulary, max_words=3)
    assert encoded.cut_count == 1 and encoded.lengths.tolist() == [5, 5]
    assert encoded.tokens[0].tolist() == [START, 4, 4, 4, END]


def test_an_epoch_takes_every_caption_once_in_an_order_of_its_own():
    encoded = EncodedCaptions([["a"] * 101], Vocabulary.build(["a"]), 50)
    first = encoded.batches(10, seed=0, epoch=0)
    assert sorted(torch.cat(first).tolist()) == list(range(101))
    assert {len(batch) for batch in first} == {10, 11} and len(encoded.batches(1000, 0, 0)) == 1
    same, other = encoded.batches(10, 0, 0), encoded.batches(10, 0, 1)
    assert torch.equal(torch.cat(first), torch.cat(same))
    assert not torch.equal(torch.cat(first), torch.cat(other))


def test_batches_of_pictures_take_all_their_captions():
    images = [["a"] * count for count in (3, 0, 5, 1, 2, 4, 5, 4)]
    encoded = EncodedCaptions(images, Vocabulary.build(["a"]), 50)
    batches = encoded.batches(8, seed=0, epoch=0, by_picture=True)
    assert len(batches) == len(encoded.batches(8, 0, 0)) == 3
    assert sorted(torch.cat(batches).tolist()) == list(range(24))
    pictures = [set(encoded.picture_of[batch].tolist()) for batch in batches]
    assert sorted(map(len, pictures)) == [2, 2, 3] and len(set.union(*pictures)) == 7
    assert len(encoded.batches(2, 0, 0, by_picture=True)) == 7
    other = encoded.batches(8, 0, 1, by_picture=True)
    assert not torch.equal(torch.cat(batches), torch.cat(other))
