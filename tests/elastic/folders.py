"""Model folders as users have them, small: written once for each test session."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, ViTConfig, ViTImageProcessorPil, ViTModel

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(chr(letter) for letter in range(97, 123))]
VOCABULARY += [f"##{chr(letter)}" for letter in range(97, 123)]


def tokenizer(folder: Path) -> None:
    """A word piece for each letter."""
    made = Tokenizer(models.WordPiece({word: at for at, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.save(str(folder / "tokenizer.json"))


def bert_config(**words: object) -> BertConfig:
    return BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        initializer_range=0.3,
        **words,
    )


def sentences(folder: Path, pooling: str = "mean", most: int = 20, prompts: dict[str, str] | None = None) -> Path:
    """A folder of sentence-transformers."""
    torch.manual_seed(5)
    BertModel(bert_config()).save_pretrained(folder)
    tokenizer(folder)
    names = ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling")
    modules = [{"idx": at, "name": str(at), "path": f"{at}_Pooling" if at else "", "type": names[at]} for at in (0, 1)]
    modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    chosen = {f"pooling_mode_{mode}": name == pooling for name, mode in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **chosen}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": most, "do_lower_case": False}))
    own = {"prompts": prompts or {}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(own))
    return folder


def cross(folder: Path) -> Path:
    """A cross-encoder of one score."""
    torch.manual_seed(6)
    BertForSequenceClassification(bert_config(num_labels=1)).save_pretrained(folder)
    tokenizer(folder)
    return folder


def vision(folder: Path) -> Path:
    """A vision transformer of nine patches."""
    torch.manual_seed(7)
    config = ViTConfig(
        image_size=12,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(folder)
    return folder


def task(folder: Path, labels: list[str], kept: dict[str, float], prompts: tuple[int, ...] = (), seed: int = 0) -> Path:
    """A task that nobody trained, of two layers of width 16."""
    folder.mkdir(parents=True)
    made = torch.Generator().manual_seed(seed)
    tensors = {}
    for p in (0, *prompts):
        tensors[f"head.{p}.weight"] = torch.randn(len(labels), 16, generator=made)
        tensors[f"head.{p}.bias"] = torch.zeros(len(labels))
    for p in prompts:
        tensors[f"prompts.{p}"] = torch.randn(2, p, 16, generator=made)
    save_file(tensors, folder / "task.safetensors")
    facts = {
        "name": folder.name,
        "labels": labels,
        "model": "tiny",
        "width": 16,
        "pooling": "mean",
        "accuracy": kept,
        "kept": [*kept],
        "prompts": [*prompts],
    }
    (folder / "task.json").write_text(json.dumps(facts))
    return folder
