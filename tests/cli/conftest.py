from tests.fake_core import core

__all__ = ["core"]
