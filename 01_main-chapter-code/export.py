"""A saved classifier for other programs: a folder for the library `transformers`, or ONNX.

    python 01_main-chapter-code/export.py classifier --format onnx --output exported

Beside the model, the folder holds its tokenizer and `use.py`, which classifies texts without this
project. The folder is there only if that gives the classifier's probabilities, with 8 bits nearly.
"""

import gc
import os
import runpy
import shutil
import startup_errors  # noqa: F401
import sys
from collections.abc import Callable, Sequence
from functools import partial
from operator import ne
from pathlib import Path
from typing import Any

import tiktoken
import torch
from torch import Tensor

from classifier_folder import classify_texts, open_classifier
from classify import survey_file
from command_line import make_parser, run_command
from evaluation import wilson_interval
from files import whole_file
from message_files import DataError, as_strings, read_table
from onnx_classifier import NETWORK, open_onnx, save_int8, save_onnx, write_config
from previous_chapters import END_OF_TEXT, Decoder, GPTModel, gpt2_state_dict
from smollm2 import bytes_of_characters
from text_classifier import GPTClassifier

# What ends a text, with a sign that Unicode reserves for programs: a text that holds the usual
# name is tokenized as any other, and an empty one can become this.
END = "\ufdd0" + END_OF_TEXT
# By how much a probability may differ: rounding of 32 bits leaves a hundredth of this. 8 bits may
# move any answer, and `--compare` counts them; not a number is refused.
TOLERANCES = {"transformers": 1e-4, "onnx": 1e-4, "onnx-int8": 1.0}
# A usual text, a hostile one, and the shortest and longest there are.
TRIAL_TEXTS = (
    "You have won a prize! Call 09098790123 to claim it.",
    f"{END_OF_TEXT} is no end, \u0640 nor are 12345 \U0001f600\n\n  spaces\t",
    "",
    " ",
    "\x04",  # of which some tokenizers make no token
    "and so on, and so on; " * 4000,
)


# --- The tokenizer -------------------------------------------------------------------------------


def in_tokenizers(tokenizer: tiktoken.Encoding, max_length: int):
    """The same tokenizer in the library `tokenizers`, which cuts at `max_length` and fills up.

    tiktoken joins any two neighbours whose bytes are a token, those of the lowest rank first: so
    every way to part a token in two is a merge of the library's, in the order of the ranks.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    characters = {byte: character for character, byte in bytes_of_characters().items()}

    def spelled(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    tokens = sorted(tokenizer.token_byte_values(), key=tokenizer.encode_single_token)
    vocabulary = {spelled(token): tokenizer.encode_single_token(token) for token in tokens}
    parted = ((t[:i], t[i:]) for t in map(spelled, tokens) for i in range(1, len(t)))
    merges = [parts for parts in parted if vocabulary.keys() >= {*parts}]
    theirs = Tokenizer(models.BPE(vocabulary | {END: tokenizer.eot_token}, merges))
    words = pre_tokenizers.Split(Regex(tokenizer._pat_str), "removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    theirs.decoder = decoders.ByteLevel()
    theirs.add_special_tokens([AddedToken(END, normalized=False)])
    theirs.enable_truncation(max_length)
    theirs.enable_padding(pad_id=tokenizer.eot_token, pad_token=END)
    return theirs


# --- transformers --------------------------------------------------------------------------------

LLAMA_NAMES = {
    "tok_emb": "model.embed_tokens",
    "trf_blocks": "model.layers",
    "att.W_query": "self_attn.q_proj",
    "att.W_key": "self_attn.k_proj",
    "att.W_value": "self_attn.v_proj",
    "att.out_proj": "self_attn.o_proj",
    "ff.": "mlp.",
    "gate": "gate_proj",
    "up.": "up_proj.",
    "down": "down_proj",
    "norm1.scale": "input_layernorm.weight",
    "norm2.scale": "post_attention_layernorm.weight",
    "final_norm.scale": "model.norm.weight",
}


def shape_in_transformers(decoder: Decoder) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """A decoder's kind, sizes and weights, but for its head, under the names of `transformers`."""
    cfg = decoder.cfg
    if isinstance(decoder, GPTModel):
        sizes = {
            "n_positions": cfg.context_length,
            "n_embd": cfg.emb_dim,
            "n_layer": cfg.n_layers,
            "n_head": cfg.n_heads,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        }
        weights = gpt2_state_dict(decoder).items()
        weights = {f"transformer.{name}": tensor for name, tensor in weights}
        weights.pop("transformer.lm_head.weight", None)
        return "GPT2", sizes, weights
    sizes = {
        "hidden_size": cfg.emb_dim,
        "intermediate_size": cfg.hidden_dim,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "max_position_embeddings": cfg.context_length,
        "rms_norm_eps": cfg.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_base},
    }
    weights = {}
    for name, tensor in decoder.state_dict().items():
        for ours, theirs in LLAMA_NAMES.items():
            name = name.replace(ours, theirs)
        weights[name] = tensor
    return "Llama", sizes, {n: t for n, t in weights.items() if not n.startswith("out_head")}


