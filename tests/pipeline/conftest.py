import pytest


@pytest.fixture(scope="session")
def finished(checkouts):
    """A checkout in which the miniature has run from start to end. Tests leave it as they found it."""
    checkout = checkouts("finished")
    (checkout.folder / "results").mkdir()
    (checkout.folder / "results" / "report-so-far.html").write_text("of an earlier failure")
    run = checkout.miniature()
    assert run.returncode == 0, run.stdout
    (checkout.folder / "first.log").write_text(run.stdout)
    return checkout
