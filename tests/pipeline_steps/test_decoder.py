"""The decoder's loss and every gradient, held against transformers with PEFT; on the GPU too where there is one."""

from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline_steps.contract.errors import StepError  # noqa: E402
from pipeline_steps.training import fp8, kernels, nf4  # noqa: E402
from pipeline_steps.training.attention import Documents  # noqa: E402
from pipeline_steps.training.decoder import Decoder, adapter_parameters, parameters_of  # noqa: E402
from pipeline_steps.training.projections import Tuning  # noqa: E402

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
LENGTHS = (17, 5, 30)  # tokens of the documents
SHAPE = {
    "vocab_size": 300, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 192, "rms_norm_eps": 1e-5,
}  # fmt: skip
MODELS: dict[str, Any] = {
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, head_dim=32)),
    "llama with tied embeddings": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "qwen 2": lambda: with_random_vectors(Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True))),
    "qwen 3": lambda: with_random_vectors(Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=48))),
    "llama 3 with scaled positions": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SHAPE,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
        )
    ),
}  # fmt: skip


def with_random_vectors(model: Any) -> Any:
    """Biases and norms that are not what they start as, zeros and ones: a model that left them out would be the same."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith((".bias", "q_norm.weight", "k_norm.weight")):
                weight.add_(torch.randn_like(weight) * 0.3)
    return model


def tokens() -> tuple[Any, Any]:
    """Ids and labels of the documents in one stream: of each, the first two tokens are not learned."""
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 300, (sum(LENGTHS),), generator=random)
    labels = torch.full_like(ids, -100)
    start = 0
    for length in LENGTHS:
        labels[start + 1 : start + length - 1] = ids[start + 2 : start + length]
        start += length
    return ids, labels


def ours(reference: Any, tuning: Tuning, device: str = "cpu") -> Decoder:
    """The same weights, and a random adapter that is no longer zero."""
    model = Decoder(reference.config, tuning).to(device)
    model.load({name: (lambda tensor=tensor: tensor) for name, tensor in reference.state_dict().items()})
    random = torch.Generator().manual_seed(5)
    for _, projection in model.projections():
        projection.reset_adapters(random)
        if tuning.method != "full":
            with torch.no_grad():
                projection.lora_b.copy_(torch.randn(projection.lora_b.shape, generator=random) * 0.05)
    return model


def with_our_adapter(reference: Any, model: Decoder) -> Any:
    adapted = get_peft_model(
        reference,
        LoraConfig(
            r=model.tuning.rank,
            lora_alpha=model.tuning.alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    named = {name.replace(".weight", ".default.weight"): tensor for name, tensor in model.adapter().items()}
    found = adapted.load_state_dict(named, strict=False)
    assert not found.unexpected_keys and not [name for name in found.missing_keys if "lora_" in name]
    return adapted


def one_by_one(reference: Any, device: str) -> Any:
    """The reference's loss: each document alone, as transformers computes it."""
    ids, labels = (tensor.to(device) for tensor in tokens())
    losses = []
    for document, wanted in zip(ids.split(LENGTHS), labels.split(LENGTHS), strict=True):
        logits = reference(input_ids=document[None]).logits[0].float()
        losses.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum", ignore_index=-100))
    return sum(losses)


def loss_of(model: Decoder, device: str = "cpu") -> Any:
    ids, labels = (tensor.to(device) for tensor in tokens())
    return model(ids, Documents(LENGTHS, torch.device(device)), *learned_of(labels))


def learned_of(labels: Any) -> tuple[Any, Any]:
    """Places that predict a learned token, and those tokens."""
    places = torch.nonzero(labels >= 0).squeeze(1)
    return places, labels[places]


