"""Folded norms: the same embeddings, fewer modules, and the tower itself untouched."""

import pytest
import torch
from fakes import ColourTower
from torch import nn

from diptych.core.edits import EditedTower, TowerEdits
from diptych.core.fold import folded, pairs
from diptych.core.tower import Tower, TowerOutput


class Small(Tower):
    """Three convolutions with norms, of which the second's output is read twice."""

    modality, kind, transformer = "image", "fake.norms", False
    embed_dim = width = 6
    depth = 1

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8)
        self.second, self.twice = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.third, self.last = nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)
        self.shared = False

    def forward(self, inputs, *, prompts=(), taps=(), tokens=False) -> TowerOutput:
        x = self.norm(self.first(inputs)).relu()
        y = self.second(x)
        z = self.twice(y) + (y if self.shared else 0)
        return TowerOutput(self.last(self.third(z.relu())).mean((2, 3)))


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    tower = Small()
    for part in tower.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.2, 3)
            nn.init.normal_(part.weight, 1, 0.5)
            nn.init.normal_(part.bias)
    return tower.eval().requires_grad_(False)


def test_a_folded_tower_computes_the_same_without_its_norms():
    tower, pixels = small(), torch.randn(3, 3, 20, 20)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    found = folded(tower, 20)
    assert found is not tower and not any(isinstance(part, nn.BatchNorm2d) for part in found.modules())
    torch.testing.assert_close(found(pixels).embedding, tower(pixels).embedding, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in tower.state_dict().items())
    assert pairs(tower, pixels) == [("first", "norm"), ("second", "twice"), ("third", "last")]


def test_what_would_not_compute_the_same_is_left_as_it_is():
    tower = small()
    tower.shared = True  # the second convolution's output is read without its norm too
    assert folded(tower, 20) is tower
    edited = EditedTower(small(), TowerEdits(weights={"norm.weight": torch.ones(8)}))
    assert folded(edited, 20) is edited
    plain = ColourTower()
    assert folded(plain, 16) is plain


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet10t"])
def test_timm_s_networks_fold(name):
    timm = pytest.importorskip("timm")
    from diptych.core.towers.timm import image_tower

    torch.manual_seed(0)
    trunk = timm.create_model(name, num_classes=0).eval()
    for part in trunk.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
    tower = image_tower(trunk, nn.Identity(), trunk.num_features).eval()
    found, pixels = folded(tower, 64), torch.randn(2, 3, 64, 64)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in found.modules())
    with torch.no_grad():
        cosine = torch.cosine_similarity(found(pixels).embedding, tower(pixels).embedding)
    assert cosine.min() > 0.999999
