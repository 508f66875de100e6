import os

import pytest

from data.errors import UserError
from data.sources.walk import find_files


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def test_hidden_files_and_those_of_systems_are_not_a_persons(tmp_path):
    write(tmp_path, "a.png", "b/c.png", "b/.d.png", ".e/f.png", "__MACOSX/g.png", "b/@eaDir/h.png", "._a.png")
    assert find_files(tmp_path).names == ("a.png", "b/c.png")


def test_linked_folders_are_followed(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    write(here, "a/1.png")
    write(there, "b/2.png", "3.png")
    (here / "link").symlink_to(there)
    (here / "3.png").symlink_to(there / "3.png")
    (here / "gone.png").symlink_to(there / "absent.png")
    found = find_files(here)
    assert found.names == ("3.png", "a/1.png", "gone.png", "link/3.png", "link/b/2.png")
    assert found.circles == ()
    assert found.broken == ("gone.png",)


def test_a_folder_is_read_once_and_never_in_circles(tmp_path):
    root = tmp_path / "root"
    write(root, "z/1.png")
    write(tmp_path, "beside/2.png")
    for name, target in {"a": root / "z", "up": tmp_path, "z/self": root / "z", "b": "beside", "c": "beside"}.items():
        (root / name).symlink_to(tmp_path / target)
    found = find_files(root)
    assert found.names == ("b/2.png", "z/1.png")
    assert found.circles == ("a", "c", "up", "z/self")
    (tmp_path / "entry").symlink_to(root)
    assert find_files(tmp_path / "entry") == found


def test_a_link_to_itself_costs_nothing_else(tmp_path):
    write(tmp_path, "a.png")
    (tmp_path / "self").symlink_to("self")
    assert find_files(tmp_path).names == ("a.png", "self")
    assert find_files(tmp_path).broken == ("self",)


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent cannot be read: No such file"):
        find_files(tmp_path / "absent")
    if os.getuid():
        (tmp_path / "shut").mkdir(mode=0)
        with pytest.raises(UserError, match=r"shut cannot be read"):
            find_files(tmp_path)
