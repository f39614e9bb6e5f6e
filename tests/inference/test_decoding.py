"""Predictions by sampling and by beams: reproducible, scored by the model, and refused where no text is written."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from peftcli.errors import UserError
from peftcli.inference.open_run import open_run
from peftcli.inference.opened_run import Predicting
from peftcli.inference.predict_run import predict_run
from peftcli.tasks.decoding import GREEDY, Decoding
from peftcli.tasks.generation import TextStream, decoding_note, generate, settings_note
from peftcli.training.run import train
from tests.recipes import chat_rows, write_jsonl
from tests.tiny import tiny_model, tiny_tokenizer


def test_sampling_and_beams(recipe, tmp_path) -> None:
    loaded = recipe("gpt2", "causal_lm", training__max_steps=1, training__max_new_tokens=5)
    train(loaded)
    run = str(loaded.recipe.output_dir)
    file = str(write_jsonl(tmp_path / "in.jsonl", [{"prompt": row["prompt"]} for row in chat_rows(5)]))

    def predicted(**how: object) -> list[dict]:
        return list(predict_run(run, file, how=Predicting(**how)))

    greedy = predicted()
    alone = predicted(batch_size=1)
    assert [row["prediction"] for row in alone] == [row["prediction"] for row in greedy]
    hot = Decoding(temperature=3.0)
    state = torch.get_rng_state()
    first, again, other = (
        predicted(decoding=hot, seed=1),
        predicted(decoding=hot, seed=1),
        predicted(decoding=hot, seed=2),
    )
    assert first == again
    assert [r["prediction"] for r in first] != [r["prediction"] for r in other]
    assert torch.equal(torch.get_rng_state(), state)
    one = predicted(decoding=Decoding(temperature=3.0, top_k=1))
    assert [r["prediction"] for r in one] == [r["prediction"] for r in greedy]
    for row, same in zip(one, greedy, strict=True):  # a sampled text's log-probability is the model's own
        assert row["scores"]["mean_logprob"] == pytest.approx(same["scores"]["mean_logprob"], abs=1e-5)
    beams = predicted(decoding=Decoding(num_beams=4))
    assert sum(r["scores"]["mean_logprob"] for r in beams) >= sum(r["scores"]["mean_logprob"] for r in greedy) - 1e-5


def test_a_text_is_scored_by_the_models_own_distribution(recipe, tmp_path) -> None:
    """`mean_logprob` of what was drawn equals that of a forward pass over prompt and text."""
    loaded = recipe("llama", "causal_lm", training__max_steps=1, training__max_new_tokens=4)
    train(loaded)
    opened = open_run(str(loaded.recipe.output_dir))
    file = str(write_jsonl(tmp_path / "in.jsonl", [{"prompt": "the cat"}]))
    from peftcli.data.prepare import prepare_for_prediction

    rows = prepare_for_prediction(file, opened.data_spec, "causal_lm", opened.tokenizer, opened.trained_format)
    tokens: list[int] = []
    own_generate = opened.model.generate

    def heard(*args: object, **words: object) -> object:
        out = own_generate(*args, **words)
        tokens.extend(out.sequences[0].tolist())
        return out

    opened.model.generate = heard
    (row,) = opened.predict(rows, (), Predicting(decoding=Decoding(temperature=2.0), seed=3))
    start = len(rows[0].input_ids)
    with torch.no_grad():
        logits = opened.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    end = start + row["scores"]["tokens"]
    own = [float(logits[at - 1, tokens[at]]) for at in range(start, end)]
    assert row["scores"]["mean_logprob"] == pytest.approx(math.fsum(own) / len(own), abs=1e-4)


@pytest.mark.parametrize("penalty", [None, 0.0, 2.0])
def test_a_search_says_the_mean_whatever_power_of_the_length_it_divides_by(penalty: float | None) -> None:
    model, ids = tiny_model("llama").eval(), torch.tensor([[5, 6, 7]])
    model.generation_config.length_penalty = penalty
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    (line,) = generate(model, inputs, tiny_tokenizer(), max_new_tokens=5, decoding=Decoding(num_beams=3))
    told = heard_by(model, inputs, 5, num_beams=3)
    with torch.no_grad():
        logits = model(told).logits[0].log_softmax(-1)
    own = [float(logits[at - 1, told[0, at]]) for at in range(3, told.shape[1])]
    assert line["scores"]["tokens"] == len(own) == 5
    assert line["scores"]["mean_logprob"] == pytest.approx(math.fsum(own) / len(own), abs=1e-4)


def heard_by(model: torch.nn.Module, inputs: dict[str, torch.Tensor], tokens: int, **how: object) -> torch.Tensor:
    """Return what transformers' own `generate` writes behind a prompt: both, (1, tokens)."""
    generating: Any = model
    written: torch.Tensor = generating.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=0, **how)
    return written


