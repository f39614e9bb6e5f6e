"""The recipe: model, task, data, method, training. One field is one option, with its default and bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny

from peftcli.recipe.method_params import Block, MethodParams
from peftcli.recipe.vocabulary import NameOf

TaskName = Annotated[str, NameOf("tasks")]
SamplingStrategy = Literal["group_by_length", "random", "sequential"]
DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
FormatName = Annotated[str, NameOf("formats", auto=True)]

Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Rate = Annotated[float, Field(gt=0.0, le=100.0)]  # 2e4 is 2e-4 without its sign; SGD on prompts has used 30
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class ModelSpec(Block):
    """Which pretrained model, and how its weights are held."""

    name_or_path: str = Field(min_length=1)
    """Hub id, directory, GGUF file, or package:NAME/PATH."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: DTypeName = "auto"
    """Type of the frozen weights; auto keeps the checkpoint's where the device computes it well, else float32."""
    load_in_4bit: bool = False
    """Quantise the frozen weights to 4 bits with bitsandbytes."""
    load_in_8bit: bool = False
    """Quantise the frozen weights to 8 bits with bitsandbytes."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit code."""
    bnb_4bit_use_double_quant: bool = True
    """Quantise the quantisation constants too."""
    bnb_4bit_compute_dtype: DTypeName = "auto"
    """Type in which 4-bit layers compute."""
    min_quantized_share: Fraction = 0.8
    """Refuse a 4- or 8-bit base with a smaller share of its block weights quantised."""
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """The attention code that transformers uses."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    num_labels: Annotated[int, Field(ge=1)] | None = None
    """Classes of the head; null counts them in the data."""
    problem_type: Literal["single_label", "multi_label", "regression"] | None = None
    """Kind of sequence classification; null reads it off the labels."""
    anatomy: dict[str, str | list[str]] | None = None
    """Roles of a model family that is not known: {attn.q: 'self_attn.q_proj', ...}, relative to a block."""
    new_special_tokens: list[str] = Field(default_factory=list)
    """Tokens to add to the vocabulary."""


class DataSource(Block):
    """One file or set of rows."""

    path: str = Field(min_length=1)
    """File, glob, directory of class folders, saved `datasets` directory, hub id, or package:NAME/PATH."""
    name: str | None = None
    """Name of this set, for several validation sets."""
    config: str | None = None
    """Configuration of a hub data set."""
    split: str | None = None
    """Split of a hub data set or of a saved one."""
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """How often its rows come: 0.5 takes half of them, 2 every row twice; of a stream, how often it is drawn from."""
    format: FormatName | None = None
    """Row format; null takes `data.format`."""
    columns: dict[str, str] | None = None
    """Our name: the file's column; null takes `data.columns`."""


class DataSpec(Block):
    """The rows, what they mean, and how long they may be."""

    path: str | None = None
    """File, glob, directory, hub id or package:NAME/PATH; or use `datasets`."""
    datasets: list[DataSource] | None = None
    """Several sources, mixed by weight."""
    config: str | None = None
    """Configuration of a hub data set."""
    split: str | None = None
    """Split of a hub data set or of a saved one."""
    format: FormatName = "auto"
    """Row format; auto recognises it from the columns and prints the evidence."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our name: the file's column, such as {text: content, label: stars}."""
    template: str | None = None
    """A text made of columns, such as 'Q: {question} A:', used as the prompt (or as the text)."""
    val_set_size: Annotated[float, Field(ge=0.0)] = 0.1
    """Validation rows split off: a share below 1, or a whole number of rows; 0 for none."""
    validation: DataSource | list[DataSource] | None = None
    """Validation rows of their own, instead of a split."""
    stratify: bool | None = None
    """Split with equal class shares; null does so for single-label classification."""
    group_by: str | None = None
    """Column whose equal values stay on one side of the split."""
    max_length: Positive = 1024
    """Longest row in tokens."""
    overflow: Literal["truncate", "drop", "split", "error"] = "truncate"
    """What happens to a longer row."""
    packing: bool = False
    """Pack several rows into one of max_length; causal_lm only."""
    train_on: Literal["completions", "last_turn", "all"] = "completions"
    """Which tokens of a conversation or completion are supervised."""
    chat_template: str | None = None
    """null: the tokenizer's own; none: plain text; a known name; or a Jinja file."""
    max_fully_masked: Fraction = 0.1
    """Refuse to train when a larger share of rows supervises nothing."""
    on_error: Literal["fail", "skip"] = "fail"
    """What a broken row does; skipped rows are listed in the run directory."""
    streaming: bool = False
    """Read rows as they are needed instead of preparing all of them; needs training.max_steps."""
    max_rows: Positive | None = None
    """Use only this many rows of the training set."""
    num_proc: Positive | None = None
    """Processes that prepare rows; null chooses."""
    cache_dir: str | None = None
    """Where prepared rows are kept; null is the user's cache directory."""


class FastPathsSpec(Block):
    """Faster ways to compute the same, each on where it fits; switch one off to compare, or to look for a fault."""

    lowrank: bool = True
    """Low-rank updates in one autograd node that keeps nothing wide."""
    head_loss: bool = True
    """Logits of supervised positions only, in chunks, with their gradient at once."""
    attention: bool = True
    """On a CPU: attention with dropout, and short attention in bfloat16, as plain products."""
    dropout: bool = True
    """On a CPU: dropout from cheap random bits."""
    compute_weights: bool = True
    """One copy of the frozen matrices in the dtype of training."""
    padding_free: bool = True
    """On a CPU: the rows of a micro-batch behind each other, without padding, where the model keeps them apart."""
    last_block: bool = True
    """A classifier's last block at the position that its head reads, where that is the first."""
    allocator: bool = True
    """On a CPU: keep freed memory for the next step instead of giving it back (glibc)."""


