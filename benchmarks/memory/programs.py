"""Programs whose memory others have published, by what their source does: for the validation of closed forms.

Each program keeps other tensors for the backward pass. They are counted here by mechanism: which operation saves which
tensor in which precision. T = batch x length, h = width, f = inner width, a = heads, V = vocabulary; bytes throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One published measurement; None where the source does not say."""

    id: str
    model: str
    source: str
    phase: str
    method: str
    dtype: str
    attention: str
    offload: str
    gpu: str
    notes: str
    params: int | None
    layers: int | None
    d_model: int | None
    heads: int | None
    kv_heads: int | None
    d_ffn: int | None
    vocab: int | None
    batch: int | None
    seq: int | None
    lora_r: int | None
    zero_stage: int | None
    world_size: int | None
    checkpointing: str


@dataclass(frozen=True)
class Sizes:
    """The numbers of a row that every program needs."""

    params: int
    layers: int
    width: int
    heads: int
    narrow: int  # width of keys and values
    ffn: int
    vocabulary: int
    batch: int
    length: int
    rank: int
    zero: int
    world: int
    checkpointing: bool
    gated: bool  # SwiGLU and RMSNorm, else GELU or ReLU and LayerNorm
    parallel: bool  # attention and feed-forward read one input
    eager: bool
    lora: bool
    quantised: float  # bytes of a parameter of a quantised linear; 0: none is

    @property
    def weights(self) -> float:
        """Weights in 16 bit, or quantised but for the embeddings and the head."""
        if not self.quantised:
            return 2 * self.params
        wide = 2 * self.vocabulary * self.width
        return 2 * wide + self.quantised * (self.params - wide)

    @property
    def tokens(self) -> int:
        """T."""
        return self.batch * self.length

    @property
    def logits(self) -> int:
        """T V."""
        return self.tokens * self.vocabulary


@dataclass(frozen=True)
class Prediction:
    """Allocated peak, and the part of it that is logits. `varies`: batches are padded to their own longest row."""

    allocated: float
    logits: float = 0.0
    varies: bool = False


REQUIRED = ("params", "layers", "d_model", "heads", "d_ffn", "vocab")


class NotPredicted(Exception):
    """The row does not say enough; the argument is what is missing."""


def sizes(row: Row) -> Sizes:
    """The numbers of a row.

    Raises:
        NotPredicted: one is missing.
    """
    missing = [name for name in REQUIRED if getattr(row, name) is None]
    if row.zero_stage is None and row.world_size != 1:
        missing.append("zero_stage")
    if missing:
        raise NotPredicted(f"no {', '.join(missing)}")
    assert row.d_model and row.heads
    model = row.model.lower()
    neox = model.startswith(("stablelm", "pythia", "gpt-neox", "phi", "falcon", "redpajama", "dolly"))
    gated = not neox and not model.startswith(("opt", "gpt", "bloom", "bert"))
    return Sizes(
        params=row.params or 0,
        layers=row.layers or 0,
        width=row.d_model,
        heads=row.heads,
        narrow=row.d_model // row.heads * (row.kv_heads or row.heads),
        ffn=row.d_ffn or 0,
        vocabulary=row.vocab or 0,
        batch=row.batch or 1,
        length=row.seq or 0,
        rank=row.lora_r or 0,
        zero=row.zero_stage or 0,
        world=row.world_size or 1,
        checkpointing=row.checkpointing.startswith("on"),
        gated=gated,
        parallel=neox,
        eager=row.attention.startswith("eager"),
        lora="lora" in row.method,
        quantised=_quantised(f"{row.dtype} {row.method} {row.notes}".lower()),
    )


