"""Every layer's norm rule and clipped sum against the batch-of-one loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dpaudit.privacy.errors import UnsupportedModel
from dpaudit.trainers.clipping import Automatic, Clipping, Flat, PerLayer
from dpaudit.trainers.ghost import products
from dpaudit.trainers.ghost import uses as _layers
from dpaudit.trainers.ghost.clipper import GhostClipping
from dpaudit.trainers.ghost.cost import Strategy, choose, strip_starts
from dpaudit.trainers.ghost.rules import sites_of
from dpaudit.trainers.ghost.sites import ConvolutionSite, GainSite, LinearSite, NormSite, Site
from tests.trainers.ghost.ghost_oracle import compare

SIZE, LENGTH, WIDTH = 5, 6, 8


def words() -> Tensor:
    ids = torch.randint(0, 9, (SIZE, LENGTH), generator=torch.Generator().manual_seed(3))
    ids[:, 2] = ids[:, 0]
    return ids


def floats(*shape: int) -> Tensor:
    return torch.randn(SIZE, *shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


class Gain(nn.Module):
    """An RMSNorm in the style of Llama: fp32 statistics, then the gain."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH))
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return (self.offset + self.weight) * scaled


class NotElementwise(nn.Module):
    """A 1-D parameter that a broadcast per example would get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.softmax(0)


class ClassToken(nn.Module):
    """A raw parameter and a submodule, as in a vision transformer's embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(len(x), -1, -1), self.inner(x)], 1)


class Twice(nn.Module):
    """One linear and one embedding, each used twice, and a second linear tied to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, WIDTH, padding_idx=4)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.other = nn.Linear(WIDTH, WIDTH)
        self.other.weight = self.linear.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + 0.5 * self.embed(ids.flip(1))
        return self.other(torch.tanh(self.linear(torch.tanh(self.linear(x)))))  # type: ignore[no-any-return]


class TransposedTie(nn.Module):
    """One matrix stored once and read as an embedding and by a Conv1D, which wants it transposed."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.pytorch_utils import Conv1D

        self.embed = nn.Embedding(9, WIDTH)
        self.up = Conv1D(9, WIDTH)
        self.down = nn.Linear(WIDTH, 9)
        self.back = Conv1D(WIDTH, 9)
        self.back.weight = self.embed.weight
        self.down.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.back(self.up(self.embed(ids)) + self.down(self.embed(ids)))  # type: ignore[no-any-return]


