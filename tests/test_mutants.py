"""The list of mutations is sound. `python -m tests.mutants` tries them."""

from collections import Counter

import pytest

from tests.mutants import ROOMS, BrokenError, judge, place_of, product_of
from tests.mutations import MUTATIONS, Mutation

TESTS = ("tests/model/test_masks.py", "-k", "sizes")


@pytest.fixture(scope="module")
def product(root):
    return product_of(root)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_changes_one_place_and_has_tests(product, root, mutation):
    assert place_of(mutation, product)
    assert mutation.new != mutation.old
    files = [argument.partition("::")[0] for argument in mutation.tests if argument.startswith("tests/")]
    assert files
    assert all((root / file).is_file() for file in files)


def test_there_are_enough_in_every_room_and_each_is_another_one(product):
    assert len(MUTATIONS) >= 40
    assert (
        len({mutation.name for mutation in MUTATIONS})
        == len({mutation.old for mutation in MUTATIONS})
        == len(MUTATIONS)
    )
    rooms = Counter(place_of(mutation, product).partition("/")[0] for mutation in MUTATIONS)
    assert rooms.keys() == set(ROOMS)
    assert min(rooms.values()) >= 5


@pytest.mark.parametrize("old", ["no such text", "import"])
def test_a_text_that_is_not_there_once_is_refused(product, old):
    with pytest.raises(BrokenError, match="times in the product"):
        place_of(Mutation("", old, "", ()), product)


@pytest.mark.parametrize(
    ("code", "output", "verdict", "by"),
    [
        (0, "PASSED tests/model/test_masks.py::test_sizes[a b]", "SURVIVED", ""),
        (0, "s [100%]", "BROKEN", "no test"),  # skipped
        (None, "", "caught", "a hang of 600 s"),
        (
            1, "FAILED tests/model/test_masks.py::test_sizes[a b] - assert 1 - 1 == 2",
            "caught", "tests/model/test_masks.py::test_sizes[a b]",
        ),
        (
            1, "FAILED tests/model/test_masks.py::test_sizes[a b]\n1 failed",
            "caught", "tests/model/test_masks.py::test_sizes[a b]",
        ),
        (2, "ERROR tests/model/test_masks.py - SyntaxError: no", "caught", "tests/model/test_masks.py"),
        (2, "ERROR tests/trainer/test_task.py", "BROKEN", "exit code 2"),  # none of the named files
        (4, "ERROR: file or directory not found", "BROKEN", "exit code 4"),
        (5, "4 deselected", "BROKEN", "exit code 5"),
        (-11, "", "BROKEN", "exit code -11"),
    ],
)  # fmt: skip
def test_a_verdict_needs_a_test_that_passed_or_failed(code, output, verdict, by):
    found = judge(TESTS, code, output)
    assert found[0] == verdict
    assert by in found[1]