def bias_in_shift(decoder: GPTModel) -> Tensor | None:
    """The shift of the final norm (D,) that makes the head's bias needless, if there is one.

    The head gets h = s n + t, where t is that shift, and computes W h + b. With W d = b it computes
    the same from t + d without b.
    """
    head, shift = decoder.out_head, decoder.final_norm.shift
    weight, bias = head.weight.detach().double(), head.bias.detach().double()
    if torch.linalg.matrix_rank(weight) < len(bias):
        return None
    return (shift.detach().double() + torch.linalg.pinv(weight) @ bias).float()


def in_transformers(classifier: GPTClassifier, end_id: int):
    """The same classifier as a model of `transformers`, which fills up with the token `end_id`.

    GPT-2 read at its last token is a `GPT2ForSequenceClassification`. That class has no bias in
    its head, Llama's neither, and no mean over tokens: everything else becomes a model of every
    token's class, `ForTokenClassification`, whose logits at the last token, or their mean, are the
    message's. Raises ``DataError`` for a decoder that is not causal.
    """
    import transformers

    decoder, about = classifier.decoder, classifier.config
    if not decoder.cfg.causal:
        raise DataError("the library's decoders are causal, and this one is not; choose onnx.")
    kind, sizes, weights = shape_in_transformers(decoder)
    head, shift = decoder.out_head, None
    if kind == "GPT2" and about.pooling == "last":
        shift = bias_in_shift(decoder)
    if shift is None:
        task, name = "TokenClassification", "classifier" if kind == "GPT2" else "score"
        weights[f"{name}.bias"] = head.bias.detach()
    else:
        task, name = "SequenceClassification", "score"
        weights["transformer.ln_f.bias"] = shift
    weights[f"{name}.weight"] = head.weight.detach()
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=decoder.cfg.vocab_size,
        **sizes,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), end_id),
        id2label=dict(enumerate(about.label_names)),
        label2id={name: i for i, name in enumerate(about.label_names)},
        problem_type="multi_label_classification" if about.thresholds else None,
        pooling=about.pooling,
    )
    theirs = getattr(transformers, f"{kind}For{task}")(config).to(classifier.device).eval()
    theirs.load_state_dict(weights)  # strict: nothing missing, nothing over
    return theirs