class Positions(nn.Module):
    """Words and positions, the latter looked up with a batch axis of one."""

    def __init__(self, table: int = 12) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(9, WIDTH), nn.Embedding(table, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        place = torch.arange(ids.shape[1])[None]
        return self.mix(self.words(ids) * self.mix(self.positions(place)))  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """torch's attention, whose projections are raw parameters, around other layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(WIDTH, WIDTH)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.attend(x, x.flip(1), x, need_weights=False)[0]  # type: ignore[no-any-return]


class Scaled(nn.Embedding):
    """An embedding subclass with its own forward, as Gemma's."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids + 1) * 3.0


def conv1d(**options: object) -> nn.Module:
    return nn.Conv1d(WIDTH, 6, 3, **options)  # type: ignore[arg-type]


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear 2-D": (lambda: nn.Linear(WIDTH, 3), lambda: floats(WIDTH)),
    "linear 3-D": (lambda: nn.Linear(WIDTH, 3), lambda: floats(LENGTH, WIDTH)),
    "linear 4-D": (lambda: nn.Linear(WIDTH, 3), lambda: floats(2, 3, WIDTH)),
    "linear without bias": (lambda: nn.Linear(WIDTH, 3, bias=False), lambda: floats(LENGTH, WIDTH)),
    "embedding": (lambda: nn.Embedding(9, WIDTH), words),
    "embedding, large table": (lambda: nn.Embedding(900, WIDTH), lambda: words() * 90),
    "embedding with padding": (lambda: nn.Embedding(9, WIDTH, padding_idx=4), words),
    "embedding with large padding": (lambda: nn.Embedding(50, WIDTH, padding_idx=4), words),
    "embedding of 3-D ids": (lambda: nn.Embedding(9, WIDTH), lambda: words().view(SIZE, 2, 3)),
    "embedding of one id": (lambda: nn.Embedding(9, WIDTH), lambda: words()[:, 0]),
    "embedding subclass": (lambda: Scaled(10, WIDTH), words),
    "embedding subclass, large table": (lambda: Scaled(100, WIDTH, padding_idx=3), words),
    "positions": (Positions, words),
    "layer norm": (lambda: nn.LayerNorm(WIDTH), lambda: floats(LENGTH, WIDTH)),
    "layer norm over two axes": (lambda: nn.LayerNorm((LENGTH, WIDTH)), lambda: floats(LENGTH, WIDTH)),
    "layer norm without bias": (lambda: nn.LayerNorm(WIDTH, bias=False), lambda: floats(LENGTH, WIDTH)),
    "torch rms norm": (lambda: nn.RMSNorm(WIDTH), lambda: floats(LENGTH, WIDTH)),
    "rms norm": (lambda: Gain(0.0), lambda: floats(LENGTH, WIDTH)),
    "rms norm, 1 + w": (lambda: Gain(1.0), lambda: floats(2, 3, WIDTH)),
    "softmaxed gain": (NotElementwise, lambda: floats(LENGTH, WIDTH)),
    "raw parameter": (lambda: nn.Sequential(ClassToken()), lambda: floats(LENGTH, WIDTH)),
    "group norm": (lambda: nn.GroupNorm(2, WIDTH), lambda: floats(WIDTH, LENGTH)),
    "conv1d": (conv1d, lambda: floats(WIDTH, LENGTH)),
    "conv1d, strided": (lambda: conv1d(stride=2, padding=2, dilation=2), lambda: floats(WIDTH, 9)),
    "conv1d, same": (lambda: conv1d(padding="same"), lambda: floats(WIDTH, LENGTH)),
    "conv1d, circular": (lambda: conv1d(padding=1, padding_mode="circular"), lambda: floats(WIDTH, LENGTH)),
    "conv1d, groups": (lambda: conv1d(groups=2), lambda: floats(WIDTH, LENGTH)),
    "conv2d": (lambda: nn.Conv2d(2, 3, (2, 3), padding=(1, 0), stride=(1, 2)), lambda: floats(2, 5, 6)),
    "conv2d without bias": (lambda: nn.Conv2d(2, 3, 2, bias=False), lambda: floats(2, 5, 6)),
    "attention": (SelfAttention, lambda: floats(LENGTH, WIDTH)),
    "used twice and tied": (Twice, words),
    "tied across layouts": (TransposedTie, words),
}


def task(model: nn.Module, inputs: Tensor) -> Callable[[slice], Tensor]:
    def losses(rows: slice) -> Tensor:
        output: Tensor = model(inputs[rows])
        weight = torch.linspace(-1, 2, output[0].numel(), dtype=output.dtype).view(output.shape[1:])
        return ((output + 0.1 * output**2) * weight).flatten(1).sum(1)

    return losses


def built(case: str, dtype: torch.dtype) -> tuple[nn.Module, Callable[[slice], Tensor]]:
    torch.manual_seed(0)
    make, inputs = CASES[case]
    model = make().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    data = inputs()
    return model, task(model, data.to(dtype) if data.is_floating_point() else data)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("rule", [Flat, PerLayer, Automatic])
@pytest.mark.parametrize("case", CASES)
def test_layer_equals_the_loop_in_fp64(case: str, rule: type[Clipping], lean: bool) -> None:
    model, losses = built(case, torch.float64)
    wrong, norm_wrong = compare(model, losses, SIZE, rule, lean=lean)
    assert wrong <= 1e-11 and norm_wrong <= 1e-11


