"""The recipe: model, task, data, method, training. Each field is one key of the recipe, with its default and bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny

from peftcli.recipe.method_params import IN_ORDER, Block, MethodParams, NotNegative, Positive
from peftcli.recipe.vocabulary import NameOf

TaskName = Annotated[str, NameOf("tasks")]
SamplingStrategy = Literal["group_by_length", "random", "sequential"]
DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
LossType = Literal["sigmoid", "ipo", "hinge", "robust", "orpo", "simpo", "cpo", "kto"]
FormatName = Annotated[str, NameOf("formats", auto=True)]

Rate = Annotated[float, Field(gt=0.0, le=100.0)]  # 2e4 is 2e-4 without its sign; SGD on prompts has used 30
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class NewTokens(Block):
    """Tokens to add to the vocabulary, and what becomes of their rows."""

    tokens: list[str] = Field(min_length=1)
    """The tokens."""
    train: bool = True
    """Train their rows of the embeddings and of the language-model head; false leaves them the mean of the others."""


class ModelSpec(Block):
    """The pretrained model, and the form in which its weights are loaded."""

    name_or_path: str = Field(min_length=1)
    """The model: a hub id, a directory, a GGUF file, or package:NAME/PATH."""
    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
    dtype: DTypeName = "auto"
    """Type of the frozen weights; auto keeps the checkpoint's type where the device supports it well, else float32."""
    load_in_4bit: bool = False
    """Quantise the frozen weights to 4 bits with bitsandbytes."""
    load_in_8bit: bool = False
    """Quantise the frozen weights to 8 bits with bitsandbytes."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """Type of the 4-bit numbers."""
    bnb_4bit_use_double_quant: bool = True
    """Quantise the quantisation constants too."""
    bnb_4bit_compute_dtype: DTypeName = "auto"
    """Type in which 4-bit layers compute; auto takes the dtype of the model."""
    min_quantized_share: Fraction = 0.8
    """Stop if a smaller share of the weights in the blocks could be quantised to 4 or 8 bits."""
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """The implementation of attention in transformers; auto also allows the faster ones of this project."""
    trust_remote_code: bool = False
    """Allow Python code from the model's repository to run; in a run's own recipe.yaml it is ignored."""
    num_labels: Positive | None = None
    """Number of classes; null counts them in the data."""
    problem_type: Literal["single_label", "multi_label", "regression"] | None = None
    """Kind of sequence classification; null infers it from the labels."""
    anatomy: dict[str, str | list[str]] | None = None
    """Where the parts of an unknown model family are: {attn.q: 'self_attn.q_proj', ...}, as paths within a block."""
    new_special_tokens: list[str] | NewTokens = Field(default_factory=list)
    """Tokens to add to the vocabulary, as a list or as {tokens: [...], train: false}; their rows alone are trained."""

    @property
    def new_tokens(self) -> list[str]:
        """The tokens to add to the vocabulary."""
        tokens = self.new_special_tokens
        return list(tokens.tokens if isinstance(tokens, NewTokens) else tokens)

    @property
    def trains_new_tokens(self) -> bool:
        """Whether the rows of the new tokens are trained."""
        return not isinstance(self.new_special_tokens, NewTokens) or self.new_special_tokens.train


class DataSource(Block):
    """One source of rows: a file, a directory or a data set."""

    path: str = Field(min_length=1)
    """A file, a glob, a directory of class folders, a directory saved by `datasets`, a hub id, or package:NAME/PATH."""
    name: str | None = None
    """Name of this set in metrics, when there are several validation sets."""
    config: str | None = None
    """Configuration of a hub data set."""
    split: str | None = None
    """Split of a data set: on the hub, or by the names of files, folders or lists of a JSON object; null chooses."""
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """How often rows are used: 0.5 uses half of them, 2 uses each twice. For a stream, how often it is drawn from."""
    format: FormatName | None = None
    """Format of the rows; null takes `data.format`."""
    columns: dict[str, str] | None = None
    """Column names in the file, by the name that the format gives the column; null takes `data.columns`."""


class DataSpec(Block):
    """The rows to train on: where they are, their format, their length, and which are held out."""

    path: str | None = None
    """A file, a glob, a directory, a hub id or package:NAME/PATH. For several sources use `datasets`."""
    datasets: list[DataSource] | None = None
    """Several sources, mixed according to their weights."""
    config: str | None = None
    """Configuration of a hub data set."""
    split: str | None = None
    """Split of a data set: on the hub, or by the names of files, folders or lists of a JSON object; null chooses."""
    format: FormatName = "auto"
    """Format of the rows; auto infers it from the columns and prints how."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column names in the file, or dotted paths into columns, by the name that the format gives the column."""
    template: str | None = None
    """Text built from columns, such as 'Q: {question} A:', used as the prompt, or as the whole text."""
    val_set_size: Annotated[float, Field(ge=0.0)] = 0.1
    """Rows held out for validation: a share below 1, or a number of rows; 0 holds out none."""
    split_rule: Literal[1, 2] = 2
    """How rows are held out: 2 among all rows of the files; 1 among those that max_length left, as old runs did."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of the split, of max_rows, of max_eval_rows and of the weights of sources; null takes the recipe's seed. Set
    it to hold out the same rows in runs with other seeds."""
    validation: DataSource | list[DataSource] | None = None
    """Separate validation rows, instead of rows held out from the training data."""
    stratify: bool | None = None
    """Keep the shares of the classes equal when rows are held out; null does so for single-label classification."""
    group_by: str | None = None
    """Column whose rows of equal value are all trained on or all held out."""
    max_length: Positive = 1024
    """Maximum length of a row in tokens."""
    overflow: Literal["truncate", "drop", "split", "error"] = "truncate"
    """What to do with a longer row: cut it, leave it out, divide it into several rows, or stop."""
    packing: bool = False
    """Pack several rows into one row of up to max_length tokens; causal_lm only."""
    train_on: Literal["completions", "last_turn", "all"] = "completions"
    """The tokens that are trained on: the assistant's turns or the completion, only the last turn, or all."""
    chat_template: str | None = None
    """Chat template: the name of a known one, a Jinja file, or none for plain text; null takes the tokenizer's own."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments that the chat template reads, such as {enable_thinking: false}; they become the template's defaults."""
    max_fully_masked: Fraction = 0.1
    """Stop if a larger share of the rows has no token to train on."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do with a broken row: stop, or skip it and list it in the run directory."""
    streaming: bool = False
    """Read rows while training instead of preparing all of them first; needs training.max_steps."""
    max_rows: Positive | None = None
    """Train on this many rows only."""
    max_eval_rows: Positive | None = None
    """Evaluate on this many of each set's validation rows only, drawn at random (for a stream, the first);
    `peft eval RUN` does so, too."""
    num_proc: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Number of processes that prepare rows; null chooses."""
    cache_dir: str | None = None
    """Directory that keeps prepared rows; null is a directory in the user's cache."""

    @property
    def named_sources(self) -> str:
        """Where the rows are from, as the records of studies have it."""
        return self.path or ", ".join(source.path for source in self.datasets or [])


