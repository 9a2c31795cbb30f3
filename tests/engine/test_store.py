import numpy as np
import pytest
import torch
from fakes import COLOURS, colour_clip, colour_folder
from torch.nn import functional as F

from diptych.data.pictures import open_picture
from diptych.data.read import read_records
from diptych.data.scan import scan
from diptych.engine import store as module
from diptych.engine.store import FeatureStore, cache_clear, cache_info, feature_folder
from diptych.errors import DiptychError


@pytest.fixture
def setting(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    records, scanned, _ = scan(read_records(colour_folder(tmp_path / "photos", each=3)))
    return colour_clip(), records, {i: s.digest for i, s in scanned.items()}


class Counting:
    """Counts the pictures that go through the tower."""

    def __init__(self, clip, monkeypatch):
        self.count = 0
        encode = clip.encode_image

        def counted(pixels, **options):
            self.count += len(pixels)
            return encode(pixels, **options)

        monkeypatch.setattr(clip, "encode_image", counted)


def test_features_are_the_towers_own_and_paid_once(setting, monkeypatch):
    clip, records, digests = setting
    counting = Counting(clip, monkeypatch)
    features = FeatureStore(digests).images(clip, records)
    expected = torch.cat([clip.image(clip.preprocess(open_picture(r))[None]).embedding for r in records])
    torch.testing.assert_close(features, F.normalize(expected, dim=-1))
    assert counting.count == len(records)
    again = FeatureStore(digests).images(clip, records[[5, 0, 5]])
    assert torch.equal(again, features[[5, 0, 5]])
    assert counting.count == len(records)


def test_views_depend_on_the_bytes_alone(setting):
    clip, records, digests = setting
    first = FeatureStore(digests).images(clip, records, views=3)
    cache_clear()
    second = FeatureStore(digests).images(clip, records[list(range(len(records)))[::-1]], views=3)
    assert first.shape == (len(records), 3, clip.embed_dim)
    torch.testing.assert_close(first, second.flip(0))
    assert not torch.equal(first[:, 0], first[:, 1])


def test_fewer_views_are_the_first_of_more(setting, monkeypatch):
    clip, records, digests = setting
    many = FeatureStore(digests).images(clip, records, views=4)
    counting = Counting(clip, monkeypatch)
    assert torch.equal(FeatureStore(digests).images(clip, records, views=2), many[:, :2])
    assert counting.count == 0


def test_another_model_does_not_see_them(setting, monkeypatch):
    clip, records, digests = setting
    FeatureStore(digests).images(clip, records)
    other = colour_clip()
    with torch.no_grad():
        other.image.scale.mul_(torch.linspace(1, 2, 12))
    counting = Counting(other, monkeypatch)
    FeatureStore(digests).images(other, records)
    assert counting.count == len(records)


def test_a_writer_killed_between_file_and_index_does_no_harm(setting, monkeypatch):
    clip, records, digests = setting
    monkeypatch.setattr(module, "BATCH", 4)
    FeatureStore(digests).images(clip, records[:4])
    (data,) = feature_folder().glob("*.f32")
    with open(data, "ab") as file:
        file.write(b"\xff" * 1000)  # rows that no index knows, and a torn one
    features = FeatureStore(digests).images(clip, records)
    cache_clear()
    assert torch.equal(features, FeatureStore(digests).images(clip, records))


def test_a_file_cut_short_is_filled_again(setting):
    clip, records, digests = setting
    features = FeatureStore(digests).images(clip, records)
    (data,) = feature_folder().glob("*.f32")
    with open(data, "r+b") as file:
        file.truncate(5 * 4 * clip.embed_dim + 3)
    assert torch.equal(FeatureStore(digests).images(clip, records), features)


def test_texts_are_cached_in_the_order_asked_for(setting, monkeypatch):
    clip, _, digests = setting
    texts = [f"a photo of a {c}." for c in COLOURS]
    rows = FeatureStore(digests).texts(clip, texts)
    torch.testing.assert_close(rows, clip.encode_text(texts))
    monkeypatch.setattr(clip, "encode_text", None)
    assert torch.equal(FeatureStore(digests).texts(clip, texts[::-1]), rows.flip(0))


def test_the_least_recently_used_space_goes_first(setting):
    clip, records, digests = setting
    FeatureStore(digests).texts(clip, ["old"])
    FeatureStore(digests).images(clip, records)
    FeatureStore(digests, limit=0).images(clip, records, views=1)
    assert [entry.rows for entry in cache_info()] == [len(records)]
    assert sum(f.stat().st_size for f in feature_folder().glob("*.f32")) == sum(e.bytes for e in cache_info())


def test_a_damaged_index_is_said_and_emptied(setting):
    clip, records, digests = setting
    FeatureStore(digests).images(clip, records)
    (feature_folder() / "index.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(DiptychError, match="damaged"):
        FeatureStore(digests).images(clip, records)
    assert len(FeatureStore(digests).images(clip, records)) == len(records)


def test_seconds_are_those_of_the_encoding(setting):
    clip, records, digests = setting
    store = FeatureStore(digests)
    store.images(clip, records)
    spent = store.seconds(clip, records)
    assert spent > 0
    assert FeatureStore(digests).seconds(clip, records) == pytest.approx(spent)
    assert np.isclose(store.seconds(clip, records[:6]) + store.seconds(clip, records[6:]), spent)
