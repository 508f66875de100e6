"""Files that are complete or absent."""

import pytest

from data.files import write_aside


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    path = tmp_path / "report.json"
    (path / "in the way").mkdir(parents=True)  # a folder cannot be replaced by a file
    with pytest.raises(OSError, match="report.json"):
        write_aside(path, b"{}")
    assert list(tmp_path.iterdir()) == [path]
