"""What a person writes for the tar files of a data set."""

import pytest

from data.errors import UserError
from data.storage.addresses import expand, require_addresses


def test_braces_stars_and_lists_are_expanded(tmp_path):
    for name in ("b-1.tar", "a-2.tar", "a-1.tar", "a.txt"):
        (tmp_path / name).touch()
    assert expand("s3://bucket/{00008..00010}.tar") == [
        f"s3://bucket/{name}.tar" for name in ("00008", "00009", "00010")
    ]
    assert expand("https://host/{a,b}/x.tar") == ["https://host/a/x.tar", "https://host/b/x.tar"]
    assert expand(f"{tmp_path}/a-*.tar") == [f"{tmp_path}/a-1.tar", f"{tmp_path}/a-2.tar"]
    assert expand(f"file://{tmp_path}/?-1.tar") == [f"file://{tmp_path}/a-1.tar", f"file://{tmp_path}/b-1.tar"]
    assert expand(f"{tmp_path}/b-1.tar::gs://bucket/c.tar") == [f"{tmp_path}/b-1.tar", "gs://bucket/c.tar"]


def test_a_path_means_the_same_file_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expand("set/0.tar") == [str(tmp_path / "set" / "0.tar")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("pipe:curl http://host/0.tar", "would run a program"),
        ("PIPE:rm -rf x.tar", "would run a program"),
        ("ftp://host/0.tar", "ftp:// cannot be read; file://, s3://, gs://, http://, https:// can"),
        ("https://user:secret@host/0.tar", "holds a name or password"),
        ("https://host/0.tar?X-Amz-Signature=secret", "holds a query"),
        ("s3://bucket/0.tar.gz", "is compressed"),
        ("s3://bucket/set", "is no name of .tar files"),
        ("", "is no name of .tar files"),
    ],
)
def test_what_cannot_be_read_is_refused_without_a_secret(text, reason):
    with pytest.raises(UserError, match=reason) as raised:
        require_addresses(text)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("s3://bucket/{}.tar", "the brace is empty or no range"),
        ("s3://bucket/{0..9.tar", "a brace is not closed"),
        ("s3://bucket/{0..99999999}.tar", "names more than 1,000,000 files"),
        ("s3://bucket/{0..2}.tar::s3://bucket/2.tar", "2.tar is named twice"),
        ("/nowhere/*.tar", "cannot be listed"),
        ("/*/0.tar", "stars can stand in the names of files"),
    ],
)
def test_patterns_that_name_nothing_are_refused(text, reason):
    with pytest.raises(UserError, match=reason):
        expand(text)


def test_stars_that_find_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no file in .* is called x\*\.tar"):
        expand(f"{tmp_path}/x*.tar")
