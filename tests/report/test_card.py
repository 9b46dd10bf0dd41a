"""README.md of a cache: its facts are the summary's, its front matter is YAML, and strangers' names stay names."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from demkd.cache import open_cache, write_weights
from demkd.report.card import card
from demkd.report.statistics import read_statistics
from demkd.report.summary import CacheSummary, summarise
from tests.cache import counting


def made(folder: Path, names: str = "ab", data: str = "counting") -> tuple[str, CacheSummary]:
    origin = counting.provenance()
    origin = type(origin)(identity=origin.identity, notes={**origin.notes, "data": data, "versions": {"torch": "2.6"}})
    for number, name in enumerate(names):
        counting.fill(folder, counting.shape(pool=(4, 2, 2)), teacher=name, number=number, origin=origin)
    with open_cache(folder) as cache:
        weights = np.full((len(names), cache.num_views, cache.samples), 1 / len(names), np.float32)
        write_weights(folder, cache.teachers, weights, weighting="equal")
    with open_cache(folder) as cache:
        summary = summarise(read_statistics(cache))
        return card(cache, summary), summary


def test_the_facts_are_those_of_the_summary(tmp_path: Path) -> None:
    text, summary = made(tmp_path)
    for teacher in summary.teachers:
        assert f"| {teacher.name} | {teacher.top1:.2%} | {teacher.mean_entropy:.3f} |" in text
        assert f"`{teacher.fingerprint}`" in text
        assert f"| `{teacher.name}.h5` | all 7 | pool 4 x 2 x 2 | {teacher.file_bytes:,} |" in text
    assert f"| a, b | {summary.agreement.same_top1[0][1]:.2%} |" in text
    for fact in (summary.labels_sha256, summary.pixels_sha256, f"{summary.file_bytes:,} bytes in all", "torch 2.6"):
        assert str(fact) in text
    assert "crop-flip, flip True, padding 4; seed 0" in text


def test_the_front_matter_is_yaml_and_the_licence_is_to_fill_in(tmp_path: Path) -> None:
    text, _ = made(tmp_path, data='a "b": #c')
    _, front, rest = text.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["license"] == "other"
    assert facts["pretty_name"] == 'Answers of 2 teachers to a "b": #c'
    assert facts["size_categories"] == ["n<1K"]
    assert "**Licence:** (fill in)" in rest


def test_a_strangers_words_are_no_markup(tmp_path: Path) -> None:
    text, _ = made(tmp_path, data="<img src=x> [a](b) | \x1b[31m\u202e*bold*")
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert r"\<img src=x\> \[a\](b) \| \\x1b\[31m\\u202e\*bold\*" in text
    assert not re.search(r"(?<!\\)[<>*]", text.split("---\n", 2)[2].partition("## Made from")[0].replace("**", ""))


@pytest.mark.parametrize(("samples", "word"), [(999, "n<1K"), (1000, "1K<n<10K"), (50_000, "10K<n<100K")])
def test_the_hub_is_told_the_size_in_its_words(tmp_path: Path, samples: int, word: str) -> None:
    _, summary = made(tmp_path)
    with open_cache(tmp_path) as cache:
        assert f'size_categories: ["{word}"]' in card(cache, replace(summary, samples=samples))