def _quantised(text: str) -> float:
    """Bytes of a quantised parameter and its share of the scales: one of 4 bytes for 64, itself in 8 bit if doubled."""
    if "-dq" in text or "double quant" in text or "qlora" in text or "q-lora" in text:
        return 0.5 + 1 / 64 + 4 / (64 * 256)
    if any(name in text for name in ("nf4", "fp4", "int4", "4-bit", "4bit")):
        return 0.5 + 4 / 64
    return 1.0 if any(name in text for name in ("int8-weights", "bnb.int8", "llm.int8")) else 0.0


def litgpt(row: Row, s: Sizes) -> Prediction:
    """Lightning LitGPT, bf16-true: weights, gradients and AdamW in bf16, LoRA on queries and values."""
    wide = s.tokens * s.width
    if row.phase == "generation":
        return Prediction(s.weights + 4 * s.layers * s.tokens * s.narrow)
    norms = (8 if s.lora else 16) if s.gated else (2 if s.parallel else 4)  # RMSNorm computes in fp32
    # Values are a view of the fused query-key-value tensor and keep all of it, unless groups are expanded to copies.
    attention = 8 + (4 if s.narrow == s.width else 0)
    layer = (norms + attention) * wide + 4 * s.heads * s.tokens + (6 if s.gated else 2) * s.tokens * s.ffn
    if s.lora:
        # Dropout keeps a mask and a copy; `index_copy` keeps its source, the adapters' output for queries and values.
        layer += 3 * wide + 2 * s.tokens * (s.width + s.narrow)
        trained = s.layers * s.rank * (2 * s.width + s.width + s.narrow)
    else:
        layer += (4 if s.parallel else 6) * wide + 2 * s.tokens * s.ffn  # inputs of linears that train
        trained = s.params
    # Fabric converts the logits to fp32; the loss is computed in chunks, so gradients are small.
    logits = 8 * s.logits
    states = s.weights + (8 if s.lora else 6) * trained
    kept = s.layers * (2 * wide if s.checkpointing else layer) + (layer if s.checkpointing else 0)
    return Prediction(max(states + kept + logits, states + 2 * trained), logits)


def torchtune(row: Row, s: Sizes) -> Prediction:
    """Torchtune on one device: all states in bf16, fused AdamW, logits in fp32, one micro-batch per step."""
    wide = s.tokens * s.width
    layer = (12 + 2 + 8 + 2 + 2) * wide + 4 * s.heads * s.tokens + 8 * s.tokens * s.ffn
    trained = s.layers * s.rank * 4 * s.width if s.lora else s.params
    if s.lora:
        layer -= 8 * wide + 2 * s.tokens * s.ffn  # frozen scales and linears keep no inputs
    chunked = "chunked" in row.notes.lower()
    logits = 12 * s.logits / (8 if chunked else 1)  # log-softmax and its two gradients; chunks are eighths
    kept = s.layers * (2 * wide if s.checkpointing else layer) + (layer if s.checkpointing else 0)
    without_gradients = s.weights + (6 if s.lora else 4) * trained
    return Prediction(max(without_gradients + kept + logits, without_gradients + 2 * trained), logits)


def coati(row: Row, s: Sizes) -> Prediction:
    """ColossalChat with LowLevelZero: 16-bit gradients and fp32 copies of them, flash attention, 16-bit loss."""
    copies = 2 if row.phase.startswith(("dpo", "orpo", "simpo", "rm", "reward")) else 1  # chosen and rejected rows
    tokens, logits_size = copies * s.tokens, copies * s.logits
    wide = tokens * s.width
    frozen = 2 * s.params if row.phase.startswith(("dpo", "kto")) else 0
    trained = s.layers * s.rank * (8 * s.width + 3 * (s.width + s.ffn)) if s.lora else s.params
    layer = 24 * wide + 8 * tokens * s.ffn + 4 * s.heads * tokens
    boundaries = s.layers * (2 * wide if s.checkpointing else layer)
    weights = 2 * s.params + frozen + (2 * trained if s.lora else 0)
    on_host = "cpu" in row.offload
    optimizer = 0 if on_host else 12 * trained / s.world
    gradients = (2 if on_host else 6) * trained / s.world
    if row.phase.startswith(("rm", "reward")):
        kept_logits = loss = 0.0
    elif row.phase.startswith(("orpo", "simpo")):
        kept_logits, loss = 4.0 * logits_size, 20.0 * logits_size
    elif frozen:
        # fp32 logits of policy and reference, the policy's log-softmax, its gradient, and that of each half's slice
        kept_logits, loss = 8.0 * logits_size, 26.0 * logits_size
    else:
        kept_logits, loss = 2.0 * logits_size, 8.0 * logits_size
    recomputed = layer + 4 * tokens * s.ffn if s.checkpointing else 0
    instants = (
        boundaries + loss,
        boundaries + kept_logits + recomputed,
        gradients + kept_logits,
    )
    return Prediction(weights + optimizer + max(instants), loss)


