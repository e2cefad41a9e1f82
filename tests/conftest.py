"""Paths and small helpers that several test files need."""
import json
import signal
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "parity")]
# as torchrun gives each process: small models gain nothing from a second thread, lose much to it where cores are
# shared, and round in another way
torch.set_num_threads(1)


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU here"))


@pytest.fixture(autouse=True)
def signals_as_they_were():
    """A stage that runs in this process takes SIGTERM for a request to save; afterwards it must end pytest again."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def parity(tmp_path):
    """parity("case") -> (path of a checkpoint file in the published layout, inputs, outputs), tensors throughout."""
    import cases

    def load(name):
        state, wrap, inputs, outputs = cases.load(ROOT / "tests" / "parity" / f"{name}.npz")
        path = tmp_path / f"{name}.pth"
        torch.save({k: torch.as_tensor(v) for k, v in state.items()}, path)
        return path, *({k: torch.as_tensor(v) for k, v in d.items()} for d in (inputs, outputs))
    return load


@pytest.fixture(scope="session")
def read_json():
    """read_json(path) -> the content of a file that is JSON to the letter, without NaN or Infinity."""
    def refuse(word):
        raise ValueError(f"{word} is not JSON")
    return lambda path: json.loads(Path(path).read_text(), parse_constant=refuse)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A miniature of the demo corpus, made once a session."""
    from wren.sound import demo
    return demo.make(tmp_path_factory.mktemp("corpus") / "demo", scale=0.05, progress=False)
