import pickle
import sys

import pytest

from foreserve.pyfile import load_file
from foreserve.runtime.factory import load_factory


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def shop(tmp_path):
    """A file with a neighbour of its own and one that is called like a module of the interpreter."""
    (tmp_path / "beside_the_shop.py").write_text("FACTOR = 3\n")
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('the wrong colorsys')\n")
    path = tmp_path / "shop.py"
    path.write_text(
        "import colorsys\nfrom beside_the_shop import FACTOR\n\n"
        "class Price:\n    pass\n\ndef price(n=1):\n    return n * FACTOR\n"
    )
    return path


@pytest.mark.parametrize(
    "price",
    [
        lambda path: load_file(path).price,
        lambda path: load_factory(f"{path}:price"),
    ],
)
def test_a_file_finds_its_neighbours_and_shadows_nothing_of_the_interpreter(shop, price):
    sys.modules.pop("colorsys", None)
    assert price(shop)(2) == 6


def test_files_of_one_name_are_modules_of_their_own(shop, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "shop.py").write_text("class Price:\n    pass\n")
    one, other = load_file(shop), load_file(tmp_path / "other" / "shop.py")
    for module in (one, other):
        made = module.Price()
        assert type(pickle.loads(pickle.dumps(made))) is module.Price


def test_a_file_that_fails_leaves_no_module(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_file(tmp_path / "broken.py")
    assert not any(name.startswith("foreserve_file_broken") for name in sys.modules)
