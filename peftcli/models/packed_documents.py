"""Find out, by trying it, whether a model keeps the documents of a packed row apart, and how.

transformers makes the mask of packed documents from positions that restart, if no mask is given and no cache is used.
Models that do not pass positions to the function that makes the mask (opt) need a 4-D mask, and with some (bloom)
neither works. That may change with the version of transformers, so the family's name decides nothing here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from peftcli.distributed.memory_errors import says_nothing_of_the_model
from peftcli.errors import Problem, UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

PackingRoute = Literal["positions", "joined", "bool_mask", "float_mask"]
DOCUMENTS = (5, 7, 6)
"""Tokens of the documents that are tried. The lengths differ, so that a wrong position is noticed."""
ROUNDED = 0.1
"""Largest difference between packed and alone where products are rounded (half precision, or CUDA's TensorFloat-32), as
a share of the mean change if documents attend to each other. Rounding changes a few hundredths of that."""
EXACT = 1e-3
"""The same in float32 on a CPU, and everywhere for what the tokens of one document change in another."""


def packing_route(model: PreTrainedModel, *, rows: int = 2) -> PackingRoute:
    """Return how the documents of a row are kept apart; the model's logits decide.

    `positions` means position ids that restart, no mask and `use_cache=False`; `joined` the same in one row, where the
    model looks at them only there (flash attention): packed rows of a batch are then put behind each other. The masks
    are 4-D and block-causal.

    Args:
        rows: of the batch on which it is tried; 1 where batches have one row only.

    Raises:
        UserError: documents of a row attend to each other in every way that was tried.
    """
    import torch

    config = model.config
    vocabulary = int(config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    lengths = DOCUMENTS
    documents = [torch.randint(0, vocabulary, (1, n), generator=generator).to(device) for n in lengths]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = torch.cat([logits_of(model, input_ids=ids, use_cache=False) for ids in documents[1:]], dim=1)
            leak = _difference(alone, logits_of(model, input_ids=torch.cat(documents, dim=1), use_cache=False))
            rounds = device.type != "cpu" or next(model.parameters()).dtype != torch.float32
            for route in _routes(model, rows):
                packed = _packed(model, documents, route, rows)
                if packed is None or _difference(alone, packed) > (ROUNDED if rounds else EXACT) * leak:
                    continue
                if _stay_apart(model, documents, packed, route, rows, EXACT * leak):
                    return route
    finally:
        model.train(was_training)
    raise UserError(
        Problem(
            f"packed documents would attend to each other in the family {config.model_type}",
            key="data.packing",
            suggestion="set data.packing: false; llama, mistral, qwen, gemma, phi, gpt2 and gpt_neox keep them apart",
        )
    )


def block_causal(position_ids: Tensor, route: PackingRoute) -> Tensor:
    """Return the 4-D mask (rows, 1, length, length) of packed rows: causal within each document.

    Args:
        position_ids: (rows, length), starting at 0 in every document.
    """
    import torch

    document = (position_ids == 0).cumsum(dim=-1)
    length = position_ids.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=position_ids.device).tril()
    allowed = ((document[:, :, None] == document[:, None, :]) & causal)[:, None]
    if route == "bool_mask":
        return allowed
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, lowest)


def _routes(model: PreTrainedModel, rows: int) -> list[PackingRoute]:
    text = model.config.get_text_config()
    windowed = getattr(text, "sliding_window", None) or getattr(text, "attention_types", None)
    # a 4-D mask is used in every layer, also in those that need a sliding window
    by_positions: list[PackingRoute] = ["positions"] if rows == 1 else ["positions", "joined"]
    return by_positions if windowed else [*by_positions, "bool_mask", "float_mask"]


def _packed(model: PreTrainedModel, documents: list[Tensor], route: PackingRoute, rows: int = 2) -> Tensor | None:
    """Return the logits of all documents in one row, (1, length, vocabulary), or None if the model refuses the mask.

    Args:
        rows: of the batch, each the same; `joined` computes one.
    """
    import torch

    ids = torch.cat(documents, dim=1)
    positions = torch.cat([torch.arange(one.shape[1], device=one.device) for one in documents])[None]
    if route != "joined":
        ids, positions = ids.repeat(rows, 1), positions.repeat(rows, 1)
    inputs: dict[str, Tensor] = {"input_ids": ids, "position_ids": positions}
    if route in ("bool_mask", "float_mask"):
        inputs["attention_mask"] = block_causal(positions, route)
    try:
        return logits_of(model, use_cache=False, **inputs)[:1]
    except (TypeError, ValueError, RuntimeError, IndexError) as error:  # models refuse it in different ways
        if says_nothing_of_the_model(error):
            raise
        return None


def _stay_apart(
    model: PreTrainedModel, documents: list[Tensor], packed: Tensor, route: PackingRoute, rows: int, most: float
) -> bool:
    """Return whether the logits of documents stay while the tokens of other documents are replaced.

    The rows have one shape, so what is not attended to changes nothing, not even by rounding. Only where tokens decide
    what is computed together (experts) does rounding differ. How much is seen in a plain causal row, at the tokens in
    front of what is replaced; three times that is allowed, too.

    Args:
        most: mean change of the logits that counts as none.
    """
    import torch

    vocabulary = int(model.config.get_text_config().vocab_size)
    first, *rest = documents
    other = [(ids + vocabulary // 2) % vocabulary for ids in documents]
    ahead, behind = (_packed(model, changed, route, rows) for changed in ([other[0], *rest], [first, *other[1:]]))
    if ahead is None or behind is None:
        return False
    border = DOCUMENTS[0]
    backwards = float((packed[:, :border] - behind[:, :border]).abs().mean())
    seen = max(_difference(packed[:, border:], ahead), backwards)
    if seen <= most:
        return True
    both = (torch.cat([first, *tail], dim=1) for tail in (rest, other[1:]))
    plain, replaced = (logits_of(model, input_ids=ids, use_cache=False)[:, :border] for ids in both)
    return seen - 3 * float((plain - replaced).abs().mean()) <= most


def _difference(behind: Tensor, whole: Tensor) -> float:
    """Return the mean change of the logits after the first document, which has no document before it.

    Args:
        behind: logits of the documents after the first.
        whole: those of all documents.
    """
    return float((behind - whole[:, DOCUMENTS[0] :]).abs().mean())


def logits_of(model: PreTrainedModel, **inputs: object) -> Tensor:
    """Return a model's logits for these arguments in float32: (rows, length, vocabulary)."""
    return cast("Tensor", model(**inputs).logits).float()