def trainer(row: Row, s: Sizes) -> Prediction:
    """Hugging Face Trainer with PEFT, in mixed precision: logits in fp32, shifted by a copy."""
    wide, fp32 = s.tokens * s.width, row.dtype == "fp32"
    unit = 2 if fp32 else 1
    # fp32 inputs of two norms; flash attention on a fused tensor; SwiGLU, or GELU
    layer = unit * (23 if s.gated else 26) * wide + (6 if s.gated else 2 * unit) * s.tokens * s.ffn
    if s.eager:
        layer += (9 if fp32 else 6) * s.heads * s.length * s.tokens
    if s.lora:
        every = (6 * s.width + 2 * (s.width + s.ffn)) if "w1" in row.notes else 4 * s.width  # else queries to values
        trained = s.layers * s.rank * every
        states = unit * s.weights + 16 * trained
        step = 0
    else:
        layer += 12 * unit * wide + 2 * unit * s.tokens * s.ffn
        trained = s.params
        states, step = (12 if fp32 else 6) * s.params, 4 * s.params  # gradients and AdamW's copy
    if s.zero == 3:
        states = states / s.world + 2 * unit * 2 * s.params / s.layers
    logits = (16 if fp32 else 20) * s.logits
    kept = s.layers * (2 * unit * wide if s.checkpointing else layer) + (layer if s.checkpointing else 0)
    # Qwen's own script pads to one length, swift and the Trainer's collators to the longest row of the batch.
    varies = row.source.startswith("modelscope/ms-swift")
    return Prediction(max(states + kept + logits, states + step), logits, varies)


def classifier(row: Row, s: Sizes) -> Prediction:
    """BERT for classification in fp32 with dropout and eager attention; gradients are zeroed, not freed."""
    wide, notes, half = s.tokens * s.width, row.notes.lower(), row.dtype != "fp32"
    layer = 34 * wide + 8 * s.tokens * s.ffn + 9 * s.heads * s.length * s.tokens
    if half:  # autocast: linears and products in 16 bit, softmax and norms in fp32, and a 16-bit copy of all weights
        layer = 22 * wide + 4 * s.tokens * s.ffn + 7 * s.heads * s.length * s.tokens
    kept = s.layers * (4 * wide if s.checkpointing else layer) + (layer if s.checkpointing else 0)
    moments = 0 if "adafactor" in notes else 2 if "8bit" in notes or "8-bit" in notes else 8
    return Prediction((8 + moments + (2 if half else 0)) * s.params + kept)


def torchtitan(row: Row, s: Sizes) -> Prediction:
    """Torchtitan with FSDP2: fp32 shards, bf16 compute, every second matrix product recomputed."""
    wide = s.tokens * s.width
    products = 2 * s.tokens * (2 * s.width + s.width + 2 * s.narrow + 2 * s.ffn)
    layer = 24 * wide + 8 * s.tokens * s.ffn
    gathered = 4 * s.params / s.layers
    kept = s.layers * (4 * wide + products / 2) + layer
    logits = 16 * s.logits
    return Prediction(16 * s.params / s.world + gathered + kept + logits, logits)


