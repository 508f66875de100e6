import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from data.errors import UserError
from data.folder import Folder
from data.shards import prepare
from data.sources import split_sizes


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


def test_one_image_outside_of_the_classes_makes_them_one(tmp_path):
    write(tmp_path, "train/a/1.png", "train/b/2.png", "train/3.png", "test/a/4.png")
    assert content(tmp_path)["train"] == [("train/3.png", 0), ("train/a/1.png", 0), ("train/b/2.png", 0)]
    assert Folder().load(tmp_path)["train"].classes == 1


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
    assert "2 files or links, first b/LICENSE" in caplog.text


def test_links_to_folders_are_not_followed(tmp_path, caplog):
    write(tmp_path / "outside", "secret.png")
    folder = write(tmp_path / "folder", "1.png", "2.png")
    (folder / "circle").symlink_to(".")
    (folder / "out.png").symlink_to(tmp_path / "outside")
    (folder / "linked.png").symlink_to("1.png")  # a link to a file is a file
    with caplog.at_level("INFO"):
        names = [name for split in content(folder).values() for name, _ in split]
    assert sorted(names) == ["1.png", "2.png", "linked.png"]
    assert "2 files or links, first circle" in caplog.text


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


def test_its_size_is_known_only_to_its_shards():
    with pytest.raises(UserError, match="once it is prepared"):
        split_sizes("folder")
