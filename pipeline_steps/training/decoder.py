"""A Mistral, Llama or Qwen decoder whose layers' forward and backward are written out.

A layer keeps for its backward what products made and computes the pointwise parts again; with `Recompute` it keeps
less. Tokens are one stream of documents, (tokens, features), never padded. The weights are those of the Hugging Face
checkpoints, and so is every result: tests hold the loss and each gradient against transformers with PEFT.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline_steps.contract.errors import StepError
from pipeline_steps.training import kernels
from pipeline_steps.training.attention import Documents, attend
from pipeline_steps.training.projections import InputProjection, Lowered, OutputProjection, Projection, Tuning, store

# What the backward computes again: nothing; the product of gate and up (its result is the widest tensor of a layer); or
# the whole layer from its input.
Recompute = Literal["nothing", "gate_up", "layer"]

MODEL_TYPES = ("mistral", "llama", "qwen2", "qwen3")
# Scalings of positions that do not change with the length of what is read; a stream of documents has no one length.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_LOGIT_BYTES = 2**28  # float32 logits that exist at one time


class Decoder(nn.Module):
    """Token ids to the loss of each learned token.

    config: a transformers configuration. Raises StepError, naming all of them, on what this decoder does not compute.
    """

    def __init__(self, config: Any, tuning: Tuning) -> None:
        super().__init__()
        check_supported(config)
        self.config, self.tuning = config, tuning
        self.recompute: Recompute = "nothing"
        whole = tuning.method == "full"

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, dtype=tuning.kind), requires_grad=whole)

        self.embedding = weight(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, tuning, weight) for _ in range(config.num_hidden_layers))
        self.norm = weight(config.hidden_size)
        self.head = None if config.tie_word_embeddings else weight(config.vocab_size, config.hidden_size)

    @property
    def device(self) -> torch.device:
        return self.norm.device

    def forward(self, ids: Tensor, documents: Documents, learned: Tensor, targets: Tensor) -> Tensor:
        """Sum of the losses of the learned tokens, in nats.

        ids (tokens,); learned (n,): the places whose next token is learned; targets (n,): the ids of those next tokens.
        """
        angles = self._angles(documents)
        hidden = torch.nn.functional.embedding(ids, self.embedding)
        for layer in self.layers:
            if self.recompute == "layer" and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, documents, angles, False, use_reentrant=False)
            else:
                hidden = layer(hidden, documents, angles, self.recompute == "gate_up")
        # Only what predicts a learned token goes through the output layer, the largest product of all.
        hidden = hidden.index_select(0, learned)
        hidden = torch.nn.functional.rms_norm(hidden, (hidden.shape[1],), self.norm, self.config.rms_norm_eps)
        return LinearCrossEntropy.apply(hidden, self.embedding if self.head is None else self.head, targets)

    def _angles(self, documents: Documents) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each token's position, (tokens, size / 2) each, float32."""
        if not hasattr(self, "_rotary"):
            from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

            with torch.device("cpu"):
                # In a tuple, so that it is no submodule: its buffers are constants, not state.
                self._rotary = (LlamaRotaryEmbedding(self.config).to(self.device),)
        positions = documents.positions
        cosine, sine = self._rotary[0](torch.empty(0, dtype=torch.float32, device=self.device), positions[None])
        half = cosine.shape[-1] // 2
        return cosine[0, :, :half].contiguous(), sine[0, :, :half].contiguous()

    def reset_adapters(self, seed: int) -> None:
        """The adapters a training begins with, the same on every device."""
        random = torch.Generator("cpu").manual_seed(seed)
        for _, projection in self.projections():
            projection.reset_adapters(random)

    def trained_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def projections(self) -> Iterator[tuple[str, Projection]]:
        """Each projection with its place in a checkpoint: `model.layers.0.self_attn` and the like."""
        for number, layer in enumerate(self.layers):
            for block in ("self_attn", "mlp"):
                for projection in layer.blocks()[block]:
                    yield f"model.layers.{number}.{block}", projection

    def plain_weights(self) -> dict[str, nn.Parameter]:
        """The weights that are in no projection, by their names in a checkpoint."""
        weights = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        if self.head is not None:
            weights["lm_head.weight"] = self.head
        for number, layer in enumerate(self.layers):
            weights[f"model.layers.{number}.input_layernorm.weight"] = layer.input_norm
            weights[f"model.layers.{number}.post_attention_layernorm.weight"] = layer.mlp_norm
            for name, bias in zip(("q", "k", "v"), layer.biases, strict=False):
                weights[f"model.layers.{number}.self_attn.{name}_proj.bias"] = bias
            for name, norm in zip(("q", "k"), layer.head_norms, strict=False):
                weights[f"model.layers.{number}.self_attn.{name}_norm.weight"] = norm
        return weights

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Callable[[], Tensor]]) -> None:
        """Take over a checkpoint's weights, one projection at a time; `tensors` reads each when it is asked for.

        Raises StepError if weights are missing or left over.
        """
        plain = self.plain_weights()
        wanted = set(plain)
        for place, projection in self.projections():
            wanted |= {f"{place}.{part}.weight" for part in projection.parts}
        given = {name for name in tensors if not name.endswith("rotary_emb.inv_freq")}
        if self.head is None:
            given -= {"lm_head.weight"}
        problems = [f"{name} is missing" for name in sorted(wanted - given)]
        problems += [f"{name} is not known" for name in sorted(given - wanted)]
        if problems:
            raise StepError(
                f"the checkpoint is not of this {self.config.model_type} model: " + "; ".join(problems[:10])
            )
        for name, weight in plain.items():
            store(weight, tensors[name]())
        for place, projection in self.projections():
            names = {part: f"{place}.{part}.weight" for part in projection.parts}
            projection.load({part: tensors[name]().to(self.device) for part, name in names.items()})

    @torch.no_grad()
    def adapter(self) -> dict[str, Tensor]:
        """The adapter in PEFT's names, float32 on the CPU."""
        tensors = {}
        for place, projection in self.projections():
            a, b = (whole(one) for one in (projection.lora_a, projection.lora_b))
            rank = self.tuning.rank
            for number, part in enumerate(projection.parts):
                prefix = f"base_model.model.{place}.{part}"
                tensors[f"{prefix}.lora_A.weight"] = a[number * rank : (number + 1) * rank].clone()
                tensors[f"{prefix}.lora_B.weight"] = b[projection.rows_of(part)].clone()
        return tensors

    @torch.no_grad()
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Each weight of the checkpoint as it is now, on the CPU; of a fully tuned model."""
        for name, weight in self.plain_weights().items():
            yield name, whole(weight)
        for place, projection in self.projections():
            stacked = whole(projection.weight)
            for part in projection.parts:
                yield f"{place}.{part}.weight", stacked[projection.rows_of(part)].clone()


class DecoderLayer(nn.Module):
    def __init__(self, config: Any, tuning: Tuning, weight: Callable[..., nn.Parameter]) -> None:
        super().__init__()
        hidden, wide = config.hidden_size, config.intermediate_size
        self.eps = config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.size = head_size(config)
        query, key = self.heads * self.size, self.kv_heads * self.size
        self.input_norm = weight(hidden)
        self.qkv = InputProjection({"q_proj": query, "k_proj": key, "v_proj": key}, hidden, tuning)
        # Qwen 2 adds to query, key and value; Qwen 3 norms each head of query and key.
        self.biases = nn.ParameterList(weight(size) for size in (query, key, key) if config.model_type == "qwen2")
        self.head_norms = nn.ParameterList(weight(self.size) for _ in range(2) if config.model_type == "qwen3")
        self.output = OutputProjection("o_proj", hidden, query, tuning)
        self.mlp_norm = weight(hidden)
        self.gate_up = InputProjection({"gate_proj": wide, "up_proj": wide}, hidden, tuning)
        self.down = OutputProjection("down_proj", hidden, wide, tuning)

    def blocks(self) -> dict[str, tuple[Projection, ...]]:
        return {"self_attn": (self.qkv, self.output), "mlp": (self.gate_up, self.down)}

    def forward(
        self, hidden: Tensor, documents: Documents, angles: tuple[Tensor, Tensor], gate_up_again: bool
    ) -> Tensor:
        """(tokens, features) to the same."""
        query, key, value, residual = AttentionInput.apply(
            hidden, self.input_norm, *self.qkv.trained, self, angles, *self.biases
        )
        if self.head_norms:
            query, key = (
                Rotation.apply(torch.nn.functional.rms_norm(heads, (self.size,), norm, self.eps), angles)
                for heads, norm in zip((query, key), self.head_norms, strict=True)
            )
        attended = attend(query, key, value, documents).flatten(1)
        return AttentionOutputAndMlp.apply(
            attended, residual, self.mlp_norm, *self.output.trained, *self.gate_up.trained, *self.down.trained,
            self, gate_up_again,
        )  # fmt: skip


class AttentionInput(torch.autograd.Function):
    """hidden -> norm -> query, key and value, turned by their positions; and hidden itself, as the residual.

    Where each head has a norm of its own, query and key are turned after it, not here.

    The residual passes through so that its gradient meets the norm's here, in one pass over memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        norm: Tensor,
        first: Tensor,
        second: Tensor | None,
        layer: DecoderLayer,
        angles: tuple[Tensor, Tensor],
        *biases: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        buffer = layer.qkv.input_buffer(hidden.shape[0])
        inverse_rms = kernels.rms_norm(hidden, norm, layer.eps, out=buffer[:, : hidden.shape[1]])
        qkv, lowered = layer.qkv.forward(buffer)
        queries, keys = layer.heads * layer.size, layer.kv_heads * layer.size
        if biases:
            qkv += torch.cat(biases)
        if not layer.head_norms:
            kernels.rotate(qkv[:, :queries], *angles, layer.heads)
            kernels.rotate(qkv[:, queries : queries + keys], *angles, layer.kv_heads)
        ctx.save_for_backward(hidden, norm, inverse_rms, *_flat(lowered))
        ctx.layer, ctx.angles = layer, angles
        query, key, value = qkv.split([queries, keys, keys], dim=1)
        return (
            query.unflatten(1, (layer.heads, layer.size)),
            key.unflatten(1, (layer.kv_heads, layer.size)),
            value.unflatten(1, (layer.kv_heads, layer.size)),
            hidden.view_as(hidden),
        )

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, residual: Tensor) -> tuple[Tensor | None, ...]:
        hidden, norm, inverse_rms, *flat = ctx.saved_tensors
        layer: DecoderLayer = ctx.layer
        gradient = torch.cat([query.flatten(1), key.flatten(1), value.flatten(1)], dim=1)
        queries = query.shape[1] * query.shape[2]
        cosine, sine = ctx.angles
        if not layer.head_norms:
            kernels.rotate(gradient, cosine, sine, layer.heads, inverse=True)
            kernels.rotate(gradient[:, queries:], cosine, sine, layer.kv_heads, inverse=True)
        bias_gradients: tuple[Tensor | None, ...] = (None,) * len(layer.biases)
        if any(ctx.needs_input_grad[6:]):
            bias_gradients = gradient.sum(0).split([len(bias) for bias in layer.biases])
        normed = torch.empty_like(hidden)
        kernels.rms_norm(hidden, norm, layer.eps, out=normed)
        normed_gradient, *trained = layer.qkv.backward(gradient, normed, _lowered(flat))
        norm_gradient = hidden_gradient = None
        if ctx.needs_input_grad[1]:
            norm_gradient = kernels.rms_norm_weight_gradient(normed_gradient, hidden, inverse_rms).to(norm.dtype)
        if ctx.needs_input_grad[0]:
            hidden_gradient = kernels.rms_norm_backward(
                normed_gradient, hidden, norm, inverse_rms, residual, out=normed
            )
        return hidden_gradient, norm_gradient, *trained, None, None, *bias_gradients


