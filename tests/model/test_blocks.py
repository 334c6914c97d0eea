"""Blocks that gather their windows, beside upstream's."""

from __future__ import annotations

import pytest
import torch
from aurora.model.swin3d import Swin3DTransformerBlock
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from xaurora.model import blocks
from xaurora.model.blocks import BlockForward
from xaurora.model.windows import windows_of

WINDOW = (2, 6, 12)


def _block(*, shifted: bool, lora: bool = False, width: int = 16) -> Swin3DTransformerBlock:
    torch.manual_seed(0)
    block = Swin3DTransformerBlock(
        width,
        num_heads=2,
        time_dim=8,
        window_size=WINDOW,
        shift_size=(1, 3, 6) if shifted else (0, 0, 0),
        use_lora=lora,
    )
    for p in block.parameters():  # modulation and LoRA start at zero, and would hide everything
        torch.nn.init.normal_(p, std=0.2)
    return block.eval()


def _run(
    block: Swin3DTransformerBlock, res: tuple[int, int, int], samples: int, *, wraps: bool
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Return the output of upstream's block and of ours, and the gradients of both."""
    torch.manual_seed(1)
    x = torch.randn(samples, res[0] * res[1] * res[2], block.dim)
    context, target = torch.randn(samples, 8), torch.randn_like(x)
    outputs, gradients = [], []
    for forward in (
        lambda x: block(x, context, res, 0, warped=wraps),
        lambda x: BlockForward(block, wraps=wraps)(x, context, res, 0),
    ):
        given_x = x.clone().requires_grad_()
        try:
            out = forward(given_x)
        except RuntimeError as error:  # upstream's, on some grids narrower than a window
            assume("view size" not in str(error))
            raise
        ((out - target) ** 2).mean().backward()
        outputs.append(out.detach())
        gradients.append([given_x.grad, *(p.grad.clone() for p in block.parameters())])
        block.zero_grad()
    return outputs[0], outputs[1], gradients[0], gradients[1]


@settings(max_examples=25, deadline=None)
@example(
    rows=12, columns=24, levels=4, samples=2, shifted=True, wraps=True, lora=True
)  # no padding
@given(
    rows=st.integers(2, 20),
    columns=st.integers(2, 30),
    levels=st.sampled_from([2, 4]),
    samples=st.integers(1, 2),
    shifted=st.booleans(),
    wraps=st.booleans(),
    lora=st.booleans(),
)
def test_a_block_is_upstreams(
    rows: int, columns: int, levels: int, samples: int, shifted: bool, wraps: bool, lora: bool
) -> None:
    """Whatever the grid: smaller than a window, padded, shifted, with or without neighbours."""
    block = _block(shifted=shifted, lora=lora)
    theirs, ours, theirs_grad, ours_grad = _run(
        block, (levels, rows, columns), samples, wraps=wraps
    )
    # The same sums in another order of rows: rounding of float32.
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    for own, reference in zip(ours_grad, theirs_grad, strict=True):
        assert (own - reference).abs().max() <= 1e-5 * reference.abs().max() + 1e-9


@pytest.mark.parametrize("columns", [24, 30])
def test_without_gradients_it_runs_in_pieces(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    block, res = _block(shifted=True), (4, 14, columns)
    torch.manual_seed(1)
    x, context = torch.randn(2, 4 * 14 * columns, 16), torch.randn(2, 8)
    run = BlockForward(block, wraps=True)
    with torch.no_grad():
        whole, stock = run(x, context, res, 0), block(x, context, res, 0)
        monkeypatch.setattr(blocks, "_PIECE", 2**14)
        pieces = run(x, context, res, 0)
    assert torch.equal(whole, stock)
    assert (pieces - stock).abs().max() <= 1e-5 * stock.abs().max()


def test_masks_are_not_strict_where_a_score_could_outweigh_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A score 150 above the others is seen through a mask of -100, as in upstream's code."""
    block, used = _block(shifted=True), []
    real = blocks._may_be_strict
    monkeypatch.setattr(
        blocks, "_may_be_strict", lambda *args: used.append(real(*args)) or used[-1]
    )
    for scale in (1.0, 40.0):
        with torch.no_grad():
            block.attn.qkv.weight.mul_(scale)
        theirs, ours, theirs_grad, ours_grad = _run(block, (4, 14, 24), 1, wraps=True)
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        for own, reference in zip(ours_grad, theirs_grad, strict=True):
            assert (own - reference).abs().max() <= 1e-5 * reference.abs().max() + 1e-9
    assert used == [True, False]


@pytest.mark.parametrize("piece", [2**28, 2**12])
def test_numbers_are_those_that_autocast_has_on_gpus(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer norms are float32 there, so that a block turns bf16 tokens into float32 ones."""
    real = torch.nn.functional.layer_norm
    monkeypatch.setattr(
        torch.nn.functional, "layer_norm", lambda x, *args, **kwargs: real(x.float(), *args)
    )
    monkeypatch.setattr(blocks, "_PIECE", piece)
    block, res = _block(shifted=True), (4, 12, 24)
    torch.manual_seed(1)
    x, context = torch.randn(1, 4 * 12 * 24, 16).bfloat16(), torch.randn(1, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        stock = block(x, context, res, 0)
        ours = BlockForward(block, wraps=True)(x, context, res, 0)
    assert ours.dtype == stock.dtype == torch.float32
    # Matrix products over fewer rows round differently in bf16.
    assert (ours - stock).abs().max() <= (0 if piece > 2**20 else 2**-6) * stock.abs().max()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("single", [0, 0, 0, 3, 3]), ("from_second", [0, 1, 1, 3, 3]), ("all", [0, 1, 2, 3, 3])],
)
def test_steps_with_the_same_lora_are_one(mode: str, expected: list[int]) -> None:
    block = Swin3DTransformerBlock(16, 2, 8, WINDOW, use_lora=True, lora_mode=mode, lora_steps=3)
    assert [blocks._lora_step(block.attn, step) for step in range(5)] == expected
    assert blocks._lora_step(_block(shifted=False).attn, 7) == 0


def test_what_inference_caches_can_train() -> None:
    block, res = _block(shifted=True), (2, 7, 13)
    x, context = torch.randn(1, 2 * 7 * 13, 16), torch.randn(1, 8)
    windows_of.cache_clear()
    run = BlockForward(block, wraps=True)
    with torch.inference_mode():
        run(x, context, res, 0)
    run(x, context, res, 0).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
