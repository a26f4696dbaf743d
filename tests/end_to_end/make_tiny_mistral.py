"""Make a tiny Mistral with a tokenizer of its own: `python make_tiny_mistral.py TEXT_FILE FOLDER`.

MistralForCausalLM with 2 layers, the architecture of Mistral 7B with a fifty-thousandth of its weights. They start at
random and learn the text for a few seconds, so that there is something that a bad training can destroy. Needs torch, so
it runs with the steps' interpreter.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast


def make(text_file: Path, folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    tokenizer.train(
        [str(text_file)],
        trainers.BpeTrainer(
            vocab_size=1000, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )

    torch.manual_seed(0)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=len(fast),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            sliding_window=None,
            bos_token_id=fast.bos_token_id,
            eos_token_id=fast.eos_token_id,
            pad_token_id=fast.pad_token_id,
        )
    )
    warm_up(model, torch.tensor(fast(text_file.read_text(encoding="utf-8"))["input_ids"]))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


def warm_up(model: MistralForCausalLM, tokens: torch.Tensor, steps: int = 80, rows: int = 8, length: int = 64) -> None:
    """A few seconds of plain language modelling on random pieces of `tokens`, (tokens,)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - length, (rows,))
        batch = torch.stack([tokens[start : start + length] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