class Rotation(torch.autograd.Function):
    """(tokens, heads, size), each head turned by its token's position."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        ctx.angles = angles
        return _turned(x, angles, inverse=False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _turned(gradient, ctx.angles, inverse=True), None


class AttentionOutputAndMlp(torch.autograd.Function):
    """What attention gave -> its output layer, added to the residual -> norm -> SwiGLU, added again."""

    @staticmethod
    def forward(
        ctx: Any,
        attended: Tensor,
        residual: Tensor,
        norm: Tensor,
        *trained_layer_and_again: Any,
    ) -> Tensor:
        layer: DecoderLayer = trained_layer_and_again[-2]
        gate_up_again: bool = trained_layer_and_again[-1]
        middle, output_lowered = layer.output.forward(attended, residual)
        buffer = layer.gate_up.input_buffer(middle.shape[0])
        inverse_rms = kernels.rms_norm(middle, norm, layer.eps, out=buffer[:, : middle.shape[1]])
        gate_up, gate_up_lowered = layer.gate_up.forward(buffer)
        out, down_lowered = layer.down.forward(kernels.swiglu(gate_up), middle)
        ctx.save_for_backward(
            attended, middle, norm, inverse_rms, None if gate_up_again else gate_up,
            *_flat(output_lowered), *_flat(gate_up_lowered), *_flat(down_lowered),
        )  # fmt: skip
        ctx.layer = layer
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        attended, middle, norm, inverse_rms, gate_up, *flat = ctx.saved_tensors
        layer: DecoderLayer = ctx.layer
        output_lowered, gate_up_lowered, down_lowered = (_lowered(flat[start : start + 2]) for start in (0, 2, 4))

        buffer = layer.gate_up.input_buffer(middle.shape[0])
        normed = buffer[:, : middle.shape[1]]
        kernels.rms_norm(middle, norm, layer.eps, out=normed)
        if gate_up is None:
            gate_up = layer.gate_up.again(buffer, gate_up_lowered)

        hidden_gradient, down_lowered_gradient = layer.down.backward_input(gradient, down_lowered)
        gate_up_gradient, hidden = kernels.swiglu_backward(gate_up, hidden_gradient)
        down = layer.down.backward_trained(gradient, hidden, down_lowered, down_lowered_gradient)
        del hidden, hidden_gradient

        normed_gradient, *gate_up_trained = layer.gate_up.backward(gate_up_gradient, normed, gate_up_lowered)
        del gate_up, gate_up_gradient
        norm_gradient = None
        if ctx.needs_input_grad[2]:
            norm_gradient = kernels.rms_norm_weight_gradient(normed_gradient, middle, inverse_rms).to(norm.dtype)
        middle_gradient = kernels.rms_norm_backward(
            normed_gradient, middle, norm, inverse_rms, gradient, out=torch.empty_like(middle)
        )
        attended_gradient, output_lowered_gradient = layer.output.backward_input(middle_gradient, output_lowered)
        output = layer.output.backward_trained(middle_gradient, attended, output_lowered, output_lowered_gradient)
        return attended_gradient, middle_gradient, norm_gradient, *output, *gate_up_trained, *down, None, None


class LinearCrossEntropy(torch.autograd.Function):
    """Output layer and cross-entropy, some tokens at a time: the logits of all of them never exist together."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Sum over the tokens, nats, float32. hidden (tokens, features), weight (words, features), targets (tokens,)."""
        hidden_gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_gradient = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        step = max(1, _LOGIT_BYTES // (4 * weight.shape[0]))
        for start in range(0, hidden.shape[0], step):
            some, wanted = hidden[start : start + step], targets[start : start + step, None]
            logits = (some @ weight.t()).float()
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            total += (normaliser - logits.gather(1, wanted)).sum()
            if hidden_gradient is not None or weight_gradient is not None:
                logits.sub_(normaliser).exp_()
                logits.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=logits.dtype))
                logits_gradient = logits.to(hidden.dtype)
                if hidden_gradient is not None:
                    torch.mm(logits_gradient, weight, out=hidden_gradient[start : start + step])
                if weight_gradient is not None:
                    weight_gradient.addmm_(logits_gradient.t(), some)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (
            None if hidden_gradient is None else hidden_gradient.mul_(gradient),
            None if weight_gradient is None else weight_gradient.mul_(gradient),
            None,
        )


