"""Other libraries' optimizers, those that are installed: `pip install ".[peers]"` brings them all."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from contenders.contender import Contender

PACKAGES_OF_TORCH = {
    "contenders.torch_optim": ["torch"],
    "contenders.transformers_adafactor": ["torch", "transformers"],
}
PACKAGES = {
    **PACKAGES_OF_TORCH,
    "contenders.optax_adafactor": ["jax", "optax"],
    "contenders.keras_adafactor": ["jax", "keras"],
}


def absent_packages() -> list[str]:
    wanted = {package for packages in PACKAGES.values() for package in packages}
    return sorted(package for package in wanted if find_spec(package) is None)


def load_peers() -> list[Contender]:
    return load(PACKAGES)


def load_in_torch() -> list[Contender]:
    """Optimizers of torch's kind, ours first."""
    return load({"contenders.in_torch": ["torch"], **PACKAGES_OF_TORCH})


def load(modules: dict[str, list[str]]) -> list[Contender]:
    """Import what can be imported; an installed package that fails to is an error."""
    absent = set(absent_packages())
    contenders: list[Contender] = []
    for module, packages in modules.items():
        if not absent.intersection(packages):
            contenders += import_module(module).CONTENDERS
    return contenders