@pytest.mark.parametrize("case", CASES)
def test_layer_equals_the_loop_in_fp32(case: str) -> None:
    model, losses = built(case, torch.float32)
    wrong, norm_wrong = compare(model, losses, SIZE, Flat)
    assert wrong <= 1e-5 and norm_wrong <= 1e-5


def rule_of(module: nn.Module) -> type[Site]:
    clipper = GhostClipping.__new__(GhostClipping)
    (site,) = sites_of(module, clipper)
    return type(site)


def test_common_layers_get_their_own_rule() -> None:
    assert rule_of(nn.Linear(2, 2)) is LinearSite
    assert rule_of(nn.LayerNorm(2)) is NormSite and rule_of(nn.RMSNorm(2)) is NormSite
    assert rule_of(Gain(0.0)) is GainSite and rule_of(Gain(1.0)) is GainSite
    assert rule_of(nn.Conv2d(2, 2, 1)) is ConvolutionSite


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.BatchNorm1d(3), "normalises over the batch"),
        (nn.Embedding(4, 3, max_norm=1.0), "max_norm"),
        (nn.Embedding(4, 3, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (nn.Embedding(4, 3, sparse=True), "sparse"),
        (nn.GRU(3, 3, batch_first=True), "second axis"),
        (nn.MultiheadAttention(4, 2), "batch_first=True"),
        (nn.ParameterList([nn.Parameter(torch.zeros(2))]), "no forward"),
    ],
)
def test_what_cannot_be_bounded_is_refused_by_name(module: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), module)
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        GhostClipping(model, 1.0)
    assert "1" in str(caught.value)


def test_a_parameter_on_the_model_itself_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.scale = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(UnsupportedModel, match="parameter scale sits directly"):
        GhostClipping(model, 1.0)


def test_a_missing_batch_axis_is_refused_by_name() -> None:
    class Flattens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.transpose(0, 1)).sum(0)  # type: ignore[no-any-return]

    model = Flattens().double()
    with GhostClipping(model, 1.0), pytest.raises(UnsupportedModel, match=r"inner\.weight of Linear"):
        model(floats(LENGTH, WIDTH))
    assert torch.is_grad_enabled() and model.inner.weight.requires_grad


def test_a_module_that_mixes_examples_is_refused() -> None:
    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (x - x.mean(0)) @ self.matrix

    model = nn.Sequential(Mixes())
    with GhostClipping(model, 1.0) as clipper:
        losses = model(floats(WIDTH)).sum(1)
        with pytest.raises(UnsupportedModel, match=r"0\.matrix of Mixes .* another output alone"):
            clipper.backward(losses)
    assert all(p.grad is None for p in model.parameters())


def test_dropout_inside_a_replayed_module_is_refused() -> None:
    model = nn.Sequential(nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.1, batch_first=True))
    with GhostClipping(model, 1.0) as clipper:
        losses = model(torch.randn(2, 3, WIDTH)).sum((1, 2))
        with pytest.raises(UnsupportedModel, match=r"0\.self_attn\..* another output alone"):
            clipper.backward(losses)
    model = nn.Sequential(nn.Sequential(nn.Dropout(0.5), ClassToken()), nn.Linear(WIDTH, WIDTH))
    model.get_submodule("0.1").add_module("noise", nn.Dropout(0.5))
    with GhostClipping(model, 1.0), pytest.raises(UnsupportedModel, match=r"0\.1\.token .* contains dropout"):
        model(torch.randn(2, 3, WIDTH))


# -- strategies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("length", [1, 2, 15, 33, 130, 257])
@pytest.mark.parametrize("onednn", [False, True])
def test_strategies_agree(strategy: Strategy, transposed: bool, length: int, onednn: bool) -> None:
    torch.manual_seed(length)
    dtype = torch.float32 if onednn else torch.float64
    a, b = torch.randn(3, length, 40, dtype=dtype), torch.randn(3, length, 300, dtype=dtype)
    shape = torch.Size((300, 40) if transposed else (40, 300))
    full = torch.einsum("btd,btp->bpd" if transposed else "btd,btp->bdp", a.double(), b.double())
    factors = torch.rand(3, dtype=dtype)
    use = _layers.MatrixUse(a, b, transposed, shape, strategy)
    tolerance = 1e-5 if onednn else 1e-12
    found = use.square(_layers.Grams()).value.double()
    torch.testing.assert_close(found, full.flatten(1).square().sum(1), rtol=tolerance, atol=0)
    expected = torch.einsum("b,bij->ij", factors.double(), full)
    scale = float(expected.norm())
    assert (use.weighted(factors, None).double() - expected).norm() <= tolerance * scale
    total = torch.ones(shape, dtype=dtype)
    assert (use.weighted(factors, total).double() - expected - 1).norm() <= tolerance * scale