def check_supported(config: Any) -> None:
    """Raises StepError naming all that a model's configuration asks for and this decoder does not compute."""
    problems = []
    if config.model_type not in MODEL_TYPES:
        problems.append(f"model_type is {config.model_type!r}; allowed: {', '.join(MODEL_TYPES)}")
    if getattr(config, "hidden_act", "silu") != "silu":
        problems.append(f"hidden_act is {config.hidden_act!r}; allowed: silu")
    problems += [
        f"{name} is true; allowed: false"
        for name in ("attention_bias", "mlp_bias", "use_sliding_window")
        if getattr(config, name, 0)
    ]
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        problems.append(f"rope_type is {rope!r}; allowed: {', '.join(ROPE_TYPES)}")
    if problems:
        raise StepError("this base model cannot be fine-tuned here: " + "; ".join(problems))


def head_size(config: Any) -> int:
    """Features of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def whole(weight: Tensor) -> Tensor:
    """The weight on the CPU, gathered if it lies in shards on several devices."""
    full_tensor = getattr(weight, "full_tensor", None)
    return (weight if full_tensor is None else full_tensor()).detach().cpu()


def _turned(x: Tensor, angles: tuple[Tensor, Tensor], inverse: bool) -> Tensor:
    flat = x.flatten(1).clone()
    kernels.rotate(flat, *angles, x.shape[1], inverse=inverse)
    return flat.view(x.shape)


def _flat(lowered: Lowered | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if lowered is None else (lowered.values, lowered.factors)


def _lowered(flat: list[Tensor | None]) -> Lowered | None:
    values, factors = flat
    return None if values is None else Lowered(values, factors)


def parameters_of(config: Any) -> dict[str, int]:
    """How many weights a model of this shape has: `products` in the layers, `embedding` and `head`."""
    size = head_size(config)
    query, key = config.num_attention_heads * size, config.num_key_value_heads * size
    layer = config.hidden_size * (2 * query + 2 * key + 3 * config.intermediate_size)
    words = config.vocab_size * config.hidden_size
    return {
        "products": config.num_hidden_layers * layer,
        "embedding": words,
        "head": 0 if config.tie_word_embeddings else words,
    }


def adapter_parameters(config: Any, rank: int) -> int:
    """How many weights a LoRA adapter on every linear layer has."""
    size = head_size(config)
    query, key = config.num_attention_heads * size, config.num_key_value_heads * size
    hidden, wide = config.hidden_size, config.intermediate_size
    sides = 2 * (hidden + query) + 2 * (hidden + key) + 3 * (hidden + wide)
    return config.num_hidden_layers * rank * sides
