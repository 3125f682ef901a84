"""The parameters of well-known models, by name: shapes that follow from each architecture."""

from __future__ import annotations

from collections.abc import Callable

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def gpt2_small() -> Shapes:
    """Radford et al. 2019. Weights are (in, out); the output shares the token embedding."""
    width, layers, vocabulary, positions = 768, 12, 50257, 1024
    shapes: Shapes = {"wte": (vocabulary, width), "wpe": (positions, width)}
    for i in range(layers):
        block = f"h.{i}"
        shapes |= norm(f"{block}.ln_1", width)
        shapes |= conv1d(f"{block}.attn.c_attn", width, 3 * width)
        shapes |= conv1d(f"{block}.attn.c_proj", width, width)
        shapes |= norm(f"{block}.ln_2", width)
        shapes |= conv1d(f"{block}.mlp.c_fc", width, 4 * width)
        shapes |= conv1d(f"{block}.mlp.c_proj", 4 * width, width)
    return shapes | norm("ln_f", width)


def t5_base() -> Shapes:
    """Raffel et al. 2020, version 1.0: no biases, one embedding for encoder, decoder and output."""
    width, hidden, layers, heads, vocabulary, buckets = 768, 3072, 12, 12, 32128, 32
    shapes: Shapes = {"shared": (vocabulary, width)}
    for stack in ("encoder", "decoder"):
        attentions = (
            ["SelfAttention"] if stack == "encoder" else ["SelfAttention", "EncDecAttention"]
        )
        for i in range(layers):
            for k, attention in enumerate(attentions):
                part = f"{stack}.block.{i}.layer.{k}"
                for projection in "qkvo":
                    shapes |= linear(f"{part}.{attention}.{projection}", width, width, bias=False)
                if i == 0 and k == 0:  # the layers above use the first one's
                    shapes[f"{part}.{attention}.relative_attention_bias"] = (buckets, heads)
                shapes[f"{part}.layer_norm"] = (width,)
            part = f"{stack}.block.{i}.layer.{len(attentions)}"
            shapes |= linear(f"{part}.DenseReluDense.wi", width, hidden, bias=False)
            shapes |= linear(f"{part}.DenseReluDense.wo", hidden, width, bias=False)
            shapes[f"{part}.layer_norm"] = (width,)
        shapes[f"{stack}.final_layer_norm"] = (width,)
    return shapes


def vit_b_16() -> Shapes:
    """Dosovitskiy et al. 2021, for images of 224x224 and the 1000 classes of ImageNet."""
    width, layers, image, patch, colours, classes = 768, 12, 224, 16, 3, 1000
    shapes: Shapes = {
        "class_token": (1, 1, width),
        "conv_proj.weight": (width, colours, patch, patch),
        "conv_proj.bias": (width,),
        "pos_embedding": (1, (image // patch) ** 2 + 1, width),
    }
    for i in range(layers):
        block = f"layers.{i}"
        shapes |= norm(f"{block}.ln_1", width)
        shapes |= linear(f"{block}.self_attention.in_proj", width, 3 * width)
        shapes |= linear(f"{block}.self_attention.out_proj", width, width)
        shapes |= norm(f"{block}.ln_2", width)
        shapes |= linear(f"{block}.mlp.0", width, 4 * width)
        shapes |= linear(f"{block}.mlp.3", 4 * width, width)
    return shapes | norm("ln", width) | linear("heads.head", width, classes)


def resnet50() -> Shapes:
    """He et al. 2016. Kernels are (out, in, height, width); of batch norm, what is trained."""
    stem, expansion, classes = 64, 4, 1000
    shapes = convolution("conv1", "bn1", 3, stem, kernel=7)
    channels = stem
    for stage, blocks in enumerate((3, 4, 6, 3)):
        narrow, wide = stem << stage, expansion * stem << stage
        for i in range(blocks):
            block = f"layer{stage + 1}.{i}"
            for k, (inputs, outputs, kernel) in enumerate(
                [(channels, narrow, 1), (narrow, narrow, 3), (narrow, wide, 1)], start=1
            ):
                shapes |= convolution(f"{block}.conv{k}", f"{block}.bn{k}", inputs, outputs, kernel)
            if i == 0:
                part = f"{block}.downsample"
                shapes |= convolution(f"{part}.0", f"{part}.1", channels, wide, kernel=1)
            channels = wide
    return shapes | linear("fc", channels, classes)


def llama3_8b_layer() -> Shapes:
    """One of the 32 decoder layers of Llama 3 8B (Grattafiori et al. 2024): four queries to a key."""
    width, hidden, heads, key_heads = 4096, 14336, 32, 8
    key_width = width // heads * key_heads
    return {
        **linear("self_attn.q_proj", width, width, bias=False),
        **linear("self_attn.k_proj", width, key_width, bias=False),
        **linear("self_attn.v_proj", width, key_width, bias=False),
        **linear("self_attn.o_proj", width, width, bias=False),
        **linear("mlp.gate_proj", width, hidden, bias=False),
        **linear("mlp.up_proj", width, hidden, bias=False),
        **linear("mlp.down_proj", hidden, width, bias=False),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }


def llama3_70b() -> Shapes:
    """Grattafiori et al. 2024, its matrices only: 562 that are cut over many hosts, and never made here."""
    width, hidden, key_width, layers, vocabulary = 8192, 28672, 1024, 80, 128256
    shapes: Shapes = {
        "embed_tokens.weight": (vocabulary, width),
        "lm_head.weight": (vocabulary, width),
    }
    widths = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width, key_width),
        "self_attn.v_proj": (width, key_width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (width, hidden),
        "mlp.up_proj": (width, hidden),
        "mlp.down_proj": (hidden, width),
    }
    for i in range(layers):
        for name, (inputs, outputs) in widths.items():
            shapes |= linear(f"layers.{i}.{name}", inputs, outputs, bias=False)
    return shapes


MODELS: dict[str, Callable[[], Shapes]] = {
    "ResNet-50": resnet50,
    "ViT-B/16": vit_b_16,
    "GPT-2 small": gpt2_small,
    "T5-base": t5_base,
    "Llama-3-8B layer": llama3_8b_layer,
}


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    weight: Shapes = {f"{name}.weight": (outputs, inputs)}
    return weight | {f"{name}.bias": (outputs,)} if bias else weight


def conv1d(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def convolution(name: str, norm_name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    """Without a bias: the batch norm that follows has one."""
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), **norm(norm_name, outputs)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
