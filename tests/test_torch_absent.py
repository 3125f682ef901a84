"""Without torch the package imports, and adafactor_native.torch says what is missing."""


def test_the_package_needs_no_torch(python):
    said = python(
        """
        import sys
        import adafactor_native
        print("torch" in sys.modules, "adafactor_native.torch" in sys.modules)
        """
    )
    assert said.split() == ["False", "False"]


def test_what_is_missing_is_said_in_one_sentence(python):
    said = python(
        """
        import sys
        sys.modules["torch"] = None
        import adafactor_native
        try:
            import adafactor_native.torch
        except ModuleNotFoundError as error:
            print(error, "|", error.name)
        """
    )
    assert said.strip() == (
        "adafactor_native.torch needs PyTorch 2.5 or later, which is not installed: pip install "
        "'adafactor-native[torch]' | torch"
    )


def test_an_old_torch_is_named(python):
    said = python(
        """
        import sys, types
        old = types.ModuleType("torch")
        old.__version__, old.optim = "2.4.1", types.SimpleNamespace()
        sys.modules["torch"] = old
        try:
            import adafactor_native.torch
        except ImportError as error:
            print(error)
        """
    )
    assert "needs PyTorch 2.5 or later" in said and "this is 2.4.1" in said
