"""SmolLM2-135M-Instruct as a folder of `transformers`, for a server that speaks OpenAI's protocol.

python 02_bonus_additional-experiments/performance-analysis/external-api/save_smollm2.py smollm2
transformers serve smollm2
"""

import ctrl_c  # noqa: F401
import sys
from importlib.util import find_spec
from pathlib import Path

from command_line import make_parser, run_command
from files import whole_file
from gpt_download import SMOLLM2, weights_file
from message_files import DataError


def save(folder: Path) -> None:
    """Write the weights as 32-bit numbers, and the tokenizer with its chat format. Raises
    ``DataError`` if the folder is there already, or the library is not."""
    if folder.exists():
        raise DataError(f"{folder} is there already; name another folder.")
    if not find_spec("transformers"):
        raise DataError('this needs: python -m pip install "transformers[serving]"')
    import transformers

    file = weights_file(SMOLLM2)
    source, how = file.parent, {"gguf_file": file.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="float32", **how)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **how)
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
