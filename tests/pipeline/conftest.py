import pytest


@pytest.fixture(scope="session")
def finished(checkouts):
    """A checkout in which the miniature has run from start to end. Tests leave it as they found it."""
    checkout = checkouts("finished")
    run = checkout.miniature()
    assert run.returncode == 0, run.stdout
    (checkout.folder / "first.log").write_text(run.stdout)
    return checkout
