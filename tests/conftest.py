import os

import pytest


@pytest.fixture
def importable(monkeypatch, request):
    """The test's module by the name under which a rank's process finds it."""
    monkeypatch.setenv("PYTHONPATH", str(request.path.parent), prepend=os.pathsep)
    return request.path.stem