def deepspeed_chat(row: Row, s: Sizes) -> Prediction:
    """DeepSpeed-Chat with OPT in fp16: eager attention of its time, critic and reward model of 350M parameters."""
    wide, small = s.tokens * s.width, 331_000_000
    rest = s.vocabulary * s.width + 2050 * s.width  # embeddings stay trainable unless only LoRA trains
    trained = s.params
    if s.lora:
        trained = s.layers * 18 * s.rank * s.width + (0 if "only-lora" in row.method else rest)
    layer = 18 * wide + 2 * s.tokens * s.ffn + 8 * s.heads * s.length * s.tokens
    layer += 2 * s.rank * 6 * s.tokens
    kept = s.layers * (2 * wide if s.checkpointing else layer) + (layer if s.checkpointing else 0)
    bucket = 2 * min(500_000_000, 4 * s.params) if s.zero in (1, 2) else 0
    own = 2 * s.params / (s.world if s.zero == 3 else 1) + (2 * trained if s.lora else 0)
    states = 0 if "optimizer" in row.offload else 12 * trained / (s.world if s.zero else 1)
    gradients = 2 * trained / (s.world if s.zero > 1 else 1)
    step = 4 * trained / (s.world if s.zero else 1)
    if not row.phase.startswith("ppo"):
        # logits, their shifted copy, and the gradients of both
        loss = 10 * s.logits
        return Prediction(own + states + bucket + max(kept + loss, gradients + kept / s.layers, gradients + step), loss)
    whole = s.world if s.zero == 3 else 1
    reference = 0 if "reference" in row.offload else 2 * s.params / whole
    average = 2 * s.params if row.method == "full" and s.zero == 2 else 0  # of its multi-node scripts
    critic = (12 * small / (s.world if s.zero else 1)) + 2 * 2 * small / whole
    pinned = 2 * s.params if s.zero == 3 else 0  # the hybrid engine's copy for generation
    static = own + reference + average + critic + pinned
    if "resident" in row.phase:
        return Prediction(static - critic + 4 * small + (4 * trained + 4 * small) / (s.world if s.zero else 1))
    return Prediction(static + states + bucket + max(kept + 8 * s.logits, gradients + step), 8 * s.logits)


def megatron(row: Row, s: Sizes) -> Prediction:
    """Megatron GPT-2 with ZeRO-2 and optimizer offload: fused kernels, checkpoints of every layer."""
    wide = s.tokens * s.width
    layer = 34 * wide + 5 * s.heads * s.length * s.tokens
    kept = s.layers * 2 * wide + layer if s.checkpointing else s.layers * layer
    states = 2 * s.params + (0 if "cpu" in row.offload else 14 * s.params / s.world)
    return Prediction(states + max(kept, s.layers * 2 * wide + 8 * s.logits), 8 * s.logits)


PROGRAMS: dict[str, Callable[[Row, Sizes], Prediction]] = {
    "Lightning-AI/litgpt": litgpt,
    "pytorch/torchtune": torchtune,
    "pytorch/torchtitan": torchtitan,
    "hpcaitech/ColossalAI": coati,
    "modelscope/ms-swift": trainer,
    "QwenLM/Qwen": trainer,
    "huggingface/peft": trainer,
    "huggingface/transformers": classifier,
    "deepspeedai/DeepSpeedExamples": deepspeed_chat,
    "deepspeedai/DeepSpeed blogs": deepspeed_chat,
    "deepspeedai/DeepSpeed docs": megatron,
    "the article": deepspeed_chat,
}


def predict(row: Row) -> Prediction:
    """The allocated peak of a row by the mechanisms of its program.

    Raises:
        NotPredicted: the program is unknown, or the row does not say enough.
    """
    for name, program in PROGRAMS.items():
        if row.source.startswith(name):
            return program(row, sizes(row))
    raise NotPredicted("no model of this program")
