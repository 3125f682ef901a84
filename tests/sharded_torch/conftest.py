"""Without torch these tests are skipped, and say so."""

from torch_adapter.conftest import pytest_pycollect_makemodule

__all__ = ["pytest_pycollect_makemodule"]
