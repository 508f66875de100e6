import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from data.errors import UserError
from data.prepare import prepare
from data.sources.folder import Folder


def write(folder, *names):
    """An image of a colour of its own under each name; what is no image by its name becomes a text."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".txt", ""):
            path.write_text("text")
        else:
            Image.new("RGB", (10, 8), (10 * number, 0, 0)).save(path)
    return folder


def content(folder):
    return {
        split: list(zip(s.images.names, s.labels_N.tolist(), strict=True)) for split, s in Folder().load(folder).items()
    }


def said(caplog, folder):
    """The content of a folder, and the lines that are logged."""
    caplog.clear()
    with caplog.at_level("INFO"):
        found = content(folder)
    return found, caplog.messages


def classes(found):
    """{split: {folder of the class: label}} of a content."""
    return {split: {name.split("/")[-2]: label for name, label in images} for split, images in found.items()}


def test_folders_named_after_splits_are_the_splits_and_those_below_the_classes(tmp_path):
    write(tmp_path, "train/b/1.png", "train/a/2.png", "train/a/deep/er/0.PNG", "test/c/1.jpg", "test/a/1.webp")
    assert content(tmp_path) == {
        "train": [("train/a/2.png", 0), ("train/a/deep/er/0.PNG", 0), ("train/b/1.png", 1)],
        "test": [("test/a/1.webp", 0), ("test/c/1.jpg", 2)],
    }
    assert Folder().load(tmp_path)["test"].classes == 3
    write(tmp_path, "val/b/9.bmp")
    assert list(content(tmp_path)) == ["train", "val", "test"]
    assert content(tmp_path)["val"] == [("val/b/9.bmp", 1)]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "valid", "test"),
        ("Train", "VAL", "Test"),
        ("training", "validation", "testing"),
        ("TRAINING", "dev", "eval"),
        ("train2017", "val2017", "test2017"),
        ("training_set", "dev-set", "test images"),
    ],
)
def test_splits_go_by_many_names(tmp_path, caplog, train, val, test):
    write(tmp_path, *(f"{split}/{name}/1.png" for split in (train, val, test) for name in ("cat", "dog")))
    found, lines = said(caplog, tmp_path)
    assert classes(found) == dict.fromkeys(("train", "val", "test"), {"cat": 0, "dog": 1})
    assert [images[0][0].partition("/")[0] for images in found.values()] == [train, val, test]
    assert f"took the folders {train} as train, {val} as val, {test} as test" in lines


@pytest.mark.parametrize("val", ["val", "Valid", "validation", "dev"])
def test_the_only_images_held_out_are_for_testing(tmp_path, caplog, val):
    write(tmp_path, *(f"{split}/{name}/{n}.png" for split in ("train", val) for name in ("cat", "dog") for n in "12"))
    found, lines = said(caplog, tmp_path)
    assert classes(found) == dict.fromkeys(("train", "test"), {"cat": 0, "dog": 1})
    assert {name.partition("/")[0] for name, _ in found["test"]} == {val}
    assert f"took the folders train as train, {val} as test (no other is for testing)" in lines
    assert "2 classes, by their folders: 0 is cat (4 images), 1 is dog (4 images)" in lines


def test_of_training_images_alone_a_tenth_is_for_testing(tmp_path, caplog):
    names = [f"imnet/train/{'ab'[n % 2]}/{n:03d}.png" for n in range(60)]
    write(tmp_path, *names)
    found, lines = said(caplog, tmp_path)
    test = [name for name in names if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0]
    assert [name for name, _ in found["test"]] == sorted(test)
    assert classes(found) == dict.fromkeys(("train", "test"), {"a": 0, "b": 1})
    assert f"{tmp_path}/imnet has no folder for testing: a tenth of train is" in lines


def test_images_outside_of_the_splits_are_left_over_and_counted(tmp_path, caplog):
    write(tmp_path, "train/a/1.png", "val/a/1.png", "more/b/2.png", "more/b/3.png", "4.png")
    found, lines = said(caplog, tmp_path)
    assert sum(map(len, found.values())) == 2
    assert "images left over, which lie in none of the splits: 3, first 4.png" in lines


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (("train/1.png", "val/1.png", "validation/2.png"), "two folders for val, val and validation"),
        (("train/1.png", "Train/1.png", "test/2.png"), "two folders for train, Train and train"),
        (("val/a/1.png", "val/b/2.png"), "has val but no folder of training images: .* --source .*/val"),
        (("a/1.png", "b/1.png", "Test/1.png"), "has Test but no folder of training images: .* rename Test"),
        (("train/1.png", "plane/2.png"), "train may be the training split or, like plane beside it, a class"),
        (("train/1.png", "val/1.png", "Testing/notes.txt"), "Testing holds no images"),
        (("train/a/1.png", "train/val/2.png", "test/a/3.png"), "the folder val among the classes of train"),
        (("train/train/1.png", "train/eval/2.png"), "the folder eval among the classes of train"),
    ],
)
def test_what_could_be_meant_in_two_ways_is_refused_in_one_line(tmp_path, names, fault):
    write(tmp_path, *names)
    with pytest.raises(UserError, match=fault) as caught:
        Folder().load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["seg_train/a/1.png", "a/train/1.png", "pics/part1/val/x/1.png"])
def test_folders_that_may_be_splits_are_named(tmp_path, caplog, name):
    write(tmp_path, "other/1.png", name)
    found, lines = said(caplog, tmp_path)
    assert sum(map(len, found.values())) == 2
    folder = name.rpartition("/")[0]
    assert any(f"not taken as splits, but may be meant so: 1, first {folder};" in line for line in lines)


@pytest.mark.parametrize("above", ["pics/", "archive/pics/", ""])
def test_single_folders_around_the_classes_are_none(tmp_path, caplog, above):
    names = [f"{above}{'cat' if n % 2 else 'dog'}/{n:03d}.png" for n in range(60)]
    write(tmp_path, *names, "read.txt")
    found, lines = said(caplog, tmp_path)
    test = [name for name in names if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0]
    assert [name for name, _ in found["test"]] == sorted(test)  # by the whole name
    assert classes(found) == dict.fromkeys(("train", "test"), {"cat": 0, "dog": 1})
    assert "2 classes, by their folders: 0 is cat (30 images), 1 is dog (30 images)" in lines


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (("train/images/cat", "train/images/dog"), ("test/images/cat", "test/images/dog")),
        (("train/images/cat", "train/images/dog"), ("test/cat", "test/dog")),
        (("train/cat", "train/dog"), ("test/images/dog",)),
        (("train/cat",), ("test/cat", "test/dog")),
        (("training_set/training_set/cat", "training_set/training_set/dog"), ("test_set/test_set/dog",)),
        (("imnet/train/cat", "imnet/train/dog"), ("imnet/val/cat", "imnet/val/dog")),
        (("a/b/train/x/cat", "a/b/train/x/dog"), ("a/b/eval/y/cat",)),
        (("train/cat",), ("test/dog",)),
        (("train/images/cat",), ("test/images/dog", "test/images/fox")),
    ],
)
def test_single_folders_around_and_in_the_splits_are_no_classes(tmp_path, train, test):
    write(tmp_path, *(f"{folder}/{n}.png" for folder in train + test for n in "12"))
    expected = {"cat": 0, "dog": 1, "fox": 2}
    found = classes(content(tmp_path))
    for split, folders in (("train", train), ("test", test)):
        assert found[split] == {name: expected[name] for name in (folder.split("/")[-1] for folder in folders)}


def test_folders_below_the_classes_of_another_split_are_none(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/dog/deep/1.png")
    assert content(tmp_path)["test"] == [("test/dog/deep/1.png", 1)]


def test_many_classes_are_named_in_part_and_one_without_training_images_is(tmp_path, caplog):
    write(tmp_path, *(f"train/{name}/1.png" for name in "abcdef"), "test/a/1.png", "test/new/1.png")
    lines = said(caplog, tmp_path)[1]
    shown = ", ".join(f"{n} is {name} ({2 if name == 'a' else 1} images)" for n, name in enumerate("abcde"))
    assert f"7 classes, by their folders: {shown}, and 2 more" in lines
    assert "classes without training images: 1, first new" in lines


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("train/a/1.png", "train/b/2.png", "train/3.png", "test/a/4.png"), "train/3.png lies in no folder"),
        (("pics/a/1.png", "pics/b/2.png", "pics/3.png"), "pics/3.png lies in no folder"),
        (("train/a/1.png", "train/b/2.png", "test1/3.png"), "test1/3.png lies in no folder"),
        (("1.png", "2.png"), "the images lie in no folders"),
        (("train/train/1.png", "test/test/2.png"), "the images lie in no folders"),
        (("pics/cat/1.png", "pics/cat/2.png"), "all images lie in the folder cat"),
        (("train/cat/deep/1.png", "test/cat/2.png"), "all images lie in the folder cat"),
        (("train/images/1.png", "test/images/2.png"), "all images lie in the folder images"),
    ],
)
def test_one_class_is_told_with_the_reason(tmp_path, caplog, names, why):
    write(tmp_path, *names)
    found, lines = said(caplog, tmp_path)
    assert sorted(image for images in found.values() for image in images) == [(name, 0) for name in sorted(names)]
    assert Folder().load(tmp_path)["train"].classes == 1
    assert any(line.startswith(f"one class: {why}") for line in lines)


def test_without_such_folders_the_name_of_an_image_decides(tmp_path):
    names = [f"{'ab'[n % 2]}/{n:03d}.png" for n in range(60)]
    write(tmp_path, *names)
    test = [name for name in names if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0]
    assert 0 < len(test) < 15
    found = content(tmp_path)
    assert found["test"] == [(name, "ab".index(name[0])) for name in sorted(test)]
    assert found["train"] == [(name, "ab".index(name[0])) for name in sorted(set(names) - set(test))]


@pytest.mark.parametrize("names", [("0.png", "1.png"), ("74.png", "7.png", "9.png")])
def test_there_is_an_image_for_training_and_one_for_testing(tmp_path, names):
    write(tmp_path, *names)
    found = content(tmp_path)
    assert len(found["train"]) >= 1
    assert len(found["test"]) >= 1


def test_images_that_would_all_be_for_testing_leave_one_for_training(tmp_path):
    names = [f"{n}.png" for n in range(60)]
    chosen = [name for name in names if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0][:2]
    write(tmp_path, *chosen)
    assert {split: len(images) for split, images in content(tmp_path).items()} == {"train": 1, "test": 1}


def test_one_image_and_none_are_refused(tmp_path):
    write(tmp_path, "notes.txt")
    with pytest.raises(UserError, match="holds no images"):
        Folder().load(tmp_path)
    write(tmp_path, "1.png")
    with pytest.raises(UserError, match="holds one image, two are needed"):
        Folder().load(tmp_path)
    write(tmp_path, "train/1.png", "test/notes.txt")
    with pytest.raises(UserError, match="test holds no images"):
        Folder().load(tmp_path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        Folder().load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="--source DIR"):
        Folder().load(None)


def test_hidden_and_other_files_are_left_out_and_counted(tmp_path, caplog):
    write(tmp_path, "1.png", "2.png", ".hidden.png", ".git/3.png", "read.txt", "b/LICENSE")
    with caplog.at_level("INFO"):
        names = [name for split in content(tmp_path).values() for name, _ in split]
    assert sorted(names) == ["1.png", "2.png"]
    assert "files that are no images, left out: 2, first b/LICENSE" in caplog.text


def test_linked_folders_are_followed_but_not_in_circles(tmp_path, caplog):
    write(tmp_path / "disk", "dog/1.png", "dog/2.png", "dog/deep/3.png")
    folder = write(tmp_path / "folder", "cat/1.png", "cat/2.png")
    (folder / "dog").symlink_to(tmp_path / "disk/dog")
    for name, target in {"cat/self.png": "1.png", "again": "dog", "cat/up": "..", "gone": "/absent/bird"}.items():
        (folder / name).symlink_to(target)
    found, lines = said(caplog, folder)
    names = {name: label for images in found.values() for name, label in images}
    assert set(names) == {"again/1.png", "again/2.png", "again/deep/3.png", "cat/1.png", "cat/2.png", "cat/self.png"}
    assert {names["cat/1.png"], names["again/1.png"]} == {0, 1}
    told = "links not followed, because they lead back or to a folder that is read already: 2, first cat/up"
    assert told in lines
    assert "links that lead to nothing: 1, first gone" in lines


def test_splits_and_classes_may_be_links(tmp_path):
    write(tmp_path / "disk", "a/1.png", "b/2.png", "test/a/3.png")
    (tmp_path / "folder/train").mkdir(parents=True)
    for name in ("train/a", "train/b", "test"):
        (tmp_path / "folder" / name).symlink_to(tmp_path / "disk" / name.removeprefix("train/"))
    assert content(tmp_path / "folder") == {
        "train": [("train/a/1.png", 0), ("train/b/2.png", 1)],
        "test": [("test/a/3.png", 0)],
    }


def test_what_is_packed_is_to_be_unpacked(tmp_path):
    write(tmp_path, "read.txt")
    (tmp_path / "pics.TAR.gz").write_bytes(b"packed")
    with pytest.raises(UserError, match=r"holds no images .*: unpack pics.TAR.gz"):
        Folder().load(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(UserError, match="holds no images .*: it is prepared already"):
        Folder().load(tmp_path)


def test_the_order_is_that_of_the_names_whatever_the_file_system_says(tmp_path, monkeypatch):
    write(tmp_path, *(f"train/{name}/{n}.png" for name in "ba" for n in (10, 2)), "test/a/1.png")
    plain = content(tmp_path)
    listed = os.scandir

    class Reversed:
        def __init__(self, path):
            self.entries = sorted(listed(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return self.entries

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert content(tmp_path) == plain
    assert [name for name, _ in plain["train"]] == [
        "train/a/10.png",
        "train/a/2.png",
        "train/b/10.png",
        "train/b/2.png",
    ]


def test_names_that_are_no_text_are_written_and_shown(tmp_path):
    folder = os.fsencode(write(tmp_path / "folder", "1.png", "2.png"))
    os.rename(folder + b"/2.png", folder + b"/\xff\n.png")
    with open(folder + b"/\xfe\n.png", "wb") as file:
        file.write(b"no image")
    index = prepare("folder", tmp_path / "out", source_dir=tmp_path / "folder", image_size=8, progress=False)
    assert sum(index.images.values()) == 3
    assert [image.name for image in index.replaced] == ["\\udcfe\\n.png"]


def test_several_frames_are_counted_and_named(tmp_path, caplog):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    write(tmp_path, "train/1.png", "test/1.png")
    frames[0].save(tmp_path / "train/moving.gif", save_all=True, append_images=frames[1:])
    with caplog.at_level("INFO"):
        samples = Folder().load(tmp_path)["train"]
    assert samples.images[1][0, 0].tolist() == [255, 0, 0]
    assert "1 images have several frames, of which the first is used: first train/moving.gif" in caplog.text


def test_the_shards_hold_the_images(tmp_path):
    write(tmp_path / "folder", *(f"train/{n}/x.png" for n in range(5)), "test/0/y.png")
    index = prepare("folder", tmp_path / "out", source_dir=tmp_path / "folder", progress=False)
    assert index.image_shape == (64, 64, 3)
    assert (index.classes, index.images) == (5, {"train": 5, "test": 1})
    record = index.splits["train"][0].records[0]
    with (tmp_path / "out" / index.splits["train"][0].name).open("rb") as file:
        file.seek(record.images.offset)
        images_NHWC = np.load(file)
    assert images_NHWC[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
