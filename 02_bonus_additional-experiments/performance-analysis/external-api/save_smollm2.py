"""SmolLM2-135M-Instruct as a folder of `transformers`, for a server that speaks OpenAI's protocol.

python 02_bonus_additional-experiments/performance-analysis/external-api/save_smollm2.py smollm2
transformers serve smollm2
"""

import startup_errors  # noqa: F401
import sys
from importlib.util import find_spec
from pathlib import Path

from command_line import make_parser, run_command
from export import shape_in_transformers
from files import whole_file
from gpt_download import SMOLLM2, load_pretrained, weights_file
from message_files import DataError


def save(folder: Path) -> None:
    """Write the weights as 32-bit numbers, and the tokenizer with its chat format, which
    `transformers` reads from the same file. Raises ``DataError`` if the folder is there already, or
    the library is not."""
    if folder.exists():
        raise DataError(f"{folder} is there already; name another folder.")
    if not find_spec("transformers"):
        raise DataError('this needs: python -m pip install "transformers[serving]"')
    import transformers

    decoder, _ = load_pretrained(SMOLLM2)
    _, sizes, weights = shape_in_transformers(decoder)
    source = weights_file(SMOLLM2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos")}
    config = transformers.LlamaConfig(
        vocab_size=decoder.cfg.vocab_size, tie_word_embeddings=True, **sizes, **ends
    )
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(weights | {"lm_head.weight": decoder.out_head.weight})
    with whole_file(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("save_smollm2.py", "Write SmolLM2 as a folder that servers open.")
    parser.add_argument("folder", type=Path, help="folder to write")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: save(args.folder), output=args.folder)


if __name__ == "__main__":
    sys.exit(main())