class FastPathsSpec(Block):
    """Optimisations that compute the same result faster. Each is used where it applies; turn one off to compare, or to
    look for a fault."""

    lowrank: bool = True
    """Compute a low-rank update in one autograd node, which keeps no tensor of the output's size."""
    head_loss: bool = True
    """Compute logits only where there is a label, in chunks, each with its gradient."""
    attention: bool = True
    """On a CPU, compute attention with dropout, and short bfloat16 attention, by matrix products."""
    dropout: bool = True
    """Draw the base's dropout by rows, the same on any number of processes; on a CPU that is faster, too."""
    wide_products: bool = True
    """On a CPU without bfloat16 instructions, multiply bfloat16 matrices in float32 instead of emulating them.
    Evaluation and prediction do so whatever the recipe says."""
    compute_weights: bool = True
    """Cast the frozen matrices to the dtype of training once instead of in every step."""
    padding_free: bool = True
    """On a CPU, join the rows of a micro-batch into one row without padding, if the model keeps them apart."""
    shared_prompts: bool = True
    """Where rows are joined, compute the prompt of two answers to it once, unless dropout is on."""
    last_block: bool = True
    """Compute a classifier's last block for the first position only, if the head reads no other."""
    continuous_batching: bool = True
    """On a CPU, let rows enter and leave a batch of greedy texts as they end, instead of waiting for the longest."""
    allocator: bool = True
    """On a CPU with glibc, keep freed memory for the next step instead of returning it to the system."""


