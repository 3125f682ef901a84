"""The models that bench/ steps have the tensors and parameters that their papers and users count."""

import math

import pytest

from models import MODELS

SIZES = {
    "ResNet-50": (161, 25_557_032),
    "ViT-B/16": (152, 86_567_656),
    "GPT-2 small": (148, 124_439_808),
    "T5-base": (257, 222_903_552),
    "Llama-3-8B layer": (9, 218_112_000),
}


@pytest.mark.parametrize("model", MODELS)
def test_model_has_its_tensors_and_parameters(model):
    shapes = MODELS[model]()
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == SIZES[model]