class TrainingSpec(Block):
    """How long, how fast, on what: the names of transformers' TrainingArguments."""

    learning_rate: Rate | None = None
    """Peak learning rate; null takes the method's own default."""
    head_learning_rate: Rate | None = None
    """Learning rate of the task head; null is the same as learning_rate."""
    lr_groups: dict[str, Rate] = Field(default_factory=dict)
    """Regular expression over trainable parameter names: learning rate."""
    train_head: bool = True
    """Train the task head beside the method."""
    num_train_epochs: Annotated[float, Field(gt=0.0, le=1e6)] = 3.0
    """Passes over the training rows."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; overrides num_train_epochs."""
    per_device_train_batch_size: Positive = 8
    """Rows of one device in one micro-batch."""
    per_device_eval_batch_size: Positive = 16
    """Rows of one device in one evaluation batch."""
    gradient_accumulation_steps: Positive = 1
    """Micro-batches to one optimizer step."""
    max_tokens_per_micro_batch: Positive | None = None
    """Split a batch further by padded tokens; exact, as the loss is normalised over the whole batch. null chooses."""
    optim: str = "adamw_torch"
    """Optimizer: adamw_torch, sgd, adafactor, adamw_8bit, paged_adamw_32bit, ... (`peft schema` lists all)."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Decoupled weight decay; biases and norms are left out."""
    adam_beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """First-moment decay."""
    adam_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Second-moment decay."""
    adam_epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    """Term added to the denominator."""
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Clip the gradient norm; 0 does not clip."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = "linear"
    """Course of the learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up."""
    warmup_ratio: Fraction = 0.0
    """Share of all steps for the warm-up, when warmup_steps is 0."""
    bf16: bool | Literal["auto"] = "auto"
    """Compute in bfloat16; auto where the weights are bfloat16 or a probe says it is faster."""
    fp16: bool = False
    """Compute in float16 with loss scaling; CUDA only."""
    tf32: bool = True
    """Let CUDA use TensorFloat-32 for float32 products."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass to save memory; auto where a step would not fit without."""
    label_smoothing_factor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Label smoothing."""
    neftune_noise_alpha: Annotated[float, Field(ge=0.0)] | None = None
    """NEFTune: uniform noise on the input embeddings."""
    class_weights: Literal["balanced"] | list[float] | None = None
    """Weights of the classes in the loss."""
    train_sampling_strategy: SamplingStrategy = "group_by_length"
    """Order of an epoch: shuffled with rows of similar length together, shuffled, or as in the data."""
    eval_strategy: Literal["auto", "no", "steps", "epoch"] = "auto"
    """When to evaluate; auto is every epoch if there are validation rows."""
    eval_steps: Positive | None = None
    """Steps between evaluations with eval_strategy steps."""
    save_strategy: Literal["auto", "no", "steps", "epoch"] = "auto"
    """When to write checkpoints; auto follows eval_strategy, or save_steps if given."""
    save_steps: Positive | None = None
    """Steps between checkpoints."""
    save_total_limit: Positive | None = 2
    """Checkpoints kept; older ones are removed."""
    logging_steps: Positive = 10
    """Steps between lines in metrics.jsonl."""
    metrics: list[str] = Field(default_factory=list)
    """More evaluation metrics by name, such as f1_macro, mcc, rouge, bleu, exact_match."""
    metric_for_best_model: str = "eval_loss"
    """Which metric chooses the adapter that is kept."""
    greater_is_better: bool | None = None
    """Direction of that metric; null knows the usual ones."""
    early_stopping_patience: Positive | None = None
    """Evaluations without improvement before training stops."""
    early_stopping_threshold: Annotated[float, Field(ge=0.0)] = 0.0
    """Smallest improvement that counts."""
    eval_generate: Annotated[int, Field(ge=0)] = 0
    """Rows to generate text for at each evaluation, shown and stored."""
    max_new_tokens: Positive = 128
    """Longest generated text, in tokens."""
    dataloader_num_workers: Annotated[int, Field(ge=0)] = 0
    """Threads that prepare the batches of as many steps ahead; 0 prepares a step's batches when it begins."""
    fast_paths: FastPathsSpec = Field(default_factory=FastPathsSpec)
    """Switches of the faster ways to compute the same."""
    torch_compile: bool = False
    """Compile each block with torch.compile."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(default_factory=list)
    """Trackers, through Accelerate; none by default."""
    push_to_hub: str | None = None
    """Hub repository that receives the adapter at the end."""


class Recipe(Block):
    """One recipe file, checked and with every default filled in."""

    model: ModelSpec
    """The pretrained model."""
    task: TaskName
    """What the model learns to do."""
    data: DataSpec | None = None
    """The rows; `count-params` does without."""
    method: SerializeAsAny[MethodParams]
    """How: a method's name and its own hyper-parameters."""
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    """How long, how fast, on what."""
    output_dir: str | None = None
    """Directory of the run; null is runs/ and the recipe's file name."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of every random choice."""

    def as_dict(self) -> dict[str, Any]:
        """Return the whole recipe as plain data, defaults included."""
        return self.model_dump(mode="json", serialize_as_any=True)
