"""Models in GGUF files, the format of llama.cpp: transformers reads tokenizer and configuration and dequantizes the weights."""

import copy
import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from afintro.errors import UserError, one_line
from afintro.lm.load_errors import model_place, refuse_missing_weights

T = TypeVar("T")


def is_gguf(name: str | Path) -> bool:
    """Tell whether a model's name means a GGUF file, which is local always."""
    return str(name).lower().endswith(".gguf")


def gguf_config(name: str) -> Any:
    """Read the configuration of a GGUF file. A file that is unchanged is read once in a process, which takes seconds.

    Raises:
        UserError: The file or the library is missing, or transformers cannot read the file as it is meant.
    """
    return copy.deepcopy(_header(name).config)


@dataclass(frozen=True)
class Header:
    """What is known of a GGUF file without its weights.

    Args:
        config: The configuration that transformers makes of the file.
        weights: Number of weights of the file, each vocabulary matrix counted.
    """

    config: Any
    weights: int


def _header(name: str) -> Header:
    path = _readable(name)
    status = path.stat()
    return _read_header(name, str(path.resolve()), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _read_header(name: str, path: str, size: int, modified: int) -> Header:
    return _read(name, lambda: _header_of(name, Path(path)))


def _header_of(name: str, path: Path) -> Header:
    from gguf import GGUFReader

    config, reader = AutoConfig.from_pretrained(path.parent, gguf_file=path.name), GGUFReader(path)
    _refuse_what_is_dropped(name, config, reader)
    config.dtype = _own_dtype(reader)
    tied = config.get_text_config().tie_word_embeddings  # the files of Falcon and Bloom repeat the matrix all the same
    counted = [tensor for tensor in reader.tensors if not (tied and tensor.name == "output.weight")]
    return Header(config, sum(int(tensor.n_elements) for tensor in counted if not _is_rope(tensor.name)))


# Settings of a file that change what the model computes, and that transformers drops for some architectures without a word.
SETTINGS = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


def _refuse_what_is_dropped(name: str, config: Any, reader: Any) -> None:
    """Refuse a file with settings that its configuration lacks: the model would compute something else."""
    architecture = reader.get_field("general.architecture").contents()
    dropped = [tensor.name for tensor in reader.tensors if _is_rope(tensor.name) and (tensor.data != 1).any()]
    for key, attribute in SETTINGS.items():
        value = _setting(reader, f"{architecture}.{key}")
        endless = key == "attention.sliding_window" and (value or 0) >= config.max_position_embeddings
        if value and not endless and getattr(config, attribute, None) != value:
            dropped.append(f"{architecture}.{key}")
    scaling = _setting(reader, f"{architecture}.rope.scaling.type")
    rope = getattr(config, "rope_parameters", None) or {}
    if scaling not in (None, "none") and rope.get("rope_type", "default") == "default":
        dropped.append(f"{architecture}.rope.scaling.type")
    if dropped:
        raise UserError(
            f"has {', '.join(dropped)}, which transformers does not read from GGUF, so that the model would compute something else",
            where=model_place(name),
            remedy="give the model as safetensors",
        )


def _is_rope(tensor: str) -> bool:
    return tensor.startswith("rope_")  # rope_freqs, rope_factors_long, rope_factors_short


def _setting(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def gguf_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a GGUF file, with its chat template.

    Raises:
        UserError: The file or the library is missing, or transformers cannot read the file.
    """
    path = _readable(name)
    return _read(name, lambda: AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name))


def gguf_model(name: str, dtype: torch.dtype) -> PreTrainedModel:
    """Read a GGUF file as a plain model in evaluation mode, whose weights are dequantized.

    Args:
        name: Path of the file.
        dtype: Dtype of the weights.

    Raises:
        UserError: The file or the library is missing, or transformers cannot read the file or lacks some weights.
    """
    from transformers import GgufConfig  # here, because only the newest releases of transformers have this class

    path, header = _readable(name), _header(name)

    def read() -> PreTrainedModel:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=copy.deepcopy(header.config),
            dtype=dtype,
            # On an accelerator some architectures would otherwise keep their blocks, which LoRA cannot be put on.
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
        model, loading = loaded
        refuse_missing_weights({*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])})
        held = sum(parameter.numel() for parameter in model.parameters())
        if held != header.weights:
            raise ValueError(
                f"the model takes {held} of its {header.weights} weights: what the others are for is not supported"
            )
        return _plain(model, dtype)

    return _read(name, read)


def _plain(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Move dequantized weights into a model that no quantizer knows of; transformers refuses to save the other one."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with no_init_weights():
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    assert isinstance(plain, PreTrainedModel)
    return plain.eval()


def gguf_fingerprint(name: str) -> str:
    """Return a short hash of a whole GGUF file: tokenizer and template are in the file too.

    Raises:
        UserError: The file or the library is missing.
    """
    path = _readable(name)
    status = path.stat()
    return _hash(str(path.resolve()), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _hash(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _own_dtype(reader: Any) -> torch.dtype:
    """Return the dtype that a file is written in; bfloat16 for quantized blocks, which are coarser than bfloat16."""
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    matrices = {tensor.tensor_type.name for tensor in reader.tensors} - {"F32"}  # norms are float32 in every file
    if not matrices:
        return torch.float32
    return plain.get(matrices.pop(), torch.bfloat16) if len(matrices) == 1 else torch.bfloat16


def _readable(name: str) -> Path:
    """Return the path of a GGUF file that exists, where the library that reads it is installed."""
    path = Path(name)
    if not path.is_file():
        raise UserError(
            "does not exist", where=model_place(name), remedy="give the path of a GGUF file of this machine"
        )
    if importlib.util.find_spec("gguf") is None:
        what = "cannot be read without the gguf library, which is not installed"
        raise UserError(what, where=model_place(name), remedy="pip install gguf; in a checkout: make setup-real")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            what = "does not begin as a GGUF file does"
            raise UserError(
                what, where=model_place(name), remedy="the file is damaged or of another kind: copy it again"
            )
    return path


def _read(name: str, read: Callable[[], T]) -> T:
    """Call ``read``, and say what is wrong with the file where it fails."""
    try:
        return read()
    except (MemoryError, UserError):
        raise
    except Exception as error:  # a damaged file can make its readers raise nearly anything
        reason = one_line(error)
        if "not supported" in reason:
            what, remedy = "holds a model that transformers cannot dequantize", "give the model as safetensors"
        else:
            what, remedy = "cannot be read", "the file may be damaged: copy it again, or give the model as safetensors"
        what = f"{what} ({type(error).__name__}: {reason})"
        raise UserError(what, where=model_place(name), remedy=remedy) from error
