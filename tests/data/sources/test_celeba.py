"""A small CelebA in the official layout."""

import os

import numpy as np
import pytest
from PIL import Image

from data.errors import UserError
from data.prepare import prepare
from data.sources import find_source
from data.sources.celeba import ATTRIBUTES, IMAGES, PARTITION, CelebA
from data.sources.images import DamagedImageError

COUNT, BITS = 12, 40
PARTS = [0, 2, 0, 1, 0, 0, 2, 0, 1, 0, 0, 0]
NAMES = [f"{number:06d}.jpg" for number in range(1, COUNT + 1)]
VALUES = np.random.default_rng(0).choice([-1, 1], (COUNT, BITS))


def lines(*parts):
    return "".join(f"{line}\n" for line in parts)


def partition_text(names=NAMES):
    return lines(*(f"{name} {part}" for name, part in zip(names, PARTS, strict=True)))


def attributes_text(values=VALUES):
    rows = (f"{name}  {' '.join(map(str, row))}" for name, row in zip(NAMES, values, strict=True))
    return lines(COUNT, " ".join(f"Attribute_{a}" for a in range(values.shape[1])), *rows)


def write(folder, below=IMAGES):
    """Each image has a colour of its own: 10 times its number, from the left to the right a little brighter."""
    (folder / below).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        pixels = np.full((218, 178, 3), 10 * number, np.uint8)
        pixels[:, :, 1] += np.arange(178, dtype=np.uint8) // 2
        Image.fromarray(pixels).save(folder / below / name, quality=95)
    (folder / PARTITION).write_text(partition_text())
    (folder / ATTRIBUTES).write_text(attributes_text())
    return folder


@pytest.fixture
def celeba(tmp_path):
    return write(tmp_path / "original")


def test_the_official_counts_are_known_without_a_folder():
    assert find_source("celeba").splits == {"train": 162_770, "val": 19_867, "test": 19_962}


