"""What a person's files and arrays are taken for, and the data sets that can be prepared.

Another data set is a new file with its `Source`, and its place in `SOURCES`.
"""

import difflib

from data.errors import UserError
from data.sources.celeba import CelebA
from data.sources.digits import Digits
from data.sources.folder import Folder
from data.sources.idx import FASHION_MNIST, MNIST
from data.sources.samples import Source

SOURCES: dict[str, Source] = {source.name: source for source in (Digits(), MNIST, FASHION_MNIST, CelebA(), Folder())}


def find_source(name: str) -> Source:
    if name in SOURCES:
        return SOURCES[name]
    near = difflib.get_close_matches(name, SOURCES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(SOURCES)}"
    raise UserError(f"no data set is called {name!r}: {hint}")