def error(found: Any, expected: Any) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def adapter_gradients(model: Decoder) -> dict[str, Any]:
    gradients, rank = {}, model.tuning.rank
    for place, projection in model.projections():
        for number, part in enumerate(projection.parts):
            name = f"base_model.model.{place}.{part}"
            gradients[f"{name}.lora_A.default.weight"] = projection.lora_a.grad[number * rank : (number + 1) * rank]
            gradients[f"{name}.lora_B.default.weight"] = projection.lora_b.grad[projection.rows_of(part)]
    return gradients


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recompute", ["nothing", "gate_up", "layer"])
@pytest.mark.parametrize("name", MODELS)
def test_lora_gives_the_loss_and_gradients_of_peft(name: str, recompute: Any, device: str) -> None:
    kind = torch.bfloat16 if device == "cuda" else torch.float32  # the GPU's attention has no float32
    # transformers in bfloat16 is itself off from float32 by up to 0.022, with Qwen 2's biases by 0.038.
    allowed = (0.06 if name == "qwen 2" else 0.03) if device == "cuda" else 1e-5
    torch.manual_seed(0)
    reference = MODELS[name]().float().to(device)
    model = ours(reference, Tuning("lora", rank=4, alpha=8, kind=kind), device)
    model.recompute = recompute
    adapted = with_our_adapter(reference, model)
    expected = one_by_one(adapted, device)
    expected.backward()
    loss = loss_of(model, device)
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=allowed / 10)
    references = {key: weight.grad for key, weight in adapted.named_parameters() if weight.requires_grad}
    found = adapter_gradients(model)
    assert found.keys() == references.keys()
    assert max(error(found[key], references[key]) for key in found) < allowed


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recompute", ["nothing", "layer"])
@pytest.mark.parametrize("name", MODELS)
def test_full_tuning_gives_the_gradient_of_every_weight(name: str, recompute: Any, device: str) -> None:
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    allowed = 0.03 if device == "cuda" else 1e-5
    torch.manual_seed(0)
    reference = MODELS[name]().float().to(device)
    model = ours(reference, Tuning("full", kind=kind), device)
    model.recompute = recompute
    expected = one_by_one(reference, device) + one_by_one(reference, device)
    expected.backward()
    loss_of(model, device).backward()
    loss = 2 * loss_of(model, device)
    (loss / 2).backward()  # a second micro-batch adds to what the first left

    assert loss.item() == pytest.approx(expected.item(), rel=allowed / 10)
    found = {key: weight.grad for key, weight in model.plain_weights().items()}
    for place, projection in model.projections():
        for part in projection.parts:
            found[f"{place}.{part}.weight"] = projection.weight.grad[projection.rows_of(part)]
    references = {key: weight.grad for key, weight in reference.named_parameters()}
    assert found.keys() == references.keys()
    assert max(error(found[key], references[key]) for key in found) < allowed


@pytest.mark.parametrize("device", DEVICES)
def test_qlora_is_lora_on_the_weights_that_nf4_kept(device: str) -> None:
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    reference = MODELS["mistral"]().float()
    model = ours(reference, Tuning("qlora", rank=4, alpha=8, kind=kind), device)
    state = reference.state_dict()
    for place, projection in model.projections():
        for part in projection.parts:
            key = f"{place}.{part}.weight"
            state[key] = rounded(state[key])
    reference.load_state_dict(state)
    adapted = with_our_adapter(reference.to(device), model)
    expected = one_by_one(adapted, device)
    expected.backward()
    loss = loss_of(model, device)
    loss.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=3e-3 if device == "cuda" else 1e-5)
    references = {key: weight.grad for key, weight in adapted.named_parameters() if weight.requires_grad}
    found = adapter_gradients(model)
    assert max(error(found[key], references[key]) for key in found) < (0.03 if device == "cuda" else 1e-5)


def rounded(weight: Any) -> Any:
    out = torch.empty_like(weight)
    nf4.dequantize(*nf4.quantize(weight), out)
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recompute", ["nothing", "gate_up", "layer"])
def test_fp8_is_lora_but_for_the_rounding_of_the_frozen_products(recompute: Any, device: str) -> None:
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    reference = MODELS["mistral"]().float()
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if "mlp" in name or "self_attn" in name:
                weight.mul_(4)  # so that the layers, not the embedding alone, make the loss
    measured = {}
    for rounding in (False, True):
        model = ours(reference, Tuning("lora", rank=4, alpha=8, kind=kind, fp8=rounding), device)
        model.recompute = recompute
        loss = loss_of(model, device)
        gradients = torch.autograd.grad(loss, model.trained_parameters())
        measured[rounding] = loss.item(), torch.cat([one.flatten().float() for one in gradients])
    (exact_loss, exact), (loss, rounded_gradients) = measured[False], measured[True]
    assert loss == pytest.approx(exact_loss, rel=0.01)
    assert 1e-3 < error(rounded_gradients, exact) < 0.15


@pytest.mark.parametrize("device", DEVICES)
def test_fp8_keeps_three_bits_after_the_leading_one_whatever_a_rows_size(device: str) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(8, 5000, generator=random) * torch.logspace(-6, 6, 8)[:, None]
    x[3] = 0
    codes, scales = fp8.quantize_rows(x.to(device))
    kept = codes.cpu().float() * scales.cpu()
    large = x.abs() > x.abs().amax(1, keepdim=True) / 1000
    assert ((kept - x).abs()[large] <= x.abs()[large] / 16).all()
    assert not kept[3].any()


def test_fp8_that_changes_too_much_is_refused_with_the_figures() -> None:
    exact = fp8.Measurement(2.0, torch.tensor([1.0, 0.0]))
    assert "(0.50%, at most 1%)" in fp8.check_quality(exact, fp8.Measurement(2.01, torch.tensor([1.0, 0.1])))
    for worse in (
        fp8.Measurement(2.03, torch.tensor([1.0, 0.0])),
        fp8.Measurement(2.0, torch.tensor([0.0, 1.0])),
        fp8.Measurement(float("nan"), torch.tensor([1.0, 0.0])),
    ):
        with pytest.raises(StepError, match=r"loses too much in 8 bits.*set fp8 False"):
            fp8.check_quality(exact, worse)


