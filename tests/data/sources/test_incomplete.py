"""Images with missing parts, from a person's files."""

import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from data.errors import UserError
from data.sources.images import resize
from data.sources.incomplete import load_numbers, read_incomplete, read_mask


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


def test_the_log_says_how_an_array_was_taken(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        np.save(tmp_path / "a.npy", np.full((2, 3, 8, 8), 9, np.uint8))
        read_incomplete([tmp_path / "a.npy"], 8)
    assert "a.npy: taken as 2 colour images (N, C, H, W) of uint8, 255 is white" in caplog.text


def test_nothing_known_is_said(tmp_path, caplog):
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    np.save(tmp_path / "empty.npy", np.full((1, 8, 8), np.nan))
    Image.fromarray(picture()).save(tmp_path / "whole.png")
    read_incomplete([tmp_path], 8)
    assert caplog.text.count("nothing of it is known") == 2
    assert "whole" not in caplog.text


GREY_MASK = np.full((16, 16), 255, np.uint8)
GREY_MASK[:8] = 0
HOLED = Image.fromarray(np.dstack([np.full((16, 16, 3), 200, np.uint8), GREY_MASK]))
MASKS = {
    "grey.png": Image.fromarray(GREY_MASK),
    "16 bits.png": Image.fromarray(GREY_MASK * np.uint16(257)),
    "1 bit.png": Image.fromarray(GREY_MASK).convert("1"),
    "0 and 1.png": Image.fromarray(GREY_MASK // 255),
    "colour.bmp": Image.fromarray(np.dstack([GREY_MASK] * 3)),
    "jpeg.jpg": Image.fromarray(GREY_MASK),
    "opaque.png": Image.fromarray(np.dstack([GREY_MASK] * 3 + [np.full_like(GREY_MASK, 255)])),
    "cut out of white.png": Image.fromarray(np.dstack([np.full((16, 16, 3), 255, np.uint8), GREY_MASK])),
    "cut out of a photo.webp": HOLED,
    "cut out of grey.png": HOLED.convert("LA"),
    "palette.png": HOLED.quantize(4),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_black_or_cut_out_where_nothing_is_known(tmp_path, caplog, name):
    MASKS[name].save(tmp_path / name)
    assert read_mask(tmp_path / name, 8).tolist() == [[False] * 8] * 4 + [[True] * 8] * 4
    assert not caplog.records


@pytest.mark.parametrize("white", [True, 1, np.uint8(255), 1.0])
def test_a_mask_may_be_an_array(tmp_path, white):
    known = np.eye(8, dtype=bool)
    np.save(tmp_path / "mask.npy", known * white)
    assert np.array_equal(read_mask(tmp_path / "mask.npy", 8), known)
    np.save(tmp_path / "mask.npy", np.stack([known * white] * 2))
    with pytest.raises(UserError, match="holds 2 masks: give one"):
        read_mask(tmp_path / "mask.npy", 8)
    np.save(tmp_path / "mask.npy", np.zeros((9, 9)))
    with pytest.raises(UserError, match=r"mask.npy: shape \(9, 9\)"):
        read_mask(tmp_path / "mask.npy", 8)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (Image.new("L", (16, 16)), "none of the 64 pixels is known"),
        (Image.new("RGBA", (16, 16), (255, 255, 255, 0)), "none of the 64 pixels is known"),
        (Image.new("L", (16, 16), 200), "all 64 pixels are known"),
        (Image.new("RGBA", (16, 16), "white"), "all 64 pixels are known"),
    ],
)
def test_a_mask_of_all_or_nothing_is_said(tmp_path, caplog, mask, said):
    mask.save(tmp_path / "mask.png")
    read_mask(tmp_path / "mask.png", 8)
    assert said in caplog.text


def test_a_mask_that_is_dark_here_and_transparent_there_is_said(tmp_path, caplog):
    rgba = np.full((8, 8, 4), 255, np.uint8)
    rgba[0, :, :3], rgba[1:3, :, 3] = 0, 0
    Image.fromarray(rgba).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", 8).tolist() == [[False] * 8] * 3 + [[True] * 8] * 5
    assert "16 pixels are missing because they are transparent, and 8 because they are dark" in caplog.text


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


def test_a_folder_without_its_arrays_of_other_things(tmp_path, caplog):
    """A mask, a map of depths, an array that can be meant in two ways: each is named, and refused when it was meant."""
    Image.fromarray(picture()).save(tmp_path / "a.png")
    others = {"mask.npy": np.ones((9, 9), bool), "depth.npy": np.full((8, 8), 7.5), "x.npy": np.zeros((3, 8, 8))}
    for name, array in others.items():
        np.save(tmp_path / name, array)
    names, _ = read_incomplete([tmp_path], 8)
    assert names == ["a"]
    for name in others:
        assert any(name in line and line.endswith(": left out") for line in caplog.messages)
        with pytest.raises(UserError, match=name):
            read_incomplete([tmp_path, tmp_path / name], 8)


def test_a_folder_is_walked_as_prepare_does(tmp_path):
    for name in ("a.png", ".ipynb_checkpoints/a-checkpoint.png", "._a.png", "__MACOSX/b.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture()).save(tmp_path / "in" / name)
    np.save(tmp_path / "in/.hidden.npy", np.zeros((1, 8, 8, 3)))
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(picture()).save(tmp_path / "elsewhere/z.jfif", "JPEG")
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/circle").symlink_to(tmp_path / "in")
    assert read_incomplete([tmp_path / "in"], 8)[0] == ["a", "z"]
    assert read_incomplete([tmp_path / "in/._a.png"], 8)[0] == ["._a"]  # named, it is meant


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("write", "cause"),
    [
        (lambda path: np.save(path, np.array([Evil()], dtype=object), allow_pickle=True), "no .npy array"),
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "no .npy array"),
        (lambda path: path.write_bytes(b""), "no .npy array of numbers .an empty file"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer"),
        (lambda path: np.save(path, np.zeros((2, 9, 9, 3), np.float32)), "resize or reshape"),
        (lambda path: np.save(path, np.zeros((0, 8, 8, 3), np.float32)), "resize or reshape"),
        (lambda path: np.save(path, np.zeros((2, 8, 8, 3), np.int64)), "give uint8"),
        (lambda path: np.save(path, np.zeros((3, 8, 8), np.float32)), "3 grey images or 1 colour image"),
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