class TrainingSpec(Block):
    """How to train. The names are those of transformers' TrainingArguments."""

    learning_rate: Rate | None = None
    """Peak learning rate; null takes the default for the method and the model."""
    head_learning_rate: Rate | None = None
    """Peak learning rate of the task head; null takes learning_rate."""
    lr_groups: Annotated[dict[str, Rate], IN_ORDER] = Field(default_factory=dict)
    """Peak learning rates of parameters whose names match a regular expression: {expression: rate}."""
    train_head: bool = True
    """Train the task head together with the method's parameters."""
    num_train_epochs: Annotated[float, Field(gt=0.0, le=1e6)] = 3.0
    """Number of passes over the training rows."""
    max_steps: Positive | None = None
    """Number of optimizer steps; overrides num_train_epochs."""
    per_device_train_batch_size: Positive = 8
    """Rows in a micro-batch on one device."""
    per_device_eval_batch_size: Positive = 16
    """Rows in an evaluation batch on one device."""
    gradient_accumulation_steps: Positive = 1
    """Micro-batches in one optimizer step."""
    max_tokens_per_micro_batch: Positive | None = None
    """Split micro-batches with more tokens, padding included (of seq2seq_lm only those of inputs count); the result is
    the same. null chooses a limit."""
    optim: str = "adamw_torch"
    """Optimizer, such as adamw_torch, sgd, adafactor, adamw_8bit or paged_adamw_32bit (`peft schema` lists all)."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight decay: sgd, adagrad and RMSprop add it to the gradient, all others apply it to the weights directly.
    Biases, norms and factors such as (IA)3's are not decayed."""
    adam_beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay rate of the first moment."""
    adam_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay rate of the second moment."""
    adam_epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    """Number added to the denominator of the step."""
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = "linear"
    """Schedule of the learning rate after the warm-up, as in transformers."""
    warmup_steps: NotNegative = 0
    """Number of steps of linear warm-up."""
    warmup_ratio: Fraction = 0.0
    """Share of all steps that are warm-up, if warmup_steps is 0."""
    bf16: bool | Literal["auto"] = "auto"
    """Compute in bfloat16; auto does if the weights are bfloat16, or if a quick test shows that it is faster."""
    fp16: bool = False
    """Compute in float16 with loss scaling; CUDA only."""
    tf32: bool = True
    """Let CUDA multiply float32 matrices in TensorFloat-32 in training's forward and backward passes, nowhere else."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass to save memory; auto does if a step would not fit otherwise."""
    label_smoothing_factor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Amount of label smoothing."""
    loss_type: LossType | None = None
    """Loss of preference tuning, by TRL's name; null is sigmoid (DPO)."""
    beta: Annotated[float, Field(gt=0.0)] | None = None
    """Preference losses: how strongly the model is held to its reference; for orpo, the weight of the odds ratio. null
    is the loss's default: 0.1, for simpo 2."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] | None = None
    """Share of the preferences that are assumed to be the wrong way round; for the losses sigmoid, robust, simpo and
    cpo; null is 0."""
    simpo_gamma: Annotated[float, Field(ge=0.0)] | None = None
    """Target margin between the rewards for the loss simpo; null is 0.5."""
    sft_weight: Annotated[float, Field(ge=0.0)] | None = None
    """Weight of the chosen answer's mean negative log-likelihood, added to a preference loss; null is 1 for orpo and
    cpo, else 0."""
    reference: Literal["precomputed", "live"] | None = None
    """When preference losses compute the log-probabilities of the model before the first step: once, before that step;
    or live in every pass, with a frozen copy of the trained values. Null is precomputed."""
    desirable_weight: Annotated[float, Field(gt=0.0)] | None = None
    """Weight of the good answers in the loss kto; null is 1."""
    undesirable_weight: Annotated[float, Field(gt=0.0)] | None = None
    """Weight of the bad answers in the loss kto; null is 1."""
    neftune_noise_alpha: Annotated[float, Field(ge=0.0)] | None = None
    """Scale of the uniform noise that NEFTune adds to the input embeddings; null adds none."""
    class_weights: Literal["balanced"] | list[float] | None = None
    """Weights of the classes in the loss, in the order of the labels; balanced makes all classes count alike."""
    train_sampling_strategy: SamplingStrategy = "group_by_length"
    """Order of the rows in an epoch: shuffled with rows of similar length together, shuffled, or as in the data."""
    eval_strategy: Literal["auto", "no", "steps", "epoch"] = "auto"
    """When to evaluate; auto evaluates after every epoch if there are validation rows."""
    eval_steps: Positive | None = None
    """Steps between evaluations, with eval_strategy: steps."""
    eval_on_start: bool = True
    """Also evaluate before the first step, to know the score of the untrained model. transformers does not."""
    save_strategy: Literal["auto", "no", "steps", "epoch"] = "auto"
    """When to write checkpoints; auto does so at every evaluation, or every save_steps if that is given."""
    save_steps: Positive | None = None
    """Steps between checkpoints."""
    save_total_limit: Positive | None = 2
    """Number of checkpoints to keep; older ones are removed."""
    logging_steps: Positive = 10
    """Steps between lines in metrics.jsonl."""
    metrics: list[str] = Field(default_factory=list)
    """Additional evaluation metrics, such as f1_macro, mcc, rouge, bleu or exact_match."""
    metric_for_best_model: str = "eval_loss"
    """Metric that decides which adapter is kept."""
    greater_is_better: bool | None = None
    """Whether a larger value of that metric is better; null decides by its name."""
    early_stopping_patience: Positive | None = None
    """Number of evaluations without improvement after which training stops."""
    early_stopping_threshold: Annotated[float, Field(ge=0.0)] = 0.0
    """Smallest change of the metric that counts as an improvement."""
    eval_generate: NotNegative = 0
    """Number of rows for which text is generated, shown and stored at each evaluation."""
    max_new_tokens: Positive = 128
    """Maximum length of generated text in tokens."""
    dataloader_num_workers: NotNegative | Literal["auto"] = "auto"
    """Number of threads that prepare batches, and of steps prepared ahead; 0 prepares a step's batches when the step
    begins. auto is 1 on CUDA, else 0."""
    fast_paths: FastPathsSpec = Field(default_factory=FastPathsSpec)
    """Optimisations that can be turned off one by one."""
    torch_compile: bool | Literal["auto"] = False
    """Compile each block with torch.compile; auto does in long runs, if a trial of a few steps shows that it pays."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on; auto takes CUDA, then MPS, then the CPU."""
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(default_factory=list)
    """Experiment trackers that receive the metrics."""
    callbacks: list[str] = Field(default_factory=list)
    """Callbacks of installed packages (docs/plugins.md), by name."""
    push_to_hub: str | None = None
    """Repository on the hub to which the adapter is uploaded at the end."""