def test_narrow_types_are_summed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_layers, "_CHUNK_WORDS", 100)
    a, b = torch.randn(5, 4, 6).bfloat16(), torch.randn(5, 4, 30).bfloat16()
    use = _layers.MatrixUse(a, b, True, torch.Size((30, 6)))
    full = torch.einsum("btd,btp->bpd", a.double(), b.double())
    factors = torch.rand(5)
    torch.testing.assert_close(
        use.square(_layers.Grams()).value.double(), full.flatten(1).square().sum(1), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        use.weighted(factors, None).double(), torch.einsum("b,bij->ij", factors.double(), full), rtol=1e-4, atol=1e-5
    )


def test_cost_model_follows_time_and_memory() -> None:
    def small(length: int, keep_words: float, exact: bool = False) -> Strategy:
        return choose(batch=8, length=length, inputs=768, outputs=768, keep_words=keep_words, exact=exact)

    plenty, none = float("inf"), 0.0
    assert small(64, plenty) is Strategy.GRAM
    assert small(2048, plenty) is Strategy.KEEP
    assert small(2048, none) is Strategy.DISCARD  # kept gradients take memory
    assert choose(length=2048, keep_words=none, batch=8, inputs=768, outputs=50257) is not Strategy.KEEP
    assert small(64, none, exact=True) is Strategy.DISCARD
    assert choose(length=64, keep_words=plenty, batch=8, inputs=768, outputs=8) is Strategy.KEEP  # LoRA


def test_strips_cover_the_triangle() -> None:
    for length in (1, 5, 64, 131, 1024):
        for onednn in (False, True):
            starts = strip_starts(length, onednn)
            assert starts[0] == 0 and starts[-1] == length and list(starts) == sorted(set(starts))


def test_grams_are_shared_between_layers_that_read_the_same_input() -> None:
    x = torch.randn(2, 30, 4)
    grams = _layers.Grams()
    first = grams.shared(x, (0, 30), False)
    assert grams.shared(x.view(2, 30, 4), (0, 30), False) is first
    assert grams.shared(x.clone(), (0, 30), False) is not first


def test_plain_products_agree_with_the_fast_ones() -> None:
    left, right = torch.randn(200, 70), torch.randn(200, 90)
    weight = torch.randn(70, 90)
    with products.plain():
        slow = products.outer(left, right), products.right(right, weight, transposed=False)
    fast = products.outer(left, right), products.right(right, weight, transposed=False)
    for s, f in zip(slow, fast, strict=True):
        torch.testing.assert_close(s, f, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "vendor_id\t: GenuineIntel\ncpu family\t: 6\n",
        "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel",
        "vendor_id\t: AuthenticAMD\ncpu family\t: 25\n",
        "AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD",
        "",
    ],
)
def test_processors_on_which_it_gains_nothing_keep_torchs_routine(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPAUDIT_PRODUCTS", raising=False)
    monkeypatch.setattr(products, "_processor", lambda: text)
    products.has_onednn.cache_clear()
    try:
        assert not products.onednn_for(torch.zeros(2, 2))
    finally:
        products.has_onednn.cache_clear()


def test_plain_products_can_be_asked_for_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPAUDIT_PRODUCTS", "plain")
    products.has_onednn.cache_clear()
    try:
        assert not products.onednn_for(torch.zeros(2, 2))
    finally:
        products.has_onednn.cache_clear()