@pytest.mark.parametrize("beams", [1, 3])
def test_an_end_that_is_forced_at_the_limit_is_none(beams: int) -> None:
    """BART's settings force EOS there: a text that was cut read as one that ended, with a token too many."""
    model, ids = tiny_model("bart", "seq2seq_lm").eval(), torch.tensor([[5, 6, 7]])
    model.final_logits_bias[0, 2] = -100.0  # it never ends by itself
    inputs, how = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, Decoding(num_beams=beams)
    model.generation_config.forced_eos_token_id = None
    (free,) = generate(model, inputs, tiny_tokenizer(), max_new_tokens=4, decoding=how)
    model.generation_config.forced_eos_token_id = 2
    (forced,) = generate(model, inputs, tiny_tokenizer(), max_new_tokens=5, decoding=how)
    assert forced["finish_reason"] == free["finish_reason"] == "length"
    assert (forced["prediction"], forced["scores"]["tokens"]) == (free["prediction"], 4)
    assert forced["scores"]["mean_logprob"] == pytest.approx(free["scores"]["mean_logprob"], abs=1e-4)


@pytest.mark.parametrize("wrong", [{"temperature": math.nan}, {"temperature": math.inf},
                                   {"temperature": 1.0, "top_p": math.nan}])  # fmt: skip
def test_no_number_is_no_temperature(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="finite"):
        Decoding(**wrong)


def test_a_classifier_draws_nothing(recipe, tmp_path) -> None:
    loaded = recipe("bert", "sequence_classification", training__max_steps=1)
    train(loaded)
    file = str(write_jsonl(tmp_path / "in.jsonl", [{"text": "the cat"}]))
    with pytest.raises(UserError, match="writes none"):
        predict_run(str(loaded.recipe.output_dir), file, how=Predicting(decoding=Decoding(temperature=1.0)))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes: a character can take four tokens."""
    made = Tokenizer(tokenizer_models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [(tiny_tokenizer(), "the cat sat\nand the dog"), (byte_tokenizer(), "the cat \U0001f600 said: h\u00e9!\nthe dog")],
    ids=["metaspace", "bytes"],
)
def test_pieces_of_a_text_are_whole_characters_and_add_up(tokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    stream.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for one in ids:
        stream.put(torch.tensor([one]))
    stream.end()
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces) and len(pieces) > 5


def test_settings_of_the_base_that_change_every_text_are_told() -> None:
    model, tokenizer = tiny_model("llama", "causal_lm"), tiny_tokenizer()
    own = model.generation_config
    own.update(repetition_penalty=1.0, no_repeat_ngram_size=0, min_length=0, temperature=0.5, length_penalty=2.0)
    own.forced_bos_token_id = tokenizer.bos_token_id
    assert settings_note(model, tokenizer) is None  # they mean nothing, or are chosen by whoever decodes
    own.update(min_length=56, no_repeat_ngram_size=3, suppress_tokens=[5])
    note = settings_note(model, tokenizer)
    assert note is not None and "min_length 56" in note and "no_repeat_ngram_size 3" in note
    assert "suppress_tokens [5]" in note and "repetition_penalty" not in note and "forced_bos" not in note


def test_settings_of_the_base_that_act_on_drawn_texts_and_on_beams_are_told() -> None:
    model = tiny_model("llama", "causal_lm")
    own = model.generation_config
    own.update(typical_p=1.0, epsilon_cutoff=0.0, length_penalty=1.0, early_stopping=False, top_p=1.0, do_sample=True)
    drawn, beams = Decoding(temperature=1.0), Decoding(num_beams=2)
    assert decoding_note(model, drawn) is decoding_note(model, beams) is None
    own.update(min_p=0.9, eta_cutoff=0.1, top_k=20, length_penalty=2.0, early_stopping=True)
    note = decoding_note(model, drawn)
    assert note is not None and "drawn with a temperature: min_p 0.9, eta_cutoff 0.1" in note
    assert note.endswith("it has top_k 20, which does not act: what is set here does")
    assert "top_k" not in (decoding_note(model, Decoding(temperature=1.0, top_k=5)) or "")
    assert (decoding_note(model, beams) or "").endswith("with beams: length_penalty 2.0, early_stopping True")
    assert decoding_note(model, GREEDY) is None


def test_every_setting_of_transformers_is_told_or_known() -> None:
    """A later version may add one that changes texts without a word."""
    from transformers import GenerationConfig

    from peftcli.tasks.generation import _ON_BEAMS, _ON_DRAWN, _ON_EVERY_TEXT

    of_ours = {
        "do_sample", "num_beams", "temperature", "top_k", "top_p", "max_length", "max_new_tokens", "use_cache",
        "eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id", "forced_eos_token_id",
        "num_return_sequences", "return_dict_in_generate", "output_scores", "output_logits", "output_attentions",
        "output_hidden_states",
    }  # fmt: skip
    same_texts = {
        "remove_invalid_values", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size",
        "compile_config", "disable_compile", "continuous_batching_config", "transformers_version", "is_assistant",
        "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "max_matching_ngram_size", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight",
        "speculation_type", "diversity_penalty",
    }  # fmt: skip
    refused = {
        "stop_strings", "token_healing", "penalty_alpha", "dola_layers", "num_beam_groups", "constraints",
        "force_words_ids", "low_memory", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp",
    }  # fmt: skip
    known = {*_ON_EVERY_TEXT, *_ON_DRAWN, *_ON_BEAMS} | of_ours | same_texts | refused
    found = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert not found - known