class DistributedSpec(Block):
    """How several processes share the work, in Accelerate's names. The result is the same with each value."""

    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """Whether each process holds the whole base (ddp) or a share of each block (fsdp); auto is ddp, unless Accelerate's
    config asks for FSDP."""
    cpu_offload: bool = False
    """With fsdp, keep each GPU's share of the base in the memory of the host, and copy a block when it is needed."""
    reshard_after_forward: bool = True
    """With fsdp, free a block's other shares after its forward pass; false keeps them for the backward pass."""
    timeout: Positive = 1800
    """Seconds that a step, or a batch of an evaluation, may take while processes wait for each other; then the run ends
    and says at which step."""


class Recipe(Block):
    """A recipe, checked and with every default filled in."""

    model: ModelSpec
    """The pretrained model."""
    task: TaskName
    """The task to train for."""
    data: DataSpec | None = None
    """The rows; `peft count-params` needs none."""
    method: SerializeAsAny[MethodParams]
    """The method: its name and its hyper-parameters."""
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    """How to train."""
    distributed: DistributedSpec = Field(default_factory=DistributedSpec)
    """How several processes share the work."""
    output_dir: str | None = None
    """Directory of the run; null is runs/ and the name of the recipe's file."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of all random numbers."""

    def as_dict(self) -> dict[str, Any]:
        """Return the whole recipe as plain data, defaults included."""
        return self.model_dump(mode="json", serialize_as_any=True)