def test_fp8_refuses_a_matrix_that_the_tensor_cores_do_not_take() -> None:
    with pytest.raises(StepError, match="100 x 64 cannot be multiplied in fp8, only multiples of 16"):
        fp8.Fp8Weight(100, 64)


def test_nf4_keeps_normal_weights_as_well_as_its_paper_says() -> None:
    weight = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0)) * 0.02
    kept = rounded(weight)
    # 16 equally likely levels over blocks of 64: about a tenth of the standard deviation.
    assert 0.05 < error(kept, weight) < 0.11
    assert torch.equal(rounded(kept), kept)


def test_nf4_refuses_columns_that_do_not_fill_its_blocks() -> None:
    with pytest.raises(StepError, match=r"100 columns .* multiples of 64"):
        nf4.quantize(torch.zeros(4, 100))


def test_documents_in_one_stream_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    model = ours(MODELS["mistral"]().float(), Tuning("lora", rank=4, alpha=8, kind=torch.float32))
    ids, labels = tokens()
    together = model(ids, Documents(LENGTHS, ids.device), *learned_of(labels))
    starts = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    alone = [
        model(ids[start:end], Documents((end - start,), ids.device), *learned_of(labels[start:end]))
        for start, end in pairwise(starts)
    ]
    assert together.item() == pytest.approx(sum(one.item() for one in alone), rel=1e-5)


def test_dropout_differs_between_draws_and_its_gradient_is_that_of_its_draw() -> None:
    torch.manual_seed(0)
    model = ours(MODELS["mistral"]().float(), Tuning("lora", rank=4, alpha=8, dropout=0.5, kind=torch.float32))

    def drawn(seed: int) -> Any:
        torch.manual_seed(seed)
        return loss_of(model)

    assert drawn(1).item() == drawn(1).item() != drawn(2).item()
    drawn(1).backward()
    weights = model.trained_parameters()
    gradients = [weight.grad.clone() for weight in weights]
    length = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    losses = []
    for step in (0.01, -0.01):
        with torch.no_grad():
            torch._foreach_add_(weights, gradients, alpha=step / length)
            losses.append(drawn(1).item())
            torch._foreach_sub_(weights, gradients, alpha=step / length)
    assert (losses[0] - losses[1]) / 0.02 == pytest.approx(length, rel=0.02)


def test_a_model_that_the_decoder_does_not_compute_is_refused_with_all_its_reasons() -> None:
    config = LlamaConfig(**SHAPE, attention_bias=True, hidden_act="gelu")
    with pytest.raises(StepError, match=r"hidden_act is 'gelu'; allowed: silu; attention_bias is true"):
        Decoder(config, Tuning("lora"))


def test_weights_that_are_missing_or_unknown_are_named() -> None:
    reference = MODELS["mistral"]()
    tensors: dict[str, Any] = {name: (lambda tensor=tensor: tensor) for name, tensor in reference.state_dict().items()}
    tensors["model.layers.7.extra"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(StepError) as refused:
        Decoder(reference.config, Tuning("lora")).load(tensors)
    assert "model.layers.1.mlp.up_proj.weight is missing" in str(refused.value)
    assert "model.layers.7.extra is not known" in str(refused.value)


@pytest.mark.parametrize("name", MODELS)
def test_the_counted_weights_are_the_weights_there_are(name: str) -> None:
    reference = MODELS[name]()
    norms = sum(weight.numel() for weight in reference.parameters() if weight.dim() == 1)
    assert sum(parameters_of(reference.config).values()) + norms == sum(w.numel() for w in reference.parameters())
    model = Decoder(reference.config, Tuning("lora", rank=4))
    assert adapter_parameters(reference.config, 4) == sum(w.numel() for w in model.trained_parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("features", [64, 576, 1000, 4096])
def test_the_gpus_kernels_compute_what_the_plain_ones_do(features: int) -> None:
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Any:
        return torch.randn(*shape, generator=random)

    x, gradient, residual, weight = drawn(9, features), drawn(9, features), drawn(9, features), drawn(features)
    wide = drawn(9, 2 * features)
    angles = drawn(9, 16)
    results = {}
    for device in ("cpu", "cuda"):
        x_, gradient_, residual_, weight_ = (tensor.clone().to(device) for tensor in (x, gradient, residual, weight))
        normed, back = torch.empty_like(x_), torch.empty_like(x_)
        inverse = kernels.rms_norm(x_, weight_, 1e-5, normed)
        kernels.rms_norm_backward(gradient_, x_, weight_, inverse, residual_, back)
        turned = x_.clone()
        heads = features // 32
        kernels.rotate(turned, angles.cos().to(device), angles.sin().to(device), heads)
        swiglu = kernels.swiglu(wide.clone().to(device))
        wide_gradient, again = kernels.swiglu_backward(wide.clone().to(device), gradient_.clone())
        results[device] = [t.cpu() for t in (normed, inverse, back, turned, swiglu, wide_gradient, again)]
    for plain, fast in zip(results["cpu"], results["cuda"], strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
