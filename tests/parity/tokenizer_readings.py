"""What transformers' AutoTokenizer makes of folders: as a function here, and as a script in another
environment, which prints it as JSON. Nothing but transformers is imported."""

import json
import sys
from typing import Any

TEXTS = (
    "my router is broken number 7",
    "<|im_start|>user\nplease check the light<|im_end|>\n",
    "  two spaces,\ttabs\nand \u00e9t\u00e9 \u6a21\u578b \U0001f600<|endoftext|>",
    "",
)
TALK = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "my bill is lost"},
    {"role": "assistant", "content": "please check the card first"},
    {"role": "user", "content": "thank you"},
)
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


def reading(folder: str) -> dict[str, Any]:
    """Ids, texts, special tokens and chats of the tokenizer in a folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    return {
        "ids": ids,
        "bare": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS],
        "decoded": [tokenizer.decode(row, skip_special_tokens=True) for row in ids],
        "special": {name: getattr(tokenizer, name) for name in NAMES},
        "special ids": sorted(tokenizer.all_special_ids),
        "chats": [
            tokenizer.apply_chat_template(list(TALK), tokenize=False, add_generation_prompt=asked)
            for asked in (False, True)
        ],
        "longest": tokenizer.model_max_length,
        "sides": [tokenizer.padding_side, tokenizer.truncation_side],
    }


def main() -> None:
    """Print transformers' version and the reading of each folder that is named."""
    import transformers

    readings = {folder: reading(folder) for folder in sys.argv[1:]}
    sys.stdout.write(json.dumps({"version": transformers.__version__, "readings": readings}))


if __name__ == "__main__":
    main()