@pytest.mark.parametrize("place", [".", "celeba", "CelebA"])
@pytest.mark.parametrize("below", [IMAGES, f"{IMAGES}/{IMAGES}"])
def test_the_official_layouts_are_read(tmp_path, place, below):
    write(tmp_path / "original" / place, below)
    loaded = CelebA().load(tmp_path / "original")
    expected = {"train": 0, "val": 1, "test": 2}
    assert list(loaded) == list(expected)
    for split, samples in loaded.items():
        numbers = [number for number, part in enumerate(PARTS) if part == expected[split]]
        assert samples.images.names == tuple(NAMES[number] for number in numbers)
        bits_NA = (samples.labels_N[:, None] >> np.arange(BITS)) & 1
        assert np.array_equal(bits_NA, VALUES[numbers] == 1)
        assert samples.labels_N.max() < samples.classes == 2**BITS
        for image, number in zip(samples.images, numbers, strict=True):
            assert image.shape == (148, 148, 3)
            assert abs(int(image[74, 74, 0]) - 10 * number) <= 2
            assert abs(int(image[0, 0, 1]) - 10 * number - 15 // 2) <= 2  # the crop starts at column 15


def checksums(folder):
    return {split: (samples.sha256, samples.classes) for split, samples in CelebA().load(folder).items()}


def to_kaggle(folder, *names):
    """Lists as Kaggle has them: commas, a line with the names of the columns, no count."""
    for name in names:
        rows = [line.split() for line in (folder / name).read_text().splitlines()]
        rows = [["image_id", "partition"], *rows] if name == PARTITION else [["image_id", *rows[1]], *rows[2:]]
        (folder / name).with_suffix(".csv").write_text(lines(*map(",".join, rows)))
        (folder / name).unlink()


@pytest.mark.parametrize("kaggle", [(PARTITION, ATTRIBUTES), (PARTITION,), (ATTRIBUTES,)])
def test_lists_of_kaggle_give_the_same(celeba, kaggle):
    before = checksums(celeba)
    to_kaggle(celeba, *kaggle)
    (celeba / IMAGES).rename(celeba / "images")
    (celeba / IMAGES).mkdir()
    (celeba / "images").rename(celeba / IMAGES / IMAGES)
    assert checksums(celeba) == before


@pytest.mark.parametrize("below", [IMAGES, f"{IMAGES}/{IMAGES}"])
def test_the_folders_of_the_official_drive_give_the_same(celeba, below):
    before = checksums(celeba)
    for name, place in ((IMAGES, f"Img/{below}"), (ATTRIBUTES, f"Anno/{ATTRIBUTES}"), (PARTITION, f"Eval/{PARTITION}")):
        (celeba / place).parent.mkdir(parents=True)
        (celeba / name).rename(celeba / place)
    assert checksums(celeba) == before


def test_the_official_lists_come_first(celeba):
    before = checksums(celeba)
    for name in (PARTITION, ATTRIBUTES):
        (celeba / name).with_suffix(".csv").write_text("nonsense")
    assert checksums(celeba) == before


@pytest.mark.parametrize("suffix", [".txt", ".csv"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_what_windows_puts_into_a_list_is_read(celeba, suffix, mark):
    """Its ends of lines, blank ones, and a byte-order mark."""
    before = checksums(celeba)
    if suffix == ".csv":
        to_kaggle(celeba, PARTITION, ATTRIBUTES)
    for name in (PARTITION, ATTRIBUTES):
        path = (celeba / name).with_suffix(suffix)
        path.write_bytes(mark + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert checksums(celeba) == before


@pytest.mark.parametrize(
    ("file", "before", "after", "fault"),
    [
        (PARTITION, "image_id,partition\n", "", "csv, line 1: should be the names of the columns, the first of them"),
        (ATTRIBUTES, "image_id,", "", "csv, line 1: should be the names of the columns, the first of them"),
        (PARTITION, f"{NAMES[2]},0", f"{NAMES[2]};0", "csv, line 4: should be a file name and 0, 1 or 2"),
        (PARTITION, f"{NAMES[2]},0\n", "", f"list_eval_partition.csv lacks 1 images .*_celeba.csv names.*{NAMES[2]}"),
        (ATTRIBUTES, f"{NAMES[0]},", f"{NAMES[0]},1,", "csv, line 2: should be a file name and 40 times 1 or -1"),
        (ATTRIBUTES, "Attribute_0,", "A," * 30, "csv, line 1: should name 1 to 62 attributes, not 69"),
    ],
)
def test_a_mistake_in_a_list_of_kaggle_names_file_and_line(celeba, file, before, after, fault):
    to_kaggle(celeba, PARTITION, ATTRIBUTES)
    path = (celeba / file).with_suffix(".csv")
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(UserError, match=fault):
        CelebA().load(celeba)


def test_a_split_without_images_is_left_out(celeba):
    (celeba / PARTITION).write_text(partition_text().replace(" 1\n", " 0\n"))
    assert list(CelebA().load(celeba)) == ["train", "test"]


def test_the_shards_have_128_pixels_unless_asked_otherwise(celeba, tmp_path):
    index = prepare("celeba", tmp_path / "out", source_dir=celeba, progress=False)
    assert index.image_shape == (128, 128, 3)
    assert index.classes == 2**BITS
    assert index.images == {"train": 8, "val": 2, "test": 2}
    assert index.replaced == []
    assert prepare("celeba", tmp_path / "small", source_dir=celeba, image_size=16, progress=False).content_bytes == 768


def test_the_checksum_tells_images_and_labels_apart(celeba):
    sums = {CelebA().load(celeba)["train"].sha256}
    (celeba / ATTRIBUTES).write_text(attributes_text(-VALUES))
    sums.add(CelebA().load(celeba)["train"].sha256)
    (celeba / IMAGES / NAMES[0]).write_bytes(b"other")
    sums.add(CelebA().load(celeba)["train"].sha256)
    (celeba / IMAGES / NAMES[0]).unlink()
    (celeba / IMAGES / NAMES[0]).symlink_to("nowhere")
    sums.add(CelebA().load(celeba)["train"].sha256)
    assert len(sums) == 4


def test_an_image_smaller_than_the_crop_is_damaged(celeba):
    Image.new("RGB", (147, 218)).save(celeba / IMAGES / NAMES[0])
    with pytest.raises(DamagedImageError, match="too small: 147x218"):
        CelebA().load(celeba)["train"].images[0]


def test_without_a_folder_it_says_where_to_get_one():
    with pytest.raises(UserError, match=r"list_eval_partition.*https://mmlab.*--source DIR"):
        CelebA().load(None)


def test_a_folder_without_the_files_is_refused(celeba):
    (celeba / PARTITION).unlink()
    with pytest.raises(UserError, match="does not hold the folder img_align_celeba and the files") as caught:
        CelebA().load(celeba)
    assert str(celeba) in str(caught.value)


def test_absent_images_are_counted_and_the_first_is_named(celeba):
    for number in (3, 7):
        (celeba / IMAGES / NAMES[number]).unlink()
    with pytest.raises(UserError, match=rf"lacks 2 of the 12 images that .* names, first {NAMES[3]}"):
        CelebA().load(celeba)


@pytest.mark.parametrize(
    ("file", "before", "after", "fault"),
    [
        (PARTITION, f"{NAMES[2]} 0", f"{NAMES[2]} 3", "line 3: should be a file name and 0, 1 or 2"),
        (PARTITION, f"{NAMES[2]} 0", NAMES[2], "line 3: should be"),
        (PARTITION, f"{NAMES[2]} 0", f"{NAMES[1]} 0", f"line 3: {NAMES[1]} is there twice"),
        (PARTITION, f"{NAMES[2]} 0", "../secret.jpg 0", "line 3: '../secret.jpg' is no plain file name"),
        (PARTITION, f"{NAMES[2]} 0", "a\0b.jpg 0", "is no plain file name"),
        (PARTITION, f"{NAMES[2]} 0\n", "", rf"list_eval_partition.txt lacks 1 images .*first {NAMES[2]}"),
        (PARTITION, f"{NAMES[2]} 0", "other.jpg 0", "list_attr_celeba.txt lacks 1 images .*first other.jpg"),
        (PARTITION, partition_text(), "", "names no images"),
        (ATTRIBUTES, "12\n", "13\n", "line 1: should be 12, the number of images"),
        (ATTRIBUTES, "12\n", "", "line 1: should be the number of images"),
        (ATTRIBUTES, f"{NAMES[0]}  ", f"{NAMES[0]}  1 ", "line 3: should be a file name and 40 times 1 or -1"),
        (ATTRIBUTES, f"{NAMES[0]}  ", f"{NAMES[0]}  x", "line 3: should be a file name and 40 times 1 or -1"),
        (ATTRIBUTES, f"{NAMES[1]}  ", f"{NAMES[0]}  ", f"line 4: {NAMES[0]} is there twice"),
        (ATTRIBUTES, "Attribute_0 ", "A " * 30, "line 2: should name 1 to 62 attributes, not 69"),
        (ATTRIBUTES, attributes_text(), "", "line 1: should be the number of images"),
        (ATTRIBUTES, attributes_text(), "0\n", "line 2: should name"),
    ],
)
def test_a_mistake_in_a_list_names_file_and_line(celeba, file, before, after, fault):
    text = (celeba / file).read_text()
    assert before in text
    (celeba / file).write_text(text.replace(before, after))
    with pytest.raises(UserError, match=fault) as caught:
        CelebA().load(celeba)
    assert file in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_list_beyond_all_bounds_is_not_parsed(celeba):
    os.truncate(celeba / PARTITION, 2**40)  # takes no room on the disk
    with pytest.raises(UserError, match="has more than 268,435,456 bytes"):
        CelebA().load(celeba)
