"""Images with missing parts, from a person's files."""

import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from data.errors import UserError
from data.images import resize
from data.incomplete import load_numbers, read_incomplete, read_mask


def picture(side=16):
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)


def test_a_whole_image_is_what_the_shards_would_hold(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    names, images = read_incomplete([tmp_path / "a.png"], 8)
    assert names == ["a"]
    assert np.array_equal((images[0] * 255).round().astype(np.uint8), resize(picture(), 8))


def test_alpha_0_is_missing_and_does_not_mix_into_what_is_known(tmp_path):
    """What lies below the transparency, a bright red, is nowhere to be seen."""
    rgba = np.dstack([picture() // 2, np.full((16, 16), 255, np.uint8)])
    rgba[:, 9:] = (255, 0, 0, 0)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    _, images = read_incomplete([tmp_path / "a.png"], 8)
    missing = np.isnan(images[0]).any(-1)
    assert missing[:, 5:].all()
    assert not missing[:, :4].any()
    assert np.nanmax(images) <= 0.5
    rgba[:, 9:, :3] = 0
    Image.fromarray(rgba).save(tmp_path / "b.png")
    assert np.array_equal(read_incomplete([tmp_path / "b.png"], 8)[1], images, equal_nan=True)


def test_arrays_keep_their_values_and_their_nan(tmp_path):
    values = np.random.default_rng(0).random((3, 8, 8, 3)).astype(np.float32)
    values[1, 2:4] = np.nan
    np.save(tmp_path / "all.npy", values)
    names, images = read_incomplete([tmp_path / "all.npy"], 8)
    assert names == ["all-0", "all-1", "all-2"]
    assert np.array_equal(images, values, equal_nan=True)
    np.save(tmp_path / "grey.npy", (values[0, ..., 0] * 255).astype(np.uint8)[None])
    assert read_incomplete([tmp_path / "grey.npy"], 8)[1].shape == (1, 8, 8, 3)
    np.save(tmp_path / "one.npy", values[0])
    assert np.array_equal(read_incomplete([tmp_path / "one.npy"], 8)[1][0], values[0])


def test_a_mask_is_black_where_nothing_is_known(tmp_path):
    mask = np.full((16, 16), 255, np.uint8)
    mask[:8] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", 8).tolist() == [[False] * 8] * 4 + [[True] * 8] * 4


def test_a_folder_without_its_damaged_images(tmp_path, caplog):
    Image.fromarray(picture()).save(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "c.npy").write_bytes(b"no array")
    (tmp_path / "notes.txt").write_text("no image either")
    with caplog.at_level(logging.WARNING):
        names, _ = read_incomplete([tmp_path], 8)
    assert names == ["b"]
    assert "a.png: no image in JPEG" in caplog.text
    assert "c.npy: no .npy array of numbers" in caplog.text
    (tmp_path / "b.png").unlink()
    with pytest.raises(UserError, match="none of the images can be read"):
        read_incomplete([tmp_path], 8)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("write", "cause"),
    [
        (lambda path: np.save(path, np.array([Evil()], dtype=object), allow_pickle=True), "no .npy array"),
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "no .npy array"),
        (lambda path: path.write_bytes(b""), "no .npy array"),
        (lambda path: np.save(path, np.zeros((2, 9, 9, 3), np.float32)), "resize or reshape"),
        (lambda path: np.save(path, np.zeros((0, 8, 8, 3), np.float32)), "resize or reshape"),
        (lambda path: np.save(path, np.zeros((2, 8, 8, 3), np.int64)), "give uint8"),
    ],
)
def test_arrays_that_are_none_of_ours(tmp_path, write, cause, capsys):
    write(tmp_path / "a.npy")
    with pytest.raises(UserError, match=cause) as refusal:
        read_incomplete([tmp_path / "a.npy"], 8)
    assert "\n" not in str(refusal.value)
    assert "executed" not in capsys.readouterr().out


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_incomplete([tmp_path / "nowhere.png"], 8)
    with pytest.raises(UserError, match="holds no images"):
        read_incomplete([tmp_path], 8)
    with pytest.raises(UserError, match="the mask .* cannot be read"):
        read_mask(tmp_path / "nowhere.png", 8)


def test_images_of_one_name_are_told_apart(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture()).save(tmp_path / folder / "a.png")
    assert read_incomplete([tmp_path], 8)[0] == [str(tmp_path / folder / "a.png") for folder in ("one", "two")]


def test_a_path_that_no_disk_holds(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_incomplete([tmp_path / ("a" * 300)], 8)


def npy(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize("shape", ["(10**12,)", "(1000000000000, 8, 8, 3)", "(99999999999999999999999,)", "((1, 2"])
def test_headers_of_arrays_that_lie(tmp_path, shape):
    (tmp_path / "a.npy").write_bytes(npy(shape))
    with pytest.raises(UserError, match="no .npy array of numbers") as refusal:
        read_incomplete([tmp_path / "a.npy"], 8)
    assert "\n" not in str(refusal.value)


def test_archives_that_are_damaged(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, mu=np.zeros((40, 4), np.float32))
    assert load_numbers(path, "mu").shape == (40, 4)
    sound = path.read_bytes()
    for content in (sound[:-40], sound[:100], sound[:300] + b"\xff" * 4 + sound[304:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"\w"):
            load_numbers(path, "mu")
    path.write_bytes(sound)
    for name in (None, "other"):
        with pytest.raises(ValueError, match="several arrays|other"):
            load_numbers(path, name)


def test_what_is_more_than_half_opaque_is_known(tmp_path):
    Image.fromarray(np.dstack([picture(8), np.full((8, 8), [100] * 4 + [200] * 4, np.uint8)])).save(tmp_path / "a.png")
    _, images = read_incomplete([tmp_path / "a.png"], 8)
    assert np.isnan(images[0, :, :4]).all()
    assert np.allclose(images[0, :, 4:], picture(8)[:, 4:] / 255, atol=1e-6)
