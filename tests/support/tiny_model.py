"""A language model for tests: random weights, its own tokenizer, made in a second.

Its logits lie close together, so rounding noise tips its decisions far more often than a
real model's: what must not depend on the batch is put to a hard test by it.
"""

import os
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    logging,
)

CONTEXT_TOKENS = 512
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = """
The river rises in the hills behind the town and reaches the sea at the old harbour. In
spring it carries more water than the mills can use, and in a dry summer there is so little
that the children cross it on stones. The people who live along it know its ways: they
build on the higher bank, keep their boats above the weir, and watch the colour of the
water after a storm. Every question has an answer, and most answers lead to a question.
What is the name of the mountain? Which of the two roads is shorter? Write a list of three
things that are blue. Explain why bread rises, how a lock works, and what a shadow is.
"""


def make_tiny(path: Path, *, seed: int = 0, chat: bool = True) -> Path:
    """Write a Llama of 2 layers x 64 into the folder `path`; the same bytes for one seed."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tokenizer = _tokenizer(chat=chat)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT_TOKENS,
            initializer_range=0.2,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            dtype="float32",
        )
    )
    torch.random.set_rng_state(state)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _tokenizer(*, chat: bool) -> PreTrainedTokenizerFast:
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pieces.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        model_max_length=CONTEXT_TOKENS,
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
