"""GGUF files: decoded as the library decodes them; truncated and hostile ones refused before memory is taken."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.lm.core.gguf_file import GGUFFile

gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("small")
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("words", ["a", "b", "ä"])
    values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    writer.add_tensor("plain", values)
    writer.add_tensor("half", values.astype(np.float16))
    for kind in ("Q8_0", "Q4_0", "Q4_1", "Q5_0"):
        quantised = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(kind, quantised, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, values


def test_metadata_and_tensors_are_read(small_file):
    path, values = small_file
    with GGUFFile(path) as file:
        assert file.metadata["general.name"] == "small"
        assert file.metadata["numbers"] == [1, 2, 3]
        assert file.metadata["words"] == ["a", "b", "ä"]
        assert file.tensors["plain"].shape == (4, 64)
        torch.testing.assert_close(file.load("plain"), torch.from_numpy(values), rtol=0, atol=0)
        assert file.load("half", torch.bfloat16).dtype == torch.bfloat16
        with pytest.raises(BadInput, match="no tensor 'none'"):
            file.load("none")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_encodings_are_decoded_as_the_library_decodes_them(small_file, kind):
    path, _ = small_file
    quantisation = gguf.GGMLQuantizationType[kind]
    with GGUFFile(path) as file:
        info = file.tensors[kind]
        raw = np.frombuffer(path.read_bytes(), np.uint8, info.nbytes, info.offset)
        block = gguf.GGML_QUANT_SIZES[quantisation][1]
        expected = gguf.quants.dequantize(raw.reshape(-1, block), quantisation).reshape(info.shape)
        assert torch.equal(file.load(kind), torch.from_numpy(expected))


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_file_cut_short_anywhere_is_refused(small_file, tmp_path_factory, share):
    path, _ = small_file
    whole = path.read_bytes()
    cut = tmp_path_factory.mktemp("cut") / "cut.gguf"
    cut.write_bytes(whole[: int(share * (len(whole) - 40))])  # the last bytes may be padding
    with pytest.raises(BadInput):
        GGUFFile(cut)


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 600), value=st.integers(0, 255))
def test_file_with_a_changed_byte_is_read_or_refused_and_never_more(small_file, tmp_path_factory, place, value):
    path, _ = small_file
    whole = bytearray(path.read_bytes())
    whole[place] = value
    odd = tmp_path_factory.mktemp("odd") / "odd.gguf"
    odd.write_bytes(whole)
    try:
        with GGUFFile(odd) as file:
            for name in file.tensors:
                file.load(name)
    except BadInput:
        pass


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "begins with"),
        (b"GGML" + bytes(40), "begins with"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "claims"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63) + bytes(40), "truncated"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**62) + bytes(30), "claims"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 5) + bytes(30), "not known"),
    ],
)
def test_hostile_header_is_refused_before_memory_is_taken(tmp_path, head, words):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(head)
    with pytest.raises(BadInput, match=words):
        GGUFFile(path)


def test_absent_file_is_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot read"):
        GGUFFile(tmp_path / "none.gguf")
