"""llama.cpp's importance matrices are read in both forms, matched to a model, and written back."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from gemquant.errors import CheckpointError, GemquantError, OutputError, Problems, UsageError
from gemquant.formats.gguf.imatrix import (
    ImportanceEntry,
    ImportanceMatrix,
    importance_for,
    read_imatrix,
    write_imatrix,
)
from gemquant.formats.gguf.names import gguf_shapes
from tests.helpers.tiny_gemma import tiny_config

GOLDEN = Path(__file__).parents[3] / "golden"
FORMS = ("imatrix.gguf", "imatrix.dat")
QUERY = "blk.0.attn_q.weight"
SHAPES = gguf_shapes({**tiny_config("gemma3_text"), "tie_word_embeddings": True})


def matrix(**changes: ImportanceEntry) -> ImportanceMatrix:
    """One entry for each linear of the tiny Gemma 3, but for ``changes``."""
    linears = {n: s[-1] for n, s in SHAPES.items() if len(s) > 1 and n.startswith("blk.")}
    entries = {n: ImportanceEntry(torch.arange(float(c)), (4,)) for n, c in linears.items()}
    return ImportanceMatrix({**entries, **changes}, ("text",), 2, 64)


@pytest.mark.parametrize("form", FORMS)
def test_every_linear_of_llama_imatrixs_model_has_its_entry(form: str) -> None:
    found = importance_for(read_imatrix(GOLDEN / form), SHAPES)
    assert (len(found.weights), found.missing, found.foreign, found.notes) == (21, (), (), ())


def test_both_forms_give_the_same_weights() -> None:
    new, old = (read_imatrix(GOLDEN / form).entries for form in FORMS)
    for name, entry in new.items():
        torch.testing.assert_close(old[name].weights, entry.weights, rtol=2e-7, atol=0)


def test_weights_are_mean_squares_as_gguf_py_reads_them() -> None:
    tensors = {t.name: t.data for t in gguf.GGUFReader(GOLDEN / "imatrix.gguf").tensors}
    sums, counts = tensors[f"{QUERY}.in_sum2"], tensors[f"{QUERY}.counts"]
    entry = read_imatrix(GOLDEN / "imatrix.gguf").entries[QUERY]
    assert entry.counts == (counts.item(),) == (896,)
    np.testing.assert_array_equal(entry.weights.numpy(), sums.ravel() / np.float32(896))


def test_text_and_chunks_are_told() -> None:
    new, old = (read_imatrix(GOLDEN / form) for form in FORMS)
    assert (new.datasets, new.chunks, new.chunk_tokens) == (("text.txt",), 14, 64)
    assert (old.datasets, old.chunks, old.chunk_tokens) == (("text.txt",), 14, 0)


def test_a_written_file_is_llama_imatrixs_to_the_byte(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "out.gguf", read_imatrix(GOLDEN / "imatrix.gguf"))
    assert (tmp_path / "out.gguf").read_bytes() == (GOLDEN / "imatrix.gguf").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_what_names_no_text_is_read_back(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "out.gguf", ImportanceMatrix(matrix().entries))
    back = read_imatrix(tmp_path / "out.gguf")
    assert (back.datasets, len(back.entries)) == ((), 21)


def test_a_failed_write_leaves_an_older_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "out.gguf"
    path.write_bytes(b"older")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(OutputError, match="No space left"):
        write_imatrix(path, matrix())
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("out.gguf", b"older")]


def test_nothing_counted_weighs_every_column_alike() -> None:
    entry = ImportanceEntry(torch.zeros(3), (0,))
    assert entry.weights.tolist() == [1, 1, 1]


def test_experts_are_counted_apart_and_one_that_nothing_reached_weighs_alike() -> None:
    entry = ImportanceEntry(torch.tensor([2.0, 4.0, 0.0, 0.0]), (2, 0))
    assert entry.weights.tolist() == [1, 2, 1, 1]


def test_experts_are_written_as_one_tensor_and_read_back(tmp_path: Path) -> None:
    name = "blk.0.ffn_down_exps.weight"
    entry = ImportanceEntry(torch.arange(6.0), (3, 0))
    write_imatrix(tmp_path / "out.gguf", ImportanceMatrix({name: entry}))
    stored = {t.name: t.shape.tolist() for t in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert stored == {f"{name}.in_sum2": [3, 2], f"{name}.counts": [1, 2]}
    read = read_imatrix(tmp_path / "out.gguf").entries[name]
    assert (read.sums.tolist(), read.counts) == ([0, 1, 2, 3, 4, 5], (3, 0))
    found = importance_for(ImportanceMatrix({name: entry}), {name: (2, 5, 3)})
    assert found.weights[name].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])


def test_linears_without_entry_are_reported() -> None:
    partial = matrix()
    entries = {name: entry for name, entry in partial.entries.items() if "ffn_gate" not in name}
    found = importance_for(ImportanceMatrix(entries), SHAPES)
    assert found.notes == (
        (
            "the importance matrix has no entry for 3 of 21 linears, whose columns count alike: "
            "blk.0.ffn_gate.weight, blk.1.ffn_gate.weight, blk.2.ffn_gate.weight."
        ),
    )


def test_entries_of_no_tensor_are_reported() -> None:
    extra = {"output.weight": ImportanceEntry(torch.ones(128), (1,))}
    found = importance_for(matrix(**extra), SHAPES)
    assert found.foreign == ("output.weight",)
    assert "1 entries of the importance matrix name no tensor" in found.notes[0]


def test_an_embeddings_entry_counts_only_where_it_fits() -> None:
    fits = {"token_embd.weight": ImportanceEntry(torch.ones(128), (1,))}
    other = {"token_embd.weight": ImportanceEntry(torch.ones(64), 1)}
    assert "token_embd.weight" in importance_for(matrix(**fits), SHAPES).weights
    assert "token_embd.weight" not in importance_for(matrix(**other), SHAPES).weights


def test_another_width_is_another_model() -> None:
    with pytest.raises(UsageError, match=r"attn_q.weight has 64 columns in it and 128 here"):
        importance_for(matrix(**{QUERY: ImportanceEntry(torch.ones(64), 1)}), SHAPES)


def test_other_names_are_another_model() -> None:
    other = ImportanceMatrix({"layers.0.wq": ImportanceEntry(torch.ones(128), (1,))})
    with pytest.raises(UsageError, match="none of its 1 entries names a tensor"):
        importance_for(other, SHAPES)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_anywhere_is_refused(form: str, tmp_path: Path) -> None:
    whole = (GOLDEN / form).read_bytes()
    cut = tmp_path / form
    # The last bytes are padding in the GGUF, and may be missing in the older form.
    for length in {*range(0, len(whole) - 40, 97), 1, 3, 4, 5, len(whole) - 40}:
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_imatrix(cut)


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_file_is_read_or_refused_without_a_crash(form: str, tmp_path: Path) -> None:
    whole, generator = (GOLDEN / form).read_bytes(), random.Random(0)
    header = 4000 if form == "imatrix.gguf" else len(whole)
    damaged, refused = tmp_path / form, 0
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(header)] = generator.choice((0, 1, 127, 128, 255))
        damaged.write_bytes(data)
        try:
            read_imatrix(damaged)
        except GemquantError:
            refused += 1
    assert refused > 30


def test_the_oldest_form_ends_with_its_entries(tmp_path: Path) -> None:
    path = tmp_path / "old.dat"
    path.write_bytes(struct.pack("<ii4sii2f", 1, 4, b"blk.", 2, 2, 6.0, 8.0))
    (entry,) = read_imatrix(path).entries.values()
    assert entry.weights.tolist() == [3, 4]


def test_without_calls_the_older_form_holds_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "old.dat"
    path.write_bytes(struct.pack("<ii4sii2f", 1, 4, b"blk.", 0, 2, 6.0, 8.0))
    (entry,) = read_imatrix(path).entries.values()
    assert entry.weights.tolist() == [6, 8]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"Once upon a time", r"number of entries 1701015119"),
        (struct.pack("<i", 0), "number of entries 0: must be from 1"),
        (struct.pack("<iii", 1, -1, 0), "length of its name -1"),
        (struct.pack("<ii4sii", 1, 4, b"blk.", 1, 2**31 - 1), "8589934588 bytes are claimed"),
        (struct.pack("<ii4sii", 1, 4, b"blk.", 1, 0), "columns 0"),
        (struct.pack("<ii2sii1f", 1, 2, b"\xff\xff", 1, 1, 1.0), "not UTF-8"),
        (struct.pack("<ii1sii1f", 1, 1, b"a", 1, 1, float("nan")), "negative or not finite"),
        (struct.pack("<ii1sii1f", 1, 1, b"a", 1, 1, -1.0), "negative or not finite"),
        (struct.pack("<i" + 2 * "i1sii1f", 2, *(2 * (1, b"a", 1, 1, 1.0))), "a appears twice"),
        (struct.pack("<ii1sii1fii1s9s", 1, 1, b"a", 1, 1, 1.0, 1, 1, b"t", bytes(9)), "9 bytes"),
    ],
)
def test_what_is_wrong_with_the_older_form_is_said(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_imatrix(path)


def write_gguf(path: Path, **tensors: np.ndarray) -> Path:
    """A GGUF with an importance matrix's metadata and these tensors; __ stands for a dot."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_array("imatrix.datasets", ["text"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 64)
    for name, values in tensors.items():
        writer.add_tensor(name.replace("__", "."), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


ONES = np.ones(4, np.float32)
ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a__in_sum2": ONES}, "a: one of .in_sum2 and .counts is missing"),
        ({"a__counts": ONE}, "a: one of .in_sum2 and .counts is missing"),
        ({"a__in_sum2": ONES, "a__counts": np.ones(1, np.float16)}, "stored as F16: must be F32"),
        ({"a__in_sum2": ONES, "a__counts": -ONE}, "count -1.0"),
        ({"a__in_sum2": ONES, "a__counts": ONE * np.nan}, "count nan"),
        ({"a__in_sum2": ONES, "a__counts": ONES[:3]}, "3 counts for 4 columns"),
        ({"a__in_sum2": ONES * np.inf, "a__counts": ONE}, "negative or not finite"),
        ({"weight": ONES}, "holds no entry"),
    ],
)
def test_what_is_wrong_with_the_gguf_is_said(
    tensors: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "imatrix.gguf", **tensors)
    with pytest.raises(GemquantError, match=message):
        read_imatrix(path)


def test_all_damaged_entries_are_named_together(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "imatrix.gguf", a__in_sum2=ONES, b__counts=ONE)
    with pytest.raises(Problems, match="2 problems"):
        read_imatrix(path)


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gemma3")
    writer.add_tensor("token_embd.weight", ONES)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"a GGUF \(gemma3\), but not an importance matrix"):
        read_imatrix(tmp_path / "model.gguf")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.gguf: cannot be read: No such file"):
        read_imatrix(tmp_path / "absent.gguf")
