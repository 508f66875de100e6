"""What object stores answer, in a few words."""

import pytest

from data.storage import objects


@pytest.mark.parametrize(
    ("root", "text", "message"),
    [
        ("s3://bucket/x", "performing PUT http://169.254.169.254/latest", "no credentials: set AWS_ACCESS_KEY_ID and"),
        ("gs://bucket/x", "http://metadata.google.internal", "no credentials: set GOOGLE_APPLICATION_CREDENTIALS"),
        ("s3://bucket/x", "status code: 503 Slow Down: <xml>key-of-tests</xml>", "the server answers 503 Slow Down"),
        ("s3://bucket/x", "error sending request", "the server cannot be reached"),
    ],
)
def test_what_a_store_says_becomes_a_few_words_without_secrets(monkeypatch, root, text, message):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    error = objects.ObjectFolder(root)._error(Exception(text))
    assert error.strerror.startswith(message)
    assert "key-of-tests" not in str(error)