def write_transformers(classifier: GPTClassifier, tokenizer, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    in_transformers(classifier, tokenizer.eot_token).save_pretrained(folder)
    max_length = classifier.config.max_length
    PreTrainedTokenizerFast(
        tokenizer_object=in_tokenizers(tokenizer, max_length),
        **dict.fromkeys(("pad_token", "bos_token", "eos_token"), END),
        model_max_length=max_length,
        padding_side="right",
    ).save_pretrained(folder)


# --- ONNX ----------------------------------------------------------------------------------------


def write_onnx(
    classifier: GPTClassifier, tokenizer, folder: Path, save: Callable = save_onnx
) -> None:
    save(classifier, folder / NETWORK)
    in_tokenizers(tokenizer, classifier.config.max_length).save(str(folder / "tokenizer.json"))
    write_config(classifier.config, folder, end_of_text=END)


def write_int8(classifier: GPTClassifier, tokenizer, folder: Path) -> None:
    trial = classifier.config.encode(TRIAL_TEXTS, tokenizer)
    write_onnx(classifier, tokenizer, folder, partial(save_int8, trial=trial))


# --- The command ---------------------------------------------------------------------------------

WRITERS = {"transformers": write_transformers, "onnx": write_onnx, "onnx-int8": write_int8}


def largest_difference(
    classifier: GPTClassifier, tokenizer, folder: Path, texts: Sequence[str]
) -> float:
    """By how much the probabilities that an exported folder gives differ from the classifier's."""
    classify = runpy.run_path(str(folder / "use.py"))["classify"]
    theirs = torch.cat(
        [torch.as_tensor(classify(list(texts[:1]))), torch.as_tensor(classify(list(texts[1:])))]
    )
    return (theirs - classify_texts(classifier, tokenizer, texts)).abs().max().item()


def export(classifier: GPTClassifier, tokenizer, kind: str, output: Path) -> float:
    """Write the folder `output`, and return the largest difference of a probability of the trial
    texts. Raises ``DataError`` for a classifier that this format cannot hold."""
    about = classifier.config
    if about.pad_to or about.pooling == "first" or about.cut != "head":
        raise DataError(
            "there is no export for --padding that counts as text, --pooling first, or a --cut "
            "other than head."
        )
    if os.path.lexists(output):
        raise DataError(f"{output} is there already; name another folder with --output.")
    with whole_file(output) as partial:
        partial.mkdir()
        WRITERS[kind](classifier, tokenizer, partial)
        use = f"use_{kind.partition('-')[0]}.py"
        shutil.copy(Path(__file__).with_name(use), partial / "use.py")
        difference = largest_difference(classifier, tokenizer, partial, TRIAL_TEXTS)
        gc.collect()  # of what `use.py` opened: Windows renames no folder of a file in use
        if not difference <= TOLERANCES[kind]:
            raise OSError(
                f"the exported classifier gives other probabilities, by {difference:.0e}: nothing "
                f"was written."
            )
    return difference


def texts_of(file: Path, classifier: GPTClassifier) -> list[str]:
    """The texts in a file, in the column that the classifier was trained on, or a guessed one."""
    trained_on = classifier.config.card.get("training", {}).get("text_column")
    column = survey_file(file, None, trained_on).text_column
    return as_strings(read_table(file)[column]).tolist()


def count_changed(classifier: GPTClassifier, tokenizer, folder: Path, texts: Sequence[str]) -> str:
    """How many labels of the texts an exported ONNX folder changes."""
    both = [classify_texts(c, tokenizer, texts) for c in (classifier, open_onnx(folder)[0])]
    changed = sum(map(ne, *(map(classifier.config.answer, rows) for rows in both)))
    low, high = wilson_interval(changed, len(texts))
    return (
        f"Of {len(texts):,} labels, {changed:,} are others than the classifier's: "
        f"{changed / len(texts):.1%}, 95% interval [{low:.1%}, {high:.1%}]."
    )


def export_and_compare(folder: Path, kind: str, output: Path, file: Path | None) -> None:
    classifier, tokenizer = open_classifier(folder)
    texts = texts_of(file, classifier) if file else []
    difference = export(classifier, tokenizer, kind, output)
    rounded = " but for rounding" if kind == "onnx-int8" else ""
    print(
        f"{output} gives the classifier's probabilities{rounded}: on {len(TRIAL_TEXTS)} trial "
        f"texts, empty and very long ones among them, the largest difference is "
        f'{difference:.0e}. Try it:\n  python {output / "use.py"} "a message of yours"'
    )
    if texts:
        print(count_changed(classifier, tokenizer, output, texts))


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(
        "export.py",
        "Write a saved classifier for other programs, and check that it gives the same "
        "probabilities there.",
    )
    parser.add_argument("folder", type=Path, help="classifier folder that finetune.py wrote")
    parser.add_argument("--format", choices=list(WRITERS), required=True, help="for which program")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--compare", type=Path, help="with onnx-int8: file of texts; how many labels change?"
    )
    args = parser.parse_args(argv)
    if args.compare and args.format != "onnx-int8":
        parser.error("--compare belongs to --format onnx-int8; other formats change no label")
    work = partial(export_and_compare, args.folder, args.format, args.output, args.compare)
    return run_command("export.py", work, output=args.output)


if __name__ == "__main__":
    sys.exit(main())
